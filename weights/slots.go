package weights

import (
	"fmt"
	"slices"

	"github.com/lesskv/lesskv/weights/gguf"
)

// SlotTypes are the types in which the slots of a layer hold keys and values: gguf.F32, F16, Q8_0 or Q4_0. Of a layer without a cache of its
// own they have no meaning.
type SlotTypes struct{ Key, Value gguf.Type }

// CanBeSlots are the types that slots can have, where heads fill their blocks.
var CanBeSlots = []gguf.Type{gguf.F16, gguf.F32, gguf.Q8_0, gguf.Q4_0}

// SameSlotTypes returns the types of so many layers that have the same.
func SameSlotTypes(t SlotTypes, layers int) []SlotTypes { return slices.Repeat([]SlotTypes{t}, layers) }

// slotType is a key that has a type for each layer, the field of a layer that it fills, and how wide the layer's heads are.
type slotType struct {
	key   string
	of    func(*SlotTypes) *gguf.Type
	width func(Shape) int
}

var slotTypes = []slotType{
	{keySlotKeyType, func(t *SlotTypes) *gguf.Type { return &t.Key }, func(s Shape) int { return s.KeyLength }},
	{keySlotValueType, func(t *SlotTypes) *gguf.Type { return &t.Value }, func(s Shape) int { return s.ValueLength }},
}

// value returns what the file has of one.
func (k slotType) value(a *Adapter) []uint32 {
	all := make([]uint32, len(a.SlotTypes))
	for i := range all {
		all[i] = uint32(*k.of(&a.SlotTypes[i]))
	}
	return all
}

// readSlotTypes reads the types of the slots.
func (a *Adapter) readSlotTypes(f *gguf.File) error {
	a.SlotTypes = make([]SlotTypes, a.Layers)
	for _, k := range slotTypes {
		all, err := gguf.GetArray[uint32](f, k.key)
		if err != nil {
			return err
		}
		if len(all) != a.Layers {
			return &Error{File: f.Name, Item: "key " + k.key, Err: ErrValue, Found: fmt.Sprintf("an array of %d", len(all)), Wanted: fmt.Sprintf("one for each of %d layers", a.Layers)}
		}
		for i, t := range all {
			*k.of(&a.SlotTypes[i]) = gguf.Type(t)
		}
	}
	return nil
}

// checkSlotTypes checks the types of the slots.
func (a *Adapter) checkSlotTypes(file string) error {
	if a.SlotTypes != nil && len(a.SlotTypes) != a.Layers {
		return &Error{File: file, Item: "key " + keySlotKeyType, Err: ErrValue, Found: fmt.Sprintf("an array of %d", len(a.SlotTypes)), Wanted: fmt.Sprintf("one for each of %d layers", a.Layers)}
	}
	for i, types := range a.SlotTypes {
		for _, k := range slotTypes {
			t, s := *k.of(&types), a.Layer(i)
			_, fits := t.Size(uint64(k.width(s)))
			if !slices.Contains(CanBeSlots, t) || s.HeadsKV > 0 && !fits {
				return &Error{File: file, Item: fmt.Sprintf("key %s of layer %d", k.key, i), Err: ErrValue, Found: fmt.Sprintf("%v for heads of %d", t, k.width(s)), Wanted: "F32 (0) or F16 (1), or where 32 divides that Q8_0 (8) or Q4_0 (2)"}
			}
		}
	}
	return nil
}
