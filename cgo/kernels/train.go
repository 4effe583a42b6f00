package kernels

/*
#include "train.h"
*/
import "C"

import (
	"math"
	"runtime"
	"unsafe"
)

// Kept is what TrainWindow.Evicted says of a pair that stays.
const Kept = math.MaxInt32

// A TrainWindow is S tokens of one sequence in one layer, recorded under the full cache and replayed under a policy; see
// struct lesskv_train_window. Numbers of 16 bits are f16.
type TrainWindow struct {
	Tokens int // S
	Ubatch int // T

	Q    []uint16 // [S][Hq][D], scaled as phi takes it
	K    []uint16 // [S][Hkv][D]
	V    []uint16 // [S][Hkv][Dv]
	Full []uint16 // [S][Hq][Dv]: attention over the full cache

	Sparse  []uint16  // [S][Hq][Dv]: attention over slots and micro-batch alone
	LSE     []float32 // [S][Hq]: the log of its denominator
	Evicted []int32   // [Hkv][S]: the micro-batch at whose end a pair goes, or Kept
}

// A TrainShape is what a layer's kernels are made for; see struct lesskv_train_shape.
type TrainShape struct {
	Shape
	ValueSize int // Dv
}

func (s TrainShape) c() C.struct_lesskv_train_shape {
	return C.struct_lesskv_train_shape{
		n_head: C.int32_t(s.Heads), n_head_kv: C.int32_t(s.HeadsKV), dk: C.int32_t(s.KeySize), dv: C.int32_t(s.ValueSize),
		rank: C.int32_t(s.Rank), hidden: C.int32_t(s.Hidden),
	}
}

// Weights returns how many numbers the kernels are.
func (s TrainShape) Weights() int {
	c := s.c()
	return int(C.lesskv_train_weights(&c))
}

// Scratch returns the bytes that TrainError needs for windows of that many tokens.
func (s TrainShape) Scratch(tokens, ubatch int) int {
	c := s.c()
	return int(C.lesskv_train_scratch(&c, C.int32_t(tokens), C.int32_t(ubatch)))
}

// Sizes returns the elements of the five matrices and the scales, one after the other in the array of weights: phi 0, phi 1, psi 0,
// psi 1, psi 2, phi's scale.
func (s TrainShape) Sizes() [6]int {
	return [6]int{
		s.Heads * s.Hidden * s.KeySize, s.Heads * s.Rank * s.Hidden,
		s.HeadsKV * s.Hidden * s.KeySize, s.HeadsKV * s.Rank * s.Hidden, s.HeadsKV * s.Rank * s.Rank,
		s.Heads,
	}
}

// with calls f with the C form of the window, whose memory stays where it is until f returns.
func (w *TrainWindow) with(heads, headsKV, keySize, valueSize int, f func(*C.struct_lesskv_train_window) error) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	c, err := w.c(heads, headsKV, keySize, valueSize, &pin)
	if err != nil {
		return err
	}
	return f(c)
}

// c returns the C form of the window, all of it pinned.
func (w *TrainWindow) c(heads, headsKV, keySize, valueSize int, pin *runtime.Pinner) (*C.struct_lesskv_train_window, error) {
	s := w.Tokens
	if s < 1 || w.Ubatch < 1 {
		return nil, argument("a window of %d tokens in micro-batches of %d", s, w.Ubatch)
	}
	for _, a := range []struct {
		name       string
		have, want int
	}{
		{"q", len(w.Q), s * heads * keySize}, {"k", len(w.K), s * headsKV * keySize}, {"v", len(w.V), s * headsKV * valueSize},
		{"full", len(w.Full), s * heads * valueSize}, {"sparse", len(w.Sparse), s * heads * valueSize},
		{"lse", len(w.LSE), s * heads}, {"evicted", len(w.Evicted), s * headsKV},
	} {
		if a.have != a.want {
			return nil, argument("%s of a window of %d tokens: %d elements, want %d", a.name, s, a.have, a.want)
		}
	}
	c := &C.struct_lesskv_train_window{
		n_tokens: C.int32_t(s), n_ubatch: C.int32_t(w.Ubatch),
		q: (*C.uint16_t)(&w.Q[0]), k: (*C.uint16_t)(&w.K[0]), v: (*C.uint16_t)(&w.V[0]), full: (*C.uint16_t)(&w.Full[0]),
		sparse: (*C.uint16_t)(&w.Sparse[0]), lse: (*C.float)(&w.LSE[0]), evicted: (*C.int32_t)(&w.Evicted[0]),
	}
	for _, p := range []any{c, &w.Q[0], &w.K[0], &w.V[0], &w.Full[0], &w.Sparse[0], &w.LSE[0], &w.Evicted[0]} {
		pin.Pin(p)
	}
	return c, nil
}

// A TrainSharer is a layer that shares another's cache, over the same window.
type TrainSharer struct {
	Heads  int          // Hq
	Window *TrainWindow // with the cache's K and V
	Sinks  []float32    // as Ubatch has them
}

// Replay runs the layer's policy over the window and fills Sparse, LSE and Evicted, its own and those of the layers that share its cache.
// softCap and sinks are those of Ubatch. The layer's types are F16, and it has neither kernels nor a window.
func (w *TrainWindow) Replay(l Layer, softCap float32, sinks []float32, sharers ...TrainSharer) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	layer, err := l.c(&pin)
	if err != nil {
		return err
	}
	if sinks != nil && len(sinks) != l.Heads {
		return argument("%d sinks, want one for each of %d query heads", len(sinks), l.Heads)
	}
	with := make([]C.struct_lesskv_train_sharer, len(sharers))
	for i, s := range sharers {
		switch {
		case s.Heads < 1 || s.Heads%l.HeadsKV != 0:
			return argument("a sharer of %d query heads: want a multiple of the cache's %d", s.Heads, l.HeadsKV)
		case s.Sinks != nil && len(s.Sinks) != s.Heads:
			return argument("%d sinks of a sharer, want one for each of %d query heads", len(s.Sinks), s.Heads)
		case s.Window.Tokens != w.Tokens || s.Window.Ubatch != w.Ubatch:
			return argument("a sharer's window of %d tokens in micro-batches of %d, want %d in %d", s.Window.Tokens, s.Window.Ubatch, w.Tokens, w.Ubatch)
		}
		c, err := s.Window.c(s.Heads, l.HeadsKV, l.KeySize, l.ValueSize, &pin)
		if err != nil {
			return err
		}
		with[i] = C.struct_lesskv_train_sharer{n_head: C.int32_t(s.Heads), w: c}
		if s.Sinks != nil {
			pin.Pin(&s.Sinks[0])
			with[i].sinks = (*C.float)(&s.Sinks[0])
		}
	}
	return w.with(l.Heads, l.HeadsKV, l.KeySize, l.ValueSize, func(c *C.struct_lesskv_train_window) error {
		return check(C.lesskv_train_replay(&layer, c, C.float(softCap), (*C.float)(unsafe.SliceData(sinks)), unsafe.SliceData(with), C.int32_t(len(with))),
			"replay over %d tokens of %+v with %d sharers", w.Tokens, l, len(with))
	})
}

// Missing is the log of the softmax mass that the sparse part of a query head misses, over some of its queries.
type Missing struct{ Mean, Least, Most float64 }

// Missing returns, for each query head, what its sparse part misses, over every step-th query past its first eviction; a mean of NaN
// where nothing is evicted.
func (w *TrainWindow) Missing(l Layer, softCap float32, step int) ([]Missing, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	layer, err := l.c(&pin)
	if err != nil {
		return nil, err
	}
	if step < 1 {
		return nil, argument("a step of %d queries", step)
	}
	all := make([]float64, 3*l.Heads)
	err = w.with(l.Heads, l.HeadsKV, l.KeySize, l.ValueSize, func(c *C.struct_lesskv_train_window) error {
		return check(C.lesskv_train_missing(&layer, c, C.float(softCap), C.int32_t(step), (*C.double)(&all[0])), "the missing mass of %d tokens", w.Tokens)
	})
	missing := make([]Missing, l.Heads)
	for i := range missing {
		missing[i] = Missing{all[i], all[l.Heads+i], all[2*l.Heads+i]}
	}
	return missing, err
}

// TrainError is what a window costs.
type TrainError struct {
	Sum     float64   // squared error of the layer's output behind its output projection, over Tokens
	Tokens  int       // past the first eviction
	LogMass []float64 // mean log(phi z) of each query head over the queries that find it above 0, NaN if none does; nil without weights
}

// Error returns what the window costs with the kernels that weights hold, or with none if it is nil. gram is what TrainGram
// returned. Unless grad is nil, Sum's gradient is added to it, which may be beyond f32. scratch has s.Scratch bytes.
func (w *TrainWindow) Error(s TrainShape, weights, gram []float32, scratch []byte, grad []float32) (TrainError, error) {
	return w.ErrorOfPart(s, weights, gram, scratch, grad, 1, 0)
}

// ErrorOfPart is Error of a part of the tokens: of their blocks of 64 every `every`-th one, from the from-th on, 0 <= from < every. Where
// there are fewer than twice as many blocks all count.
func (w *TrainWindow) ErrorOfPart(s TrainShape, weights, gram []float32, scratch []byte, grad []float32, every, from int) (TrainError, error) {
	n, size := s.Weights(), gramSize(s.Heads*s.ValueSize)
	switch {
	case every < 1 || from < 0 || from >= every || int64(every) > math.MaxInt32/256:
		return TrainError{}, argument("every %d-th block from the %d-th on", every, from)
	case weights != nil && len(weights) != n:
		return TrainError{}, argument("%d weights, want %d", len(weights), n)
	case grad != nil && (len(grad) != n || weights == nil):
		return TrainError{}, argument("a gradient of %d numbers for %d weights, want %d", len(grad), len(weights), n)
	case len(gram) != size:
		return TrainError{}, argument("a Gram matrix of %d numbers, want %d", len(gram), size)
	case len(scratch) < s.Scratch(w.Tokens, w.Ubatch):
		return TrainError{}, argument("%d bytes of scratch, want %d", len(scratch), s.Scratch(w.Tokens, w.Ubatch))
	}
	shape := s.c()
	var e TrainError
	var count C.int32_t
	var mass *C.double
	if weights != nil {
		e.LogMass = make([]float64, 2*s.Heads)
		mass = (*C.double)(&e.LogMass[0])
	}
	err := w.with(s.Heads, s.HeadsKV, s.KeySize, s.ValueSize, func(c *C.struct_lesskv_train_window) error {
		e.Sum = float64(C.lesskv_train_error(&shape, (*C.float)(unsafe.SliceData(weights)), c, (*C.float)(&gram[0]),
			unsafe.Pointer(&scratch[0]), C.int32_t(every), C.int32_t(from), &count, mass, (*C.float)(unsafe.SliceData(grad))))
		return nil
	})
	e.Tokens = int(count)
	e.LogMass = e.LogMass[:len(e.LogMass)/2] // without the numbers of queries
	return e, err
}

// TrainGram returns Wo Wo^T, what an error of the heads' joined outputs costs behind the output projection; wo is stored
// output by output, [out][in]. The order of its numbers is that of lesskv_train_gram.
func TrainGram(wo []float32, out, in int) ([]float32, error) {
	if out < 1 || in < 1 || len(wo) != out*in {
		return nil, argument("an output projection of %d numbers, want %d x %d", len(wo), out, in)
	}
	gram := make([]float32, gramSize(in))
	return gram, check(C.lesskv_train_gram((*C.float)(&wo[0]), C.int32_t(out), C.int32_t(in), (*C.float)(&gram[0])), "Gram matrix of %d", in)
}

func gramSize(in int) int { return int(C.lesskv_train_gram_size(C.int32_t(in))) }
