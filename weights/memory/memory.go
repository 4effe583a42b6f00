// Package memory says what a model's KV cache takes, the one of LESS and the unmodified one, before anything is loaded: the formulas of
// "Memory, per sequence" and "Budgets" in algorithm.md, over what the model's file says. It is pure Go; tests compare it with what the
// runtime reports.
package memory

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// What can be wrong with a Cache.
var (
	ErrType   = errors.New("slots can't be of that type")
	ErrBudget = errors.New("budget makes no sense")
)

// A Cache is a LESS cache as it is asked for.
type Cache struct {
	Context   int                 // tokens, n_ctx
	Budget    Budget              // zero: "Defaults" in algorithm.md
	Policy    string              // "": the adapter's, peak without one
	Pinned    int                 // first positions that always stay: 1 by the runtime's default
	Types     []weights.SlotTypes // of the slots of each layer; nil: SlotTypes
	Adapter   *weights.Adapter    // nil: sparse only, all heads alike
	Sequences int                 // that hold tokens; 0 is 1
}

// Bytes are what a cache takes.
type Bytes struct {
	Budget    int   // slots of a KV head, on average where the adapter spreads them
	Most      []int // by layer, slots of the head with most of them; 0 where it doesn't attend
	Slots     uint64
	State     uint64
	Kernels   uint64 // once, whatever the number of sequences
	Recurrent uint64 // of recurrent layers, which no budget counts
}

// Cache returns what a budget in bytes counts.
func (b Bytes) Cache() uint64 { return b.Slots + b.State + b.Kernels }

// DefaultCheckpoints is how many copies of a LESS cache the runtime keeps unless it is told otherwise.
const DefaultCheckpoints = 2

// Checkpoints returns what n copies of a full cache of a model take, each with a row of logits, but for some headers.
func (b Bytes) Checkpoints(m *weights.Model, n int) uint64 {
	return uint64(n) * (b.Slots + b.State + b.Recurrent + 4*uint64(m.Vocab))
}

// Pad returns a context as the runtime rounds it up.
func Pad(context int) int { return (context + 255) / 256 * 256 }

// Less returns what a LESS cache of a model takes. It fails with ErrType or ErrBudget.
func Less(m *weights.Model, c Cache) (Bytes, error) {
	if c.Sequences == 0 {
		c.Sequences = 1
	}
	l, err := lay(m, c)
	if err != nil {
		return Bytes{}, err
	}
	full, err := Full(m, c.Context, gguf.F16)
	if err != nil {
		return Bytes{}, err
	}
	budget, err := l.resolve(c.Budget, full)
	if err != nil {
		return Bytes{}, err
	}
	if err := c.checkPinned(budget); err != nil {
		return Bytes{}, err
	}
	slots, err := l.slots(budget)
	if err != nil {
		return Bytes{}, err
	}
	n := uint64(c.Sequences)
	most, err := l.most(m, budget)
	return Bytes{budget, most, n * slots, n * l.state, l.kernels, n * m.RecurrentBytes()}, err
}

// Slots returns the slots of a KV head that a cache's budget comes to, on average; where it is in tokens or a share of the context, they may
// be more than the context has. It fails as Less does.
func Slots(m *weights.Model, c Cache) (int, error) {
	if c.Budget.Tokens > 0 || c.Budget.Share > 0 {
		return c.Budget.Slots(c.Context), nil
	}
	bytes, err := Less(m, c)
	return bytes.Budget, err
}

// Full returns what the unmodified cache of a model takes for one sequence, in a type of both keys and values. As apps have it (swa_full),
// layers with a sliding window hold the whole context too. It fails with ErrType.
func Full(m *weights.Model, context int, t gguf.Type) (bytes uint64, err error) {
	for i := range m.Layers {
		if !m.Attends(i) || m.Shares(i) {
			continue
		}
		s := m.Layer(i)
		k, okK := t.Size(uint64(s.HeadsKV * s.KeyLength))
		v, okV := t.Size(uint64(s.HeadsKV * s.ValueLength))
		if !okK || !okV {
			return 0, fmt.Errorf("%d heads of %d and %d in %v: %w", s.HeadsKV, s.KeyLength, s.ValueLength, t, ErrType)
		}
		bytes += uint64(Pad(context)) * (k + v)
	}
	return bytes, nil
}

// layout is the parts of a cache that don't depend on the budget, and what does for each slot.
type layout struct {
	context int
	pinned  int
	weights []float32 // of an allocation, of the heads that have a budget; nil: all alike
	slot    []uint64  // bytes of a slot, of those heads
	layer   []int     // whose they are
	fixed   uint64    // slots of sliding windows
	full    uint64    // bytes of the full f16 cache, of the layers that have a budget
	state   uint64
	kernels uint64
	trained int // the budget that phi and psi were made for; 0: none
}

// madeForBudget reports whether phi and psi were trained under a budget.
func madeForBudget(a *weights.Adapter) bool {
	return a != nil && a.Bytes() > 0 && a.Trained.Heavy+a.Trained.Recent > 0
}

// SlotBytes returns what one pair takes in a head of a layer, with its score and position. It fails with ErrType.
func SlotBytes(s weights.Shape, t weights.SlotTypes) (uint64, error) {
	key, value := t.Key, t.Value
	for _, t := range []gguf.Type{key, value} {
		if !slices.Contains(weights.CanBeSlots, t) {
			return 0, fmt.Errorf("%v: want F16, F32, Q8_0 or Q4_0: %w", t, ErrType)
		}
	}
	k, okK := key.Size(uint64(s.KeyLength))
	v, okV := value.Size(uint64(s.ValueLength))
	if !okK || !okV {
		return 0, fmt.Errorf("%v and %v need head sizes that are multiples of 32, these are %d and %d: use F16: %w", key, value, s.KeyLength, s.ValueLength, ErrType)
	}
	return k + v + 8, nil
}

// SlotOfEach returns what one pair takes in each KV head that has a budget, together. It fails with ErrType.
func SlotOfEach(m *weights.Model, types []weights.SlotTypes) (all uint64, err error) {
	for i := range m.Layers {
		if !m.HasBudget(i) {
			continue
		}
		s := m.Layer(i)
		bytes, err := SlotBytes(s, types[i])
		if err != nil {
			return 0, fmt.Errorf("layer %d: %w", i, err)
		}
		all += uint64(s.HeadsKV) * bytes
	}
	return all, nil
}

// SlotTypes returns the types of each layer's slots where none are given: an adapter's, without those Q8_0, or F16 where heads do not fill
// its blocks.
func SlotTypes(m *weights.Model, a *weights.Adapter) []weights.SlotTypes {
	if a != nil && len(a.SlotTypes) == m.Layers { // of another model's there is no use
		return a.SlotTypes
	}
	t := weights.SlotTypes{Key: gguf.Q8_0, Value: gguf.Q8_0}
	for i := range m.Layers {
		s := m.Layer(i)
		if _, ok := gguf.Q8_0.Size(uint64(s.KeyLength)); m.Attends(i) && !ok {
			t.Key = gguf.F16
		}
		if _, ok := gguf.Q8_0.Size(uint64(s.ValueLength)); m.Attends(i) && !ok {
			t.Value = gguf.F16
		}
	}
	return weights.SameSlotTypes(t, m.Layers)
}

func lay(m *weights.Model, c Cache) (*layout, error) {
	l := &layout{context: Pad(c.Context), pinned: c.Pinned}
	a := c.Adapter
	if madeForBudget(a) {
		l.trained = a.Trained.Heavy + a.Trained.Recent
	}
	if a != nil {
		l.kernels = a.Bytes()
	}
	types := c.Types
	if types == nil {
		types = SlotTypes(m, a)
	}
	head := 0 // in the adapter's list of weights, which has every KV head
	for i := range m.Layers {
		s := m.Layer(i)
		first := head
		head += s.HeadsKV
		if !m.Attends(i) {
			continue
		}
		slot, err := SlotBytes(s, types[m.Owner(i)])
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		window := m.Window(i)
		if a != nil && window == 0 && a.Kernels[i].HasPsi() && !m.Shares(i) {
			l.state += uint64(4 * s.HeadsKV * a.Kernels[i].Rank * (s.ValueLength + 1))
		}
		switch {
		case m.Shares(i):
		case window > 0:
			l.fixed += uint64(s.HeadsKV*(window-1)) * slot
		default:
			l.full += uint64(l.context * s.HeadsKV * 2 * (s.KeyLength + s.ValueLength))
			for j := range s.HeadsKV {
				l.slot, l.layer = append(l.slot, slot), append(l.layer, i)
				if a != nil && a.Budget != nil {
					l.weights = append(l.weights, a.Budget[first+j])
				}
			}
		}
	}
	return l, nil
}

// slots returns the bytes of all slots under a budget.
func (l *layout) slots(budget int) (uint64, error) {
	bytes := l.fixed
	each, err := l.each(budget)
	for i, n := range each {
		bytes += uint64(n) * l.slot[i]
	}
	return bytes, err
}

// most returns the slots of the head with most of them, by layer.
func (l *layout) most(m *weights.Model, budget int) ([]int, error) {
	most := make([]int, m.Layers)
	each, err := l.each(budget)
	for i, n := range each {
		most[l.layer[i]] = max(most[l.layer[i]], n)
	}
	for i := range most {
		if m.Attends(i) && m.Window(i) > 0 {
			most[i] = m.Window(i) - 1
		}
	}
	for i := range most {
		if m.Attends(i) {
			most[i] = most[m.Owner(i)]
		}
	}
	return most, err
}

// each returns the slots of every head that has a budget.
func (l *layout) each(budget int) ([]int, error) {
	if l.weights != nil {
		return Allocate(l.weights, budget, min(budget, max(l.pinned, 4)+4), l.context)
	}
	all := make([]int, len(l.slot))
	for i := range all {
		all[i] = budget
	}
	return all, nil
}
