package kernels

/*
#include <stdlib.h>
#include "lesskv.h"
*/
import "C"

import "unsafe"

// A Mat is a stack of matrices, one a head: [heads][out][in], in fastest, no gaps.
type Mat struct {
	Type Type
	Data []byte
}

// A Shape is the geometry that the kernels of a layer are made for.
type Shape struct {
	Heads   int // Hq
	HeadsKV int // Hkv
	KeySize int // D
	Rank    int // R
	Hidden  int // R'
}

// Kernels are the trained functions of one layer ("phi and psi" in algorithm.md), in C memory. The caches made with them must
// be closed first.
type Kernels struct {
	shape Shape
	c     *C.struct_lesskv_kernels // and the matrices behind it
}

// NewKernels copies the matrices. phi: [Hq][R'][D], [Hq][R][R']; psi: [Hkv][R'][D], [Hkv][R][R'], [Hkv][R][R]. A sharer has no psi,
// all of its matrices empty; a layer whose own queries read the slots alone has no phi. scale is what each query head adds to
// log(phi z), [Hq]; nil: 0.
func NewKernels(s Shape, phi [2]Mat, psi [3]Mat, scale []float32) (*Kernels, error) {
	if s.Heads <= 0 || s.HeadsKV <= 0 || s.KeySize <= 0 || s.Rank <= 0 || s.Hidden <= 0 {
		return nil, argument("kernels of %+v: every size must be positive", s)
	}
	mats := []struct {
		name           string
		heads, out, in int
		mat            Mat
	}{
		{"phi 0", s.Heads, s.Hidden, s.KeySize, phi[0]},
		{"phi 1", s.Heads, s.Rank, s.Hidden, phi[1]},
		{"psi 0", s.HeadsKV, s.Hidden, s.KeySize, psi[0]},
		{"psi 1", s.HeadsKV, s.Rank, s.Hidden, psi[1]},
		{"psi 2", s.HeadsKV, s.Rank, s.Rank, psi[2]},
	}
	head := int(unsafe.Sizeof(C.struct_lesskv_kernels{}))
	size := head
	hasPhi, hasPsi := phi[0].Data != nil || phi[1].Data != nil, psi[0].Data != nil || psi[1].Data != nil || psi[2].Data != nil
	if !hasPhi && !hasPsi {
		return nil, argument("kernels without phi and psi")
	}
	for i, m := range mats {
		if i < 2 && !hasPhi || i >= 2 && !hasPsi {
			continue
		}
		row := m.mat.Type.RowSize(m.in)
		if row == 0 {
			return nil, argument("%s: rows of %d elements can't be %v", m.name, m.in, m.mat.Type)
		}
		if want := m.heads * m.out * row; len(m.mat.Data) != want {
			return nil, argument("%s: %d bytes, want %d for [%d][%d][%d] in %v",
				m.name, len(m.mat.Data), want, m.heads, m.out, m.in, m.mat.Type)
		}
		size += len(m.mat.Data)
	}
	if scale != nil && (!hasPhi || len(scale) != s.Heads) {
		return nil, argument("%d scales of phi: want none or, beside phi, one for each of %d query heads", len(scale), s.Heads)
	}
	scaleAt := (size + 3) / 4 * 4
	size = scaleAt + 4*len(scale)
	p := C.malloc(C.size_t(size))
	if p == nil {
		return nil, check(C.LESSKV_ERR_NOMEM, "kernels of %d bytes", size)
	}
	c := (*C.struct_lesskv_kernels)(p)
	*c = C.struct_lesskv_kernels{rank: C.int32_t(s.Rank), hidden: C.int32_t(s.Hidden)}
	at := head
	for i, m := range mats {
		if m.mat.Data == nil {
			continue
		}
		to := unsafe.Add(p, at)
		at += copy(unsafe.Slice((*byte)(to), len(m.mat.Data)), m.mat.Data)
		cm := C.struct_lesskv_mat{_type: C.enum_lesskv_type(m.mat.Type), data: to}
		if i < 2 {
			c.phi[i] = cm
		} else {
			c.psi[i-2] = cm
		}
	}
	if scale != nil {
		c.phi_scale = (*C.float)(unsafe.Add(p, scaleAt))
		copy(unsafe.Slice((*float32)(unsafe.Pointer(c.phi_scale)), len(scale)), scale)
	}
	return &Kernels{shape: s, c: c}, nil
}

// Close frees the C memory. A second Close does nothing.
func (k *Kernels) Close() {
	C.free(unsafe.Pointer(k.c))
	k.c = nil
}

// Shape returns what NewKernels was given.
func (k *Kernels) Shape() Shape { return k.shape }

// Phi returns phi of the n query vectors of a query head, x being [n][D] and already scaled (qn in algorithm.md): [n][R].
func (k *Kernels) Phi(head int, x []float32) ([]float32, error) {
	if head < 0 || head >= k.shape.Heads || k.c != nil && k.c.phi[0].data == nil {
		return nil, argument("phi: query head %d of %d", head, k.shape.Heads)
	}
	return k.apply(x, func(x, out, tmp *C.float, n C.int32_t) {
		C.lesskv_phi(k.c, C.int32_t(k.shape.KeySize), C.int32_t(head), x, n, out, tmp)
	})
}

// Psi returns psi of n keys of a KV head, x being [n][D]: [n][R].
func (k *Kernels) Psi(head int, x []float32) ([]float32, error) {
	if head < 0 || head >= k.shape.HeadsKV || k.c != nil && k.c.psi[0].data == nil {
		return nil, argument("psi: KV head %d of %d", head, k.shape.HeadsKV)
	}
	return k.apply(x, func(x, out, tmp *C.float, n C.int32_t) {
		C.lesskv_psi(k.c, C.int32_t(k.shape.KeySize), C.int32_t(head), x, n, out, tmp)
	})
}

func (k *Kernels) apply(x []float32, f func(x, out, tmp *C.float, n C.int32_t)) ([]float32, error) {
	n := len(x) / k.shape.KeySize
	if k.c == nil || len(x)%k.shape.KeySize != 0 {
		return nil, argument("%d floats for vectors of %d (closed: %t)", len(x), k.shape.KeySize, k.c == nil)
	}
	if n == 0 {
		return nil, nil
	}
	out := make([]float32, n*k.shape.Rank)
	tmp := make([]float32, k.shape.Hidden+2*k.shape.Rank)
	f((*C.float)(&x[0]), (*C.float)(&out[0]), (*C.float)(&tmp[0]), C.int32_t(n))
	return out, nil
}
