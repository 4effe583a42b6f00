package weights

import (
	"fmt"

	"github.com/lesskv/lesskv/weights/gguf"
)

// kernelSize is a key of the size of phi and psi, and the field of a layer that it fills.
type kernelSize struct {
	key string
	of  func(*Kernels) *int
}

var kernelSizes = []kernelSize{
	{keyRank, func(k *Kernels) *int { return &k.Rank }},
	{keyHidden, func(k *Kernels) *int { return &k.Hidden }},
}

// check refuses what can be no size: of a layer that has neither phi nor psi, any but 0.
func (s kernelSize) check(file, of string, n int64, has bool) error {
	e := &Error{File: file, Item: "key " + s.key + of, Err: ErrValue, Found: fmt.Sprint(n)}
	switch {
	case has && (n < 1 || n > int64(MaxSize)):
		e.Wanted = fmt.Sprintf("1 to %d", MaxSize)
	case !has && n != 0:
		e.Wanted = "0: the layer has neither phi nor psi"
	default:
		return nil
	}
	return e
}

// readSizes reads the rank and the hidden size of every layer: a number for all that have phi or psi or, from version 3 on, one for each layer.
func (a *Adapter) readSizes(f *gguf.File) error {
	version, err := gguf.Get[uint32](f, keyVersion)
	if err != nil {
		return err
	}
	a.Kernels = make([]Kernels, a.Layers)
	for _, s := range kernelSizes {
		if _, _, err := f.ArrayLen(s.key); err == nil && version >= 3 {
			all, err := gguf.GetArray[uint32](f, s.key)
			if err != nil {
				return err
			}
			if len(all) != a.Layers {
				return &Error{File: f.Name, Item: "key " + s.key, Err: ErrValue, Found: fmt.Sprintf("an array of %d", len(all)), Wanted: fmt.Sprintf("one for each of %d layers", a.Layers)}
			}
			for i, n := range all {
				if err := s.check(f.Name, ofLayer(i), int64(n), a.hasTensor(f, i, version)); err != nil {
					return err
				}
				*s.of(&a.Kernels[i]) = int(n)
			}
			continue
		}
		n, err := gguf.Get[uint32](f, s.key)
		if err != nil {
			return err
		}
		if err := s.check(f.Name, "", int64(n), true); err != nil {
			return err
		}
		for i := range a.Kernels {
			if a.hasTensor(f, i, version) {
				*s.of(&a.Kernels[i]) = int(n)
			}
		}
	}
	return nil
}

func ofLayer(i int) string { return fmt.Sprintf(" of layer %d", i) }

// hasTensor reports whether a file has one of a layer's tensors.
func (a *Adapter) hasTensor(f *gguf.File, layer int, version uint32) bool {
	for _, p := range a.parts(layer) {
		if _, ok := f.Tensor(p.name(layer)); ok && a.knows(layer, p, version) {
			return true
		}
	}
	return false
}

// checkSizes checks what a layer is to be written with.
func (a *Adapter) checkSizes(file string, layer int) error {
	k := &a.Kernels[layer]
	for _, s := range kernelSizes {
		if err := s.check(file, ofLayer(layer), int64(*s.of(k)), !k.Empty()); err != nil {
			return err
		}
	}
	return nil
}

// common returns the size that all layers with phi or psi have, 1 where there is none; false: they differ.
func (s kernelSize) common(a *Adapter) (size int, alike bool) {
	for i := range a.Kernels {
		k := &a.Kernels[i]
		if k.Empty() {
			continue
		}
		if n := *s.of(k); size == 0 {
			size = n
		} else if n != size {
			return 0, false
		}
	}
	return max(size, 1), true
}

// value returns what the file has: a u32 or, where layers differ, an array.
func (s kernelSize) value(a *Adapter) any {
	if n, alike := s.common(a); alike {
		return uint32(n)
	}
	all := make([]uint32, len(a.Kernels))
	for i := range all {
		all[i] = uint32(*s.of(&a.Kernels[i]))
	}
	return all
}
