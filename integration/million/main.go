// Command million takes a million tokens through one sequence of a LESS cache, and prints what its process holds on the way. It
// fails where memory has grown by more than 1 % since the first tenth, or where the cache is not what it was.
//
//	go run ./integration/million [-tokens 1000000]
//
// The text is held-out source, again and again, and of every 32 tokens the last is decoded alone, as when text is generated. The model was trained on 2,048
// positions: the perplexity of what follows them says that the numbers stay finite, not how good a text would be.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"time"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/usage"
)

const (
	ubatch = 32
	rows   = 10  // of the table
	bound  = 1.0 // per cent by which memory may grow after the first row
)

func main() {
	tokens := flag.Int("tokens", 1_000_000, "tokens of the sequence")
	budget := flag.Int("budget", 102, "slots per KV head")
	usage.Main("million", func(ctx context.Context) error { return run(ctx, *tokens, *budget) })
}

func run(ctx context.Context, n, budget int) error {
	if least := rows * 10 * ubatch; n < least {
		return usage.Errorf("-tokens %d: want %d at least, so that a tenth of them fills the cache", n, least)
	}
	model, err := testdata.Path(testdata.Model)
	if err != nil {
		return err
	}
	adapter, err := testdata.Path(testdata.Peak102)
	if err != nil {
		return err
	}
	text, err := testdata.Read(testdata.Heldout)
	if err != nil {
		return err
	}
	path, err := worker.Path(worker.Patched)
	if err != nil {
		return err
	}
	w, err := worker.Start(ctx, path)
	if err != nil {
		return err
	}
	defer w.Close()
	info, err := w.Open(worker.Config{Model: model, Context: n, Batch: ubatch, Ubatch: ubatch, Threads: 1,
		LESS: &worker.LESS{Policy: "peak", Budget: budget, Adapter: adapter}})
	if err != nil {
		return err
	}
	source, err := w.Tokenize(string(text[:200_000]), false) // more takes longer than half a minute
	if err != nil {
		return err
	}
	fmt.Printf("gopher-5m, peak with phi and psi, %d slots per KV head, a context of %d, micro-batches of %d tokens and of one, 1 thread\n\n", budget, info.Context, ubatch-1)
	fmt.Printf("%10s  %12s  %10s  %8s  %12s  %14s  %10s  %8s\n", "tokens", "anonymous KiB", "peak KiB", "cache KiB", "kept a head", "folded a head", "perplexity", "tokens/s")
	var first worker.Memory
	var held int64
	start := time.Now()
	nll, judged := 0., 0
	for at := 0; at < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		size := ubatch - 1
		if at%ubatch == size {
			size = 1
		}
		size = min(size, n-at)
		tokens := make([]int32, size)
		for i := range tokens {
			tokens[i] = source[(at+i)%len(source)]
		}
		out, err := w.Decode(0, at, tokens, worker.Last)
		if err != nil {
			return fmt.Errorf("at token %d: %w", at, err)
		}
		at += size
		loss := surprise(out.Row(out.Len()-1), source[at%len(source)])
		if math.IsNaN(loss) || math.IsInf(loss, 0) {
			return fmt.Errorf("at token %d: the next token's log probability is %v", at, -loss)
		}
		nll += loss
		judged++
		if at*rows/n == (at-size)*rows/n {
			continue
		}
		m, err := w.Memory()
		if err != nil {
			return err
		}
		if m.Anon < 0 { // where the system does not tell
			m.Anon = m.Resident
		}
		less, err := w.LESS()
		if err != nil {
			return err
		}
		layers, err := w.Layers(0)
		if err != nil {
			return err
		}
		cache := less.CacheBytes()
		l := layers[0]
		fmt.Printf("%10d  %12d  %10d  %8.1f  %12d  %14d  %10.2f  %8.0f\n", at, m.Anon>>10, m.Peak>>10, float64(cache)/1024, l.Kept, l.Folded,
			math.Exp(nll/float64(judged)), float64(at)/time.Since(start).Seconds())
		nll, judged = 0, 0
		if held == 0 {
			held, first = cache, m
			continue
		}
		if cache != held || l.Seen != int64(at) || l.Kept != int64(budget) || l.Folded != l.Seen-l.Kept {
			return fmt.Errorf("after %d tokens the cache holds %d bytes, %d pairs of %d tokens and %d folded; want %d bytes, %d pairs, and the rest folded",
				at, cache, l.Kept, l.Seen, l.Folded, held, budget)
		}
		if by := 100 * float64(m.Anon-first.Anon) / float64(first.Anon); by > bound {
			return fmt.Errorf("after %d tokens the process holds %d KiB, %.2f %% more than after the first tenth", at, m.Anon>>10, by)
		}
	}
	return nil
}

// surprise is -log of a token's probability.
func surprise(logits []float32, token int32) float64 {
	_, norm := distance.LogSum(logits)
	return norm - float64(logits[token])
}
