package kernels

/*
#include "lesskv.h"
*/
import "C"

import (
	"runtime"
	"slices"
	"sync"
	"unsafe"
)

// A Ubatch is a micro-batch: T tokens of one sequence at consecutive positions, in one layer. Strides are in bytes, from
// head to head and from token to token; where both are 0 there are no gaps.
type Ubatch struct {
	Tokens int // T
	Pos    int // position of the first

	Q             []float32 // [T][Hq][D]
	QHead, QToken int
	K             []byte // [T][Hkv][D] in the layer's KeyType
	KHead, KToken int
	V             []byte // [T][Hkv][Dv] in the layer's ValueType
	VHead, VToken int

	Scale   float32   // s
	SoftCap float32   // 0: none
	Sinks   []float32 // [Hq] or nil
	Out     []float32 // [T][Hq][Dv]: what Attend writes

	Layer *Layer    // nil, or the sharer that the queries are of: see Gather
	Worth []float32 // nil, or WorthSize floats: see Gather
}

// extent sets strides that were left out and returns the bytes that lie between the first and the last element.
func extent(head, token *int, row, heads, tokens int) int {
	if *head == 0 && *token == 0 {
		*head, *token = row, row*heads
	}
	if *head < 0 || *token < 0 {
		return -1
	}
	return (heads-1)**head + (tokens-1)**token + row
}

// with calls f with the C form of the micro-batch; the Go memory stays where it is until f returns.
func (c *Cache) with(u *Ubatch, f func(*C.struct_lesskv_ubatch)) error {
	l := c.asking(u)
	if c.c == nil {
		return argument("the cache is closed")
	}
	if err := c.fits(l); err != nil {
		return err
	}
	if u.Tokens <= 0 || u.Pos < 0 || u.Pos+u.Tokens > 1<<31-1 {
		return argument("a micro-batch of %d tokens at position %d", u.Tokens, u.Pos)
	}
	qHead, qToken, kHead, kToken, vHead, vToken := u.QHead, u.QToken, u.KHead, u.KToken, u.VHead, u.VToken
	for _, a := range []struct {
		name       string
		want, have int
	}{
		{"q", extent(&qHead, &qToken, 4*l.KeySize, l.Heads, u.Tokens), 4 * len(u.Q)},
		{"k", extent(&kHead, &kToken, l.KeyType.RowSize(l.KeySize), l.HeadsKV, u.Tokens), len(u.K)},
		{"v", extent(&vHead, &vToken, l.ValueType.RowSize(l.ValueSize), l.HeadsKV, u.Tokens), len(u.V)},
		{"out", 4 * u.Tokens * l.Heads * l.ValueSize, 4 * len(u.Out)},
	} {
		if a.want < 0 || a.have < a.want {
			return argument("%s of a micro-batch of %d tokens: %d bytes, want %d", a.name, u.Tokens, a.have, a.want)
		}
	}
	if u.Sinks != nil && len(u.Sinks) != l.Heads {
		return argument("%d sinks, want one for each of %d query heads", len(u.Sinks), l.Heads)
	}

	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&u.Q[0])
	pin.Pin(&u.K[0])
	pin.Pin(&u.V[0])
	pin.Pin(&u.Out[0])
	ub := C.struct_lesskv_ubatch{
		n_tokens: C.int32_t(u.Tokens), pos: C.int32_t(u.Pos),
		q: unsafe.Pointer(&u.Q[0]), q_head: C.size_t(qHead), q_token: C.size_t(qToken),
		k: unsafe.Pointer(&u.K[0]), k_head: C.size_t(kHead), k_token: C.size_t(kToken),
		v: unsafe.Pointer(&u.V[0]), v_head: C.size_t(vHead), v_token: C.size_t(vToken),
		scale: C.float(u.Scale), soft_cap: C.float(u.SoftCap), out: (*C.float)(&u.Out[0]),
	}
	var layer C.struct_lesskv_layer
	if u.Layer != nil {
		var err error
		if layer, err = l.c(&pin); err != nil {
			return err
		}
		pin.Pin(&layer)
		ub.layer = &layer
	}
	if u.Worth != nil {
		if want := c.layer.WorthSize(u.Tokens); len(u.Worth) < want {
			return argument("the worth of %d pairs, want %d", len(u.Worth), want)
		}
		pin.Pin(&u.Worth[0])
		ub.worth = (*C.float)(&u.Worth[0])
	}
	if u.Sinks != nil {
		pin.Pin(&u.Sinks[0])
		ub.sinks = (*C.float)(&u.Sinks[0])
	}
	f(&ub)
	return nil
}

// ScratchSize returns the bytes that a micro-batch of up to tokens, served by up to threads, needs.
func (l Layer) ScratchSize(tokens, threads int) (int, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	c, err := l.c(&pin)
	if err != nil {
		return 0, err
	}
	return int(C.lesskv_scratch_size(&c, C.int32_t(tokens), C.int(threads))), nil
}

// asking returns the layer whose queries a micro-batch has.
func (c *Cache) asking(u *Ubatch) *Layer {
	if u.Layer != nil {
		return u.Layer
	}
	return &c.layer
}

// WorthSize returns the floats that Gather needs for micro-batches of up to so many tokens; 0 if there is nothing to gather.
func (l Layer) WorthSize(tokens int) int {
	var pin runtime.Pinner
	defer pin.Unpin()
	c, err := l.c(&pin)
	if err != nil {
		return 0
	}
	return int(C.lesskv_worth_size(&c, C.int32_t(tokens)))
}

// Attend computes attention over slots, micro-batch and low-rank state into u.Out, in as many goroutines as threads says
// (steps 1 and 2 of "A micro-batch" in algorithm.md). The result does not depend on their number. ErrArgument if an array
// of u is too short.
func (c *Cache) Attend(u *Ubatch, threads int) error {
	size, err := c.asking(u).ScratchSize(u.Tokens, threads)
	if err != nil {
		return err
	}
	if len(c.scratch) < size {
		c.scratch = make([]byte, size)
	}
	return c.AttendWith(u, c.scratch, threads, threads)
}

// Commit scores, evicts and folds (steps 2 to 4). u and threads are those of the Attend before it.
func (c *Cache) Commit(u *Ubatch, threads int) error {
	return c.CommitWith(u, c.scratch, threads, threads)
}

// AttendWith is Attend with a scratch of one's own, made for planned threads and used by nth.
func (c *Cache) AttendWith(u *Ubatch, scratch []byte, planned, nth int) error {
	return c.each(u, scratch, planned, nth, func(ub *C.struct_lesskv_ubatch, ith C.int) C.enum_lesskv_status {
		C.lesskv_attend(c.c, ub, unsafe.Pointer(&scratch[0]), C.int(planned), ith, C.int(nth))
		return C.LESSKV_OK
	})
}

// GatherWith takes what the AttendWith before it left in the scratch into u.Worth, which the commit then reads, so that other layers
// can attend in between: sharers of this cache, which u.Layer names, each with a GatherWith of its own. See lesskv_gather.
func (c *Cache) GatherWith(u *Ubatch, scratch []byte, planned, nth int) error {
	if want := c.layer.WorthSize(u.Tokens); want > 0 && u.Worth == nil {
		return argument("no room for what %d pairs are worth", want)
	}
	return c.each(u, scratch, planned, nth, func(ub *C.struct_lesskv_ubatch, ith C.int) C.enum_lesskv_status {
		C.lesskv_gather(c.c, ub, unsafe.Pointer(&scratch[0]), C.int(planned), ith, C.int(nth))
		return C.LESSKV_OK
	})
}

// CommitWith is Commit with the scratch of the AttendWith before it.
func (c *Cache) CommitWith(u *Ubatch, scratch []byte, planned, nth int) error {
	return c.each(u, scratch, planned, nth, func(ub *C.struct_lesskv_ubatch, ith C.int) C.enum_lesskv_status {
		return C.lesskv_commit(c.c, ub, unsafe.Pointer(&scratch[0]), C.int(planned), ith, C.int(nth))
	})
}

func (c *Cache) each(u *Ubatch, scratch []byte, planned, nth int, f func(ub *C.struct_lesskv_ubatch, ith C.int) C.enum_lesskv_status) error {
	if planned <= 0 || nth <= 0 {
		return argument("%d threads of %d planned", nth, planned)
	}
	if want, err := c.asking(u).ScratchSize(u.Tokens, planned); err != nil || len(scratch) < want {
		return argument("a scratch of %d bytes, want %d", len(scratch), want)
	}
	status := make([]C.enum_lesskv_status, nth)
	err := c.with(u, func(ub *C.struct_lesskv_ubatch) {
		var group sync.WaitGroup
		for ith := range nth {
			group.Add(1)
			go func() {
				defer group.Done()
				status[ith] = f(ub, C.int(ith))
			}()
		}
		group.Wait()
	})
	if err != nil {
		return err
	}
	return check(slices.Max(status), "%d tokens at position %d", u.Tokens, u.Pos)
}

// AttendRef is Attend in simple loops. It also returns what each pair was worth to the queries, [Hkv][B' + T], for CommitRef.
func (c *Cache) AttendRef(u *Ubatch) (worth []float64, err error) {
	worth = make([]float64, c.layer.HeadsKV*(c.Width()+max(u.Tokens, 0)))
	if err := c.ShareRef(u, worth); err != nil {
		return nil, err
	}
	return worth, nil
}

// ShareRef is AttendRef for a sharer, u.Layer, that adds to what pairs were worth to the layers before it.
func (c *Cache) ShareRef(u *Ubatch, worth []float64) error {
	if want := c.layer.HeadsKV * (c.Width() + max(u.Tokens, 0)); len(worth) != want {
		return argument("the worth of %d pairs, want %d", len(worth), want)
	}
	var status C.enum_lesskv_status
	err := c.with(u, func(ub *C.struct_lesskv_ubatch) {
		status = C.lesskv_attend_ref(c.c, ub, (*C.double)(&worth[0]))
	})
	if err != nil {
		return err
	}
	return check(status, "reference attention")
}

// CommitRef is Commit in simple loops, with what AttendRef returned. sums, nil or [Hkv][R][Dv + 1], are H and z in double
// precision, kept from an empty cache on.
func (c *Cache) CommitRef(u *Ubatch, worth, sums []float64) error {
	if want := c.layer.HeadsKV * (c.Width() + u.Tokens); len(worth) != want {
		return argument("the worth of %d pairs, want %d", len(worth), want)
	}
	if want := c.layer.HeadsKV * c.rank() * (c.layer.ValueSize + 1); sums != nil && len(sums) != want {
		return argument("%d sums, want %d", len(sums), want)
	}
	var status C.enum_lesskv_status
	err := c.with(u, func(ub *C.struct_lesskv_ubatch) {
		status = C.lesskv_commit_ref(c.c, ub, (*C.double)(&worth[0]), (*C.double)(unsafe.SliceData(sums)))
	})
	if err != nil {
		return err
	}
	return check(status, "reference commit")
}

func (c *Cache) rank() int {
	if c.layer.Kernels == nil || c.layer.Window > 0 {
		return 0
	}
	return c.layer.Kernels.shape.Rank
}
