package reference

import (
	"errors"
	"fmt"
	"math"

	"github.com/lesskv/lesskv/weights/gguf"
)

// ErrNotFinite says that a fold made H or z infinite or not a number ("What is not finite" in algorithm.md).
var ErrNotFinite = errors.New("reference: a fold is not finite")

// Budget is what one KV head keeps.
type Budget struct {
	Slots int // B
	Heavy int // h
}

// Layer describes the attention of one layer and how its cache is bounded.
type Layer struct {
	Heads, HeadsKV         int // Hq, Hkv; Hq a multiple of Hkv
	KeyLength, ValueLength int // D, Dv

	KeyType, ValueType gguf.Type // of the slots: F32, F16, Q8_0 or Q4_0

	Scale   float64   // s
	SoftCap float64   // 0: none
	Sinks   []float32 // [Hq] logits that join the denominator; nil: none
	Window  int       // n_swa; above 0 the layer is exact and what follows does not apply

	Policy  *Policy
	Budget  int      // B, slots per KV head
	Heavy   int      // h; r = B - h
	Budgets []Budget // [Hkv] B and h of each KV head, in the place of these two; nil: all have the same
	Pinned  int      // first positions that are never evicted, at most any h
	Kernels *Kernels // nil: what is evicted is dropped
}

func (l *Layer) check() error {
	switch {
	case l.HeadsKV < 1 || l.Heads < 1 || l.Heads%l.HeadsKV != 0:
		return fmt.Errorf("reference: %d query heads over %d key/value heads: want a positive multiple", l.Heads, l.HeadsKV)
	case l.KeyLength < 1 || l.ValueLength < 1:
		return fmt.Errorf("reference: heads of %d and %d: want at least 1", l.KeyLength, l.ValueLength)
	case !fits(l.KeyLength, l.KeyType) || !fits(l.ValueLength, l.ValueType):
		return fmt.Errorf("reference: slots of %v and %v for heads of %d and %d: want F32, F16, or Q8_0 or Q4_0 for multiples of 32",
			l.KeyType, l.ValueType, l.KeyLength, l.ValueLength)
	case l.Scale <= 0 || l.SoftCap < 0 || l.Window < 0:
		return fmt.Errorf("reference: scale %g, soft-cap %g, window %d: want a positive scale and no negative", l.Scale, l.SoftCap, l.Window)
	case l.Sinks != nil && len(l.Sinks) != l.Heads:
		return fmt.Errorf("reference: %d sinks: want one for each of %d heads", len(l.Sinks), l.Heads)
	case l.Window > 0:
		return nil
	case l.Policy == nil:
		return fmt.Errorf("reference: no policy: want one of %v", Policies())
	case l.Budgets != nil && len(l.Budgets) != l.HeadsKV:
		return fmt.Errorf("reference: budgets of %d key/value heads: want %d", len(l.Budgets), l.HeadsKV)
	}
	for j := range l.HeadsKV {
		if b := l.budgetOf(j); b.Slots < 1 || b.Heavy > b.Slots || l.Pinned < 0 || l.Pinned > b.Heavy {
			return fmt.Errorf("reference: budget %d, heavy %d, pinned %d: want pinned <= heavy <= budget, and a budget", b.Slots, b.Heavy, l.Pinned)
		}
	}
	if l.Kernels != nil {
		return l.Kernels.check(l, true)
	}
	return nil
}

// budgetOf returns what KV head j keeps.
func (l *Layer) budgetOf(j int) Budget {
	switch {
	case l.Window > 0:
		return Budget{Slots: l.Window - 1}
	case l.Budgets != nil:
		return l.Budgets[j]
	}
	return Budget{l.Budget, l.Heavy}
}

// Sharer is a layer that has no keys and values of its own: its queries see what another layer's cache holds ("Layers that share
// another layer's cache" in algorithm.md).
type Sharer struct {
	Heads   int       // Hq, a multiple of the cache's HeadsKV
	Scale   float64   // s
	SoftCap float64   // 0: none
	Sinks   []float32 // [Hq] or nil
	Kernels *Kernels  // phi counts, of the cache's rank; nil: the slots alone
}

// layer returns the sharer as a layer of that cache.
func (s *Sharer) layer(owner *Layer) (Layer, error) {
	l := *owner
	l.Heads, l.Scale, l.SoftCap, l.Sinks, l.Kernels = s.Heads, s.Scale, s.SoftCap, s.Sinks, nil
	if err := l.check(); err != nil {
		return l, fmt.Errorf("a sharer: %w", err)
	}
	if s.Kernels != nil && owner.Window == 0 {
		l.Kernels = s.Kernels
		if owner.Kernels == nil || owner.Kernels.Rank != s.Kernels.Rank {
			return l, fmt.Errorf("reference: a sharer with phi: want a cache with psi of rank %d", s.Kernels.Rank)
		}
		return l, s.Kernels.check(&l, false)
	}
	return l, nil
}

// pair is a key, its value, and their score.
type pair struct {
	pos   int
	k, v  []float64 // D, Dv, as the slots hold them: k~, v~
	score float64
	gain  float64 // what the running micro-batch's weights come to, as the policy asks
}

// head is the cache of one KV head: S, H and z.
type head struct {
	*Layer
	j     int       // which head
	slots []pair    // in position order
	h     []float64 // H [R][Dv]
	z     []float64 // [R]

	followed int // pairs that follow adopted
}

// Cache is the LESS cache of one layer of one sequence.
type Cache struct {
	layer Layer
	heads []head
	next  int // the position that comes next
	first int // the sequence's first
}

// NewCache makes an empty cache. It fails on a layer that makes no sense.
func NewCache(layer Layer) (*Cache, error) {
	if err := layer.check(); err != nil {
		return nil, err
	}
	if layer.Window > 0 {
		layer.Kernels = nil
	}
	c := &Cache{layer: layer, heads: make([]head, layer.HeadsKV)}
	for j := range c.heads {
		c.heads[j] = head{Layer: &c.layer, j: j}
		if w := layer.Kernels; w != nil {
			c.heads[j].h, c.heads[j].z = make([]float64, w.Rank*layer.ValueLength), make([]float64, w.Rank)
		}
	}
	return c, nil
}

// Followed returns how many pairs were kept because the other side had kept them, over the heads: see Step.
func (c *Cache) Followed() int {
	n := 0
	for j := range c.heads {
		n += c.heads[j].followed
	}
	return n
}

// Kept returns the positions that KV head j holds, in order.
func (c *Cache) Kept(j int) []int32 {
	pos := make([]int32, len(c.heads[j].slots))
	for i, p := range c.heads[j].slots {
		pos[i] = int32(p.pos)
	}
	return pos
}

// Step takes a micro-batch of T tokens from position pos on ("A micro-batch of T tokens" in algorithm.md) and returns what its
// queries see. q is [T][Hq][D], k [T][Hkv][D], v [T][Hkv][Dv]; out is [T][Hq][Dv].
//
// kept, if not nil, holds for each KV head the positions that another implementation held after this micro-batch, in any order.
// Where they differ from this cache's own choice by pairs whose scores are within Tie of each other, they are adopted and counted;
// where by more, Step fails with a *ChoiceError. It fails with ErrNotFinite where a fold does. Then the cache is of no more use.
func (c *Cache) Step(pos int, q, k, v []float32, kept [][]int32) (out []float32, err error) {
	outs, err := c.StepShared(pos, [][]float32{q}, k, v, nil, kept)
	if err != nil {
		return nil, err
	}
	return outs[0], nil
}

// StepShared does as Step does for a cache that other layers share: queries has those of the layer itself and then of each sharer,
// and so have the outputs.
func (c *Cache) StepShared(pos int, queries [][]float32, k, v []float32, sharers []Sharer, kept [][]int32) (outs [][]float32, err error) {
	if len(queries) != 1+len(sharers) {
		return nil, fmt.Errorf("reference: queries of %d layers: want %d", len(queries), 1+len(sharers))
	}
	l, q := &c.layer, queries[0]
	n := len(q) / (l.Heads * l.KeyLength)
	switch {
	case n < 1 || len(q) != n*l.Heads*l.KeyLength || len(k) != n*l.HeadsKV*l.KeyLength || len(v) != n*l.HeadsKV*l.ValueLength:
		return nil, fmt.Errorf("reference: q, k, v of %d, %d, %d values: want [T][%d][%d], [T][%d][%d], [T][%d][%d]",
			len(q), len(k), len(v), l.Heads, l.KeyLength, l.HeadsKV, l.KeyLength, l.HeadsKV, l.ValueLength)
	case c.next != c.first && pos != c.next || pos < 0:
		return nil, fmt.Errorf("reference: a micro-batch at position %d: want %d", pos, c.next)
	case kept != nil && len(kept) != l.HeadsKV:
		return nil, fmt.Errorf("reference: kept positions of %d heads: want %d", len(kept), l.HeadsKV)
	}
	asks := make([]ask, len(queries))
	for i, q := range queries {
		layer := *l
		if i > 0 {
			if layer, err = sharers[i-1].layer(l); err != nil {
				return nil, err
			}
			if len(q) != n*layer.Heads*l.KeyLength {
				return nil, fmt.Errorf("reference: a sharer's q of %d values: want [%d][%d][%d]", len(q), n, layer.Heads, l.KeyLength)
			}
		}
		outs = append(outs, make([]float32, n*layer.Heads*l.ValueLength))
		asks[i] = ask{&layer, q, outs[i]}
	}
	if c.next == c.first {
		c.first = pos
	}
	c.next = pos + n

	for j := range c.heads {
		var theirs []int32
		if kept != nil {
			theirs = kept[j]
		}
		if err := c.heads[j].step(pos, n, asks, k, v, theirs, c.first+l.Pinned); err != nil {
			return nil, err
		}
	}
	return outs, nil
}

// ask is what a layer, the cache's own or a sharer, asks of a micro-batch, and where the answers go.
type ask struct {
	*Layer
	q, out []float32
}

// step is StepShared for one KV head; positions below pinned stay.
func (h *head) step(pos, n int, asks []ask, k, v []float32, theirs []int32, pinned int) error {
	held := h.slots
	rotK, rotV := h.Rotations()
	for t := range n {
		i := t*h.HeadsKV + h.j
		held = append(held, pair{
			pos: pos + t,
			k:   slotOf(k[i*h.KeyLength:][:h.KeyLength], h.KeyType, rotK),
			v:   slotOf(v[i*h.ValueLength:][:h.ValueLength], h.ValueType, rotV),
		})
	}

	// 1. attend, every layer, and gather what 2. adds
	logits := make([]float64, len(held))
	for _, a := range asks {
		group := a.Heads / h.HeadsKV
		for t := range n {
			lo, hi := 0, len(held)-n+t+1
			for h.Window > 0 && held[lo].pos <= pos+t-h.Window {
				lo++
			}
			for i := h.j * group; i < (h.j+1)*group; i++ {
				row := t*a.Heads + i
				h.attend(a.Layer, i, a.q[row*h.KeyLength:][:h.KeyLength], held[lo:hi], logits, h.scored() && h.Policy.Counts(t, n), a.out[row*h.ValueLength:][:h.ValueLength])
			}
		}
	}

	// 2. score
	for i := range held {
		if p := &held[i]; h.scored() {
			p.score, p.gain = h.Policy.Score(p.score, p.gain, n), 0
		}
	}

	// 3. evict
	keep := h.choose(held, pinned)
	if theirs != nil {
		if err := h.follow(held, keep, theirs, pinned); err != nil {
			return err
		}
	}

	// 4. fold
	slots := make([]pair, 0, len(held))
	for i, p := range held {
		if keep[i] {
			slots = append(slots, p)
		} else if h.Kernels != nil {
			h.fold(p)
		}
	}
	h.slots = slots
	if !allFinite(h.h) || !allFinite(h.z) {
		return fmt.Errorf("positions %d to %d, KV head %d: %w", pos, pos+n-1, h.j, ErrNotFinite)
	}
	return nil
}

// scored reports whether scores decide what stays.
func (h *head) scored() bool { return h.Window == 0 && h.Policy.Scored() }

// attend computes a(q) of query head i of a layer over the pairs that it sees ("Attention of one query"); if it counts, they gain its
// softmax weights. logits is scratch.
func (h *head) attend(of *Layer, i int, q32 []float32, seen []pair, logits []float64, counts bool, out []float32) {
	q := make([]float64, len(q32))
	for d, x := range q32 {
		q[d] = float64(x)
	}
	top := math.Inf(-1)
	for a := range seen {
		l := of.Scale * dot(q, seen[a].k)
		if of.SoftCap > 0 {
			l = of.SoftCap * math.Tanh(l/of.SoftCap)
		}
		logits[a] = l
		top = max(top, l)
	}

	sum := 0.0
	weights := logits[:len(seen)]
	for a, l := range weights {
		weights[a] = math.Exp(l - top)
		sum += weights[a]
	}
	acc := make([]float64, h.ValueLength)
	addValues(acc, weights, seen)
	for a, w := range weights {
		if share := w / sum; counts && !math.IsNaN(share) { // which counts as 0
			seen[a].gain = h.Policy.Gain(seen[a].gain, share)
		}
	}

	// What else is in the denominator: the low-rank part, as a token with logit low, and a sink, as one without a value.
	low, sink := math.Inf(-1), math.Inf(-1)
	state := make([]float64, h.ValueLength)
	if of.Kernels != nil && of.Kernels.Phi[0] != nil {
		qn := make([]float64, len(q))
		for d, x := range q {
			qn[d] = x * of.Scale * math.Sqrt(float64(h.KeyLength))
		}
		phi := of.Kernels.phi(i, qn)
		if mass := dot(phi, h.z); mass != 0 {
			low = of.Kernels.logit(i, mass)
			for r, x := range phi {
				axpy(state, x/mass, h.h[r*h.ValueLength:][:h.ValueLength])
			}
		}
	}
	if of.Sinks != nil {
		sink = float64(of.Sinks[i])
	}
	m := max(top, low, sink)
	exact, folded := math.Exp(top-m), math.Exp(low-m)
	den := exact*sum + folded + math.Exp(sink-m)
	for d := range out {
		out[d] = float32((exact*acc[d] + folded*state[d]) / den)
	}
}

// fold moves a pair into H and z.
func (h *head) fold(p pair) {
	for r, x := range h.Kernels.psi(h.j, p.k) {
		h.z[r] += x
		axpy(h.h[r*h.ValueLength:][:h.ValueLength], x, p.v)
	}
}

// dot has four sums: one would wait for itself.
func dot(a, b []float64) float64 {
	var s0, s1, s2, s3 float64
	i := 0
	for ; i+4 <= len(a) && i+4 <= len(b); i += 4 {
		x, y := a[i:i+4:i+4], b[i:i+4:i+4]
		s0 += x[0] * y[0]
		s1 += x[1] * y[1]
		s2 += x[2] * y[2]
		s3 += x[3] * y[3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + s2 + s3
}

// addValues adds to y the values of pairs, by weight; four at a time, or it would wait for y.
func addValues(y, weights []float64, pairs []pair) {
	n := len(y)
	a := 0
	for ; a+4 <= len(pairs); a += 4 {
		w, p := weights[a:a+4:a+4], pairs[a:a+4:a+4]
		v0, v1, v2, v3 := p[0].v[:n], p[1].v[:n], p[2].v[:n], p[3].v[:n]
		for d := range y {
			y[d] += w[0]*v0[d] + w[1]*v1[d] + w[2]*v2[d] + w[3]*v3[d]
		}
	}
	for ; a < len(pairs); a++ {
		axpy(y, weights[a], pairs[a].v)
	}
}

// axpy adds a x to y.
func axpy(y []float64, a float64, x []float64) {
	x = x[:len(y)]
	for i := range y {
		y[i] += a * x[i]
	}
}
