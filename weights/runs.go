package weights

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// runs returns the first and the last of each run of layers that follow each other, of layers that ascend.
func runs(layers []int) (all [][2]int) {
	for i, layer := range layers {
		if i == 0 || layer != layers[i-1]+1 {
			all = append(all, [2]int{layer, layer})
		}
		all[len(all)-1][1] = layer
	}
	return all
}

// FormatLayers writes layers, ascending, as "0-3,5".
func FormatLayers(layers []int) string {
	var parts []string
	for _, r := range runs(layers) {
		part := strconv.Itoa(r[0])
		if r[1] > r[0] {
			part += "-" + strconv.Itoa(r[1])
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ",")
}

// ParseLayers reads what FormatLayers writes, in any order. It returns the layers ascending, each once. It fails with ErrValue.
func ParseLayers(text string) (layers []int, err error) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, both := strings.Cut(part, "-")
		if !both {
			last = first
		}
		from, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 31)
		to, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 31)
		switch {
		case err1 != nil || err2 != nil || from > to:
			return nil, fmt.Errorf("layers %q: want numbers or ranges, such as 0-3,5: %w", text, ErrValue)
		case to >= MaxLayers:
			return nil, fmt.Errorf("layer %d: a model has %d layers at most, counted from 0: %w", to, MaxLayers, ErrValue)
		}
		for layer := from; layer <= to; layer++ {
			layers = append(layers, int(layer))
		}
	}
	slices.Sort(layers)
	return slices.Compact(layers), nil
}
