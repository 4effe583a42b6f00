package worker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// slotTypes are the types that slots can have, by name.
var slotTypes = func() map[string]gguf.Type {
	all := map[string]gguf.Type{}
	for _, t := range weights.CanBeSlots {
		all[typeName(t)] = t
	}
	return all
}()

func typeName(t gguf.Type) string { return strings.ToLower(t.String()) }

// SlotTypes reads the types of keys and values as TypeK and TypeV: "f16" of both, or "q4_0,q8_0" of one each. Layers that have others
// follow: "q8_0,0.k=q4_0,5.v=q4_0,7-9=f16" is q8_0, but for the keys of layer 0, the values of layer 5, and both of layers 7 to 9.
func SlotTypes(s string) (k, v string, err error) {
	parts := strings.Split(s, ",")
	n := slices.IndexFunc(parts, func(p string) bool { return strings.Contains(p, "=") })
	if n < 0 {
		n = len(parts)
	}
	fail := func() (string, string, error) {
		return "", "", fmt.Errorf("slots of type %q: want f16, f32, q8_0 or q4_0, or one for keys and one for values (q4_0,q8_0); behind that layers with others, as 0.k=q4_0,5.v=q4_0,7-9=f16", s)
	}
	known := func(t string) bool { _, ok := slotTypes[t]; return ok }
	if n < 1 || n > 2 || !known(parts[0]) || !known(parts[n-1]) {
		return fail()
	}
	k, v = parts[0], parts[n-1]
	for _, p := range parts[n:] {
		layers, t, _ := strings.Cut(p, "=")
		layers, onlyK := strings.CutSuffix(layers, ".k")
		layers, onlyV := strings.CutSuffix(layers, ".v")
		if onlyK && onlyV || !known(t) {
			return fail()
		}
		named, err := weights.ParseLayers(layers)
		if err != nil {
			return "", "", fmt.Errorf("slots of type %q: %w", s, err)
		}
		for _, layer := range named {
			other := fmt.Sprintf(",%d=%s", layer, t)
			if !onlyV {
				k += other
			}
			if !onlyK {
				v += other
			}
		}
	}
	return k, v, nil
}

// GGUFTypes is SlotTypes of types that are the same in all layers, as files have them.
func GGUFTypes(s string) (k, v gguf.Type, err error) {
	key, value, err := SlotTypes(s)
	if err == nil && strings.Contains(s, "=") {
		err = fmt.Errorf("slots of type %q: want the same in all layers", s)
	}
	return slotTypes[key], slotTypes[value], err
}

// LayerTypes returns the types of so many layers that TypeK and TypeV name, as files have them.
func LayerTypes(k, v string, layers int) ([]weights.SlotTypes, error) {
	keys, err := layerTypes(k, layers)
	if err != nil {
		return nil, err
	}
	values, err := layerTypes(v, layers)
	if err != nil {
		return nil, err
	}
	all := make([]weights.SlotTypes, layers)
	for i := range all {
		all[i] = weights.SlotTypes{Key: keys[i], Value: values[i]}
	}
	return all, nil
}

func layerTypes(text string, layers int) ([]gguf.Type, error) {
	most, others, _ := strings.Cut(text, ",")
	all := slices.Repeat([]gguf.Type{slotTypes[most]}, layers)
	for other := range strings.SplitSeq(others, ",") {
		layer, t, ok := strings.Cut(other, "=")
		i, _ := strconv.Atoi(layer) // SlotTypes has seen to it
		switch {
		case ok && i < layers:
			all[i] = slotTypes[t]
		case ok:
			return nil, fmt.Errorf("slots of type %q in layer %d: the model has %d, counted from 0", t, i, layers)
		}
	}
	return all, nil
}

// ModelTypes reads the types of so many layers, as SlotTypes reads them.
func ModelTypes(s string, layers int) ([]weights.SlotTypes, error) {
	k, v, err := SlotTypes(s)
	if err != nil {
		return nil, err
	}
	return LayerTypes(k, v, layers)
}

// FormatTypes writes types of layers as SlotTypes reads them: those of most layers, and then the others.
func FormatTypes(all []weights.SlotTypes) string {
	most := func(of func(weights.SlotTypes) gguf.Type) gguf.Type {
		count := map[gguf.Type]int{}
		for _, l := range all {
			count[of(l)]++
		}
		return slices.MaxFunc(slices.Sorted(maps.Keys(count)), func(a, b gguf.Type) int { return cmp.Compare(count[a], count[b]) })
	}
	k, v := most(func(l weights.SlotTypes) gguf.Type { return l.Key }), most(func(l weights.SlotTypes) gguf.Type { return l.Value })
	text := typeName(k)
	if k != v {
		text += "," + typeName(v)
	}
	for i, l := range all {
		switch {
		case l.Key != k && l.Value != v && l.Key == l.Value:
			text += fmt.Sprintf(",%d=%s", i, typeName(l.Key))
			continue
		case l.Key != k:
			text += fmt.Sprintf(",%d.k=%s", i, typeName(l.Key))
		}
		if l.Value != v {
			text += fmt.Sprintf(",%d.v=%s", i, typeName(l.Value))
		}
	}
	return text
}

// DefaultSlots returns the types of a model's slots where none are given, as SlotTypes reads them: those of an adapter, if it has some.
func DefaultSlots(m *weights.Model, a *weights.Adapter) string {
	return FormatTypes(memory.SlotTypes(m, a))
}
