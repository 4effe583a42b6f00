package kernels

/*
#include "lesskv.h"
*/
import "C"

import (
	"reflect"
	"runtime"
	"unsafe"
)

// A Budget is what one KV head keeps; see struct lesskv_budget.
type Budget struct {
	Slots int // B
	Heavy int // h, at most B
}

// A Layer says what a cache is for; see struct lesskv_layer.
type Layer struct {
	Heads     int      // Hq, a multiple of HeadsKV
	HeadsKV   int      // Hkv
	KeySize   int      // D
	ValueSize int      // Dv
	KeyType   Type     // of the slots' keys
	ValueType Type     // of the slots' values
	Policy    string   // one of PolicyNames; ignored if Window > 0
	Budget    int      // B slots per KV head; ignored if Window > 0
	Heavy     int      // h
	Budgets   []Budget // [Hkv] what each KV head has in the place of these two; nil: all have the same
	Pinned    int      // first positions that are never evicted; at most every h
	Window    int      // > 0: a sliding window of that many tokens, exact, without policy and state
	Kernels   *Kernels // nil: sparse only
	Rotation  int      // > 0: queries and keys come rotated by the Hadamard matrix of so many dimensions, a power of two from 16 on; phi and psi get them rotated back
}

// BudgetOf returns what KV head j keeps.
func (l *Layer) BudgetOf(j int) Budget {
	switch {
	case l.Window > 0:
		return Budget{Slots: l.Window - 1}
	case l.Budgets != nil:
		return l.Budgets[j]
	}
	return Budget{l.Budget, l.Heavy}
}

// A Stats is what a cache has seen; see struct lesskv_stats. Where all KV heads have the same budget, Seen is Kept + Folded.
type Stats struct {
	Seen, Kept, Folded int
	PosMin, PosMax     int
}

// A Cache is one layer of one sequence: slots, scores, positions, H and z, in C memory.
type Cache struct {
	layer   Layer
	c       *C.struct_lesskv_cache
	scratch []byte
}

// fits says whether a layer can attend to a cache: its own, or as a sharer to one whose layer differs in query heads and kernels alone.
func (c *Cache) fits(l *Layer) error {
	a, b := *l, c.layer
	a.Heads, b.Heads, a.Kernels, b.Kernels = 0, 0, nil, nil
	if !reflect.DeepEqual(a, b) || l.Heads < 1 || l.Heads%max(l.HeadsKV, 1) != 0 {
		return argument("a sharer %+v of a cache of %+v: want the same but for query heads and kernels", *l, c.layer)
	}
	if k := l.Kernels; k != nil && l.Window == 0 && (k.c == nil || k.shape.Rank != c.rank()) {
		return argument("a sharer's kernels %+v of a cache of rank %d: want them open, and the rank", k.shape, c.rank())
	}
	return nil
}

// c is the layer as C sees it, whose budgets stay in place as long as pin says.
func (l *Layer) c(pin *runtime.Pinner) (C.struct_lesskv_layer, error) {
	c := C.struct_lesskv_layer{
		n_head: C.int32_t(l.Heads), n_head_kv: C.int32_t(l.HeadsKV),
		dk: C.int32_t(l.KeySize), dv: C.int32_t(l.ValueSize),
		type_k: C.enum_lesskv_type(l.KeyType), type_v: C.enum_lesskv_type(l.ValueType),
		budget: C.struct_lesskv_budget{slots: C.int32_t(l.Budget), heavy: C.int32_t(l.Heavy)}, pinned: C.int32_t(l.Pinned), n_swa: C.int32_t(l.Window),
		rotation: C.int32_t(l.Rotation),
	}
	if l.Window > 0 {
		return c, nil
	}
	if l.Budgets != nil {
		if len(l.Budgets) != l.HeadsKV {
			return c, argument("budgets of %d KV heads, want %d", len(l.Budgets), l.HeadsKV)
		}
		budgets := make([]C.struct_lesskv_budget, l.HeadsKV)
		for j, b := range l.Budgets {
			budgets[j] = C.struct_lesskv_budget{slots: C.int32_t(b.Slots), heavy: C.int32_t(b.Heavy)}
		}
		c.budgets = unsafe.SliceData(budgets)
		pin.Pin(c.budgets)
	}
	policy, err := findPolicy(l.Policy)
	if err != nil {
		return c, err
	}
	c.policy = policy
	if k := l.Kernels; k != nil {
		if k.c == nil {
			return c, argument("the layer's kernels are closed")
		}
		if k.shape.Heads != l.Heads || k.shape.HeadsKV != l.HeadsKV || k.shape.KeySize != l.KeySize {
			return c, argument("kernels for %d query heads, %d KV heads and keys of %d, want %d, %d and %d",
				k.shape.Heads, k.shape.HeadsKV, k.shape.KeySize, l.Heads, l.HeadsKV, l.KeySize)
		}
		c.kernels = k.c
	}
	return c, nil
}

// Bytes returns what a layer's cache holds in slots and in H, z ("Memory, per sequence" in algorithm.md).
func (l Layer) Bytes() (slots, state int, err error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	c, err := l.c(&pin)
	if err != nil {
		return 0, 0, err
	}
	var nSlots, nState C.size_t
	C.lesskv_layer_bytes(&c, &nSlots, &nState)
	return int(nSlots), int(nState), nil
}

// NewCache returns an empty cache, or ErrArgument or ErrNoMemory.
func NewCache(l Layer) (*Cache, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	layer, err := l.c(&pin)
	if err != nil {
		return nil, err
	}
	cache := &Cache{layer: l}
	if err := check(C.lesskv_cache_new(&cache.c, &layer), "new cache of %+v", l); err != nil {
		return nil, err
	}
	return cache, nil
}

// Close frees the C memory; the cache is not to be used afterwards. A second Close does nothing.
func (c *Cache) Close() {
	C.lesskv_cache_free(c.c)
	c.c = nil
}

// Width returns B', the number of slots that the KV head with most can hold.
func (c *Cache) Width() int { return int(C.lesskv_cache_width(c.c)) }

// Clear makes the cache as new.
func (c *Cache) Clear() { C.lesskv_cache_clear(c.c) }

// CopyFrom makes the cache a copy of another one of an equal layer; ErrArgument if it is not equal.
func (c *Cache) CopyFrom(src *Cache) error {
	return check(C.lesskv_cache_copy(c.c, src.c), "copy of a cache of %+v into one of %+v", src.layer, c.layer)
}

// Cut forgets positions >= pos. ErrFolded, and nothing changed, if that can't be done.
func (c *Cache) Cut(pos int) error {
	return check(C.lesskv_cache_cut(c.c, C.int32_t(pos)), "cut at position %d of %d to %d", pos, c.Stats().PosMin, c.Stats().PosMax)
}

// Stats returns what the cache has seen.
func (c *Cache) Stats() Stats {
	var s C.struct_lesskv_stats
	C.lesskv_cache_stats(c.c, &s)
	return Stats{int(s.seen), int(s.kept), int(s.folded), int(s.pos_min), int(s.pos_max)}
}

// Slots returns positions and scores of one KV head's slots, in storage order.
func (c *Cache) Slots(headKV int) (pos []int32, score []float32) {
	pos = make([]int32, c.Width()+1)
	score = make([]float32, len(pos))
	n := C.lesskv_cache_slots(c.c, C.int32_t(headKV), C.int32_t(len(pos)), (*C.int32_t)(&pos[0]), (*C.float)(&score[0]))
	return pos[:n], score[:n]
}

// Save returns the cache as bytes, for Load on a machine of the same byte order.
func (c *Cache) Save() []byte {
	b := make([]byte, C.lesskv_cache_save_size(c.c))
	C.lesskv_cache_save(c.c, unsafe.Pointer(&b[0]))
	return b
}

// Load restores what Save returned, bit for bit. ErrFormat, and nothing changed, if b is anything else than a whole saved
// state of an equal layer.
func (c *Cache) Load(b []byte) error {
	return check(C.lesskv_cache_load(c.c, unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b))), "load %d bytes", len(b))
}
