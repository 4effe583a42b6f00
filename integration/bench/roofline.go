package bench

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Decoding reads all weights and the whole cache for each token, and hardly computes: it can be as fast as the memory is. The roofline is how
// near it comes.

// streamed is what is read to measure the memory's bandwidth, in bytes: more than any cache of a CPU has room for.
var streamed = 1 << 30

// readSpeed returns the bytes a second that so many threads read from a buffer, each a part of its own, over and over for about a time. One
// number of each cache line of 64 bytes is touched: the line is fetched, and the loop is no limit.
func readSpeed(buffer []uint64, threads int, atLeast time.Duration) float64 {
	const line = 8
	sums := make([]uint64, threads) // so that nothing is optimised away
	part := len(buffer) / threads
	start, passes := time.Now(), 0
	for ; passes == 0 || time.Since(start) < atLeast; passes++ {
		var all sync.WaitGroup
		for i := range threads {
			all.Add(1)
			go func() {
				defer all.Done()
				var sum uint64
				for x := buffer[i*part : (i+1)*part]; len(x) >= line; x = x[line:] {
					sum += x[0]
				}
				sums[i] += sum
			}()
		}
		all.Wait()
	}
	return float64(8*part*threads*passes) / time.Since(start).Seconds()
}

// bandwidth keeps what the memory gives in a round.
func (b *bench) bandwidth() {
	if b.stream == nil {
		b.stream = make([]uint64, streamed/8)
		for i := range b.stream { // pages that were never written are all the same one
			b.stream[i] = uint64(i)
		}
	}
	b.result.Bandwidth = append(b.result.Bandwidth, readSpeed(b.stream, b.o.Threads, sampleTime))
}

// tokenWeights returns the bytes of a model's tensors that decoding reads for a token. The matrix of embeddings counts only where the output
// has none of its own, and experts by the share of them that a token uses.
func tokenWeights(path string) (int64, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	share, output := 1., false
	architecture, _ := gguf.Get[string](f, "general.architecture")
	all, err := gguf.Get[uint32](f, architecture+".expert_count")
	used, err2 := gguf.Get[uint32](f, architecture+".expert_used_count")
	if err == nil && err2 == nil && all > 0 {
		share = float64(used) / float64(all)
	}
	for _, t := range f.Tensors {
		output = output || t.Name == "output.weight"
	}
	bytes := 0.
	for _, t := range f.Tensors {
		switch {
		case t.Name == "token_embd.weight" && output:
		case strings.Contains(t.Name, "_exps."):
			bytes += share * float64(t.Size)
		default:
			bytes += float64(t.Size)
		}
	}
	return int64(bytes), nil
}

// reach returns the share of the bandwidth that decoding reaches, round by round, and the bytes that it reads for a token.
func (r *Result) reach(method string, context int) (share Spread, bytes float64) {
	m, ok := r.memory(method, context)
	if !ok {
		return Spread{}, 0
	}
	bytes = float64(r.Weights + m.Read)
	read := map[int]float64{}
	for round, x := range r.Bandwidth {
		read[round] = x / bytes // tokens a second, if nothing else took time
	}
	return pairs(r.speeds(Cell{method, context, Decode}), read), bytes
}

// roofline prints it, where it was measured.
func (r *Result) roofline(w io.Writer) {
	if len(r.Bandwidth) == 0 {
		return
	}
	s := spread(r.Bandwidth)
	fmt.Fprintf(w, "\ndecoding: MB that a token reads, weights (%.0f) and cache; GB/s; share of what %d threads read from memory, %.1f GB/s (%.1f-%.1f)\n",
		float64(r.Weights)*1e-6, r.Threads, s.Median*1e-9, s.Min*1e-9, s.Max*1e-9)
	r.grid(w, func(method string, context int) string {
		share, bytes := r.reach(method, context)
		if share.N == 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f, %.1f, %.0f%%", bytes*1e-6, bytes*r.Speed(Cell{method, context, Decode}).Median*1e-9, 100*share.Median)
	})
}
