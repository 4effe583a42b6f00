package memory

import (
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// base is what a process takes beside model, cache and computing: program, libraries, tokenizer.
const base = 12 << 20

// A Process is what a process takes that runs one sequence of a model, at its peak. All but the weights and the cache are estimates.
type Process struct {
	Weights     uint64 // the file's tensors
	Kernels     uint64 // phi and psi
	Slots       uint64 // of the cache; all of a full one
	State       uint64 // of the cache: what does not grow with the text, recurrent states among it
	Checkpoints uint64 // of a LESS cache
	Scratch     uint64 // of the LESS kernels
	Compute     uint64 // of the graph, and the base
}

// Total returns the sum.
func (p Process) Total() uint64 {
	return p.Weights + p.Kernels + p.Slots + p.State + p.Checkpoints + p.Scratch + p.Compute
}

// Weights returns what a model's tensors take in a process, each once: those that ggml repacks for the CPU are copied out of the mapped
// file, and the pages that they came from leave the process.
func Weights(f *gguf.File) (bytes uint64) {
	for _, t := range f.Tensors {
		bytes += uint64(t.Size)
	}
	return bytes
}

// Compute estimates what the graph of a micro-batch takes, and the process besides.
func Compute(m *weights.Model, ubatch int) uint64 {
	width := m.Max(func(s weights.Shape) int { return s.Heads * s.KeyLength })
	return base + uint64(ubatch)*uint64(width)*12*4 + uint64(m.Vocab)*4*2
}

// Scratch estimates what the kernels take beside the cache, for a micro-batch and the most slots of a head of each layer (Bytes.Most):
// "scratch" in algorithm.md.
func Scratch(m *weights.Model, slots []int, ubatch, threads int) uint64 {
	const lanes, pad, tile, chunks, bound, together = 16, 32, 24, 8, 32 << 20, 4 << 20 // cgo/kernels/internal.h
	round := func(n int) int { return (n + pad - 1) / pad * pad }
	most, shared := 0, map[int]int{}
	for i := range m.Layers {
		if !m.Attends(i) {
			continue
		}
		s, held := m.Layer(i), slots[i]
		pairs, value := round(held+ubatch), round(s.ValueLength)
		scores, parted := 0, chunks // a query head's queries are in so many parts
		if m.Window(i) == 0 {
			one := 4 * s.Heads * pairs
			scores = max(one, min(one*min(ubatch, chunks), bound))
			parted = max(1, min(chunks, bound/one))
			if m.Shares(i) {
				shared[m.Owner(i)] = 4 * s.HeadsKV * pairs
			}
		}
		parts := min(s.HeadsKV*((held+127)/128), 32+s.HeadsKV) * s.Heads / s.HeadsKV * min(ubatch, chunks) * value * 4
		blocks := max(1, min((ubatch+parted*lanes-1)/(parted*lanes), 4)) // of queries that go together
		block := 4 * lanes * pairs
		logits := max(block, min(block*blocks, together))
		thread := logits + 8*pairs + 4*tile*max(s.KeyLength, value) + 4*lanes*(blocks*(s.KeyLength+value)+2*value) + 16*ubatch
		most = max(most, scores+parts+threads*thread)
	}
	for _, bytes := range shared {
		most += bytes
	}
	return uint64(most)
}
