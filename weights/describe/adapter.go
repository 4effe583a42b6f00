package describe

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/weights"
)

// Kernels counts the layers that have phi and psi, and names the types of their matrices, but for those that are always F32.
func Kernels(a *weights.Adapter) (phi, psi int, types []string) {
	seen := map[string]bool{}
	for i := range a.Kernels {
		k := &a.Kernels[i]
		if k.HasPhi() {
			phi++
		}
		if k.HasPsi() {
			psi++
		}
		for _, m := range []weights.Matrix{k.Phi[0], k.Phi[1], k.Psi[0], k.Psi[1]} {
			if len(m.Values) > 0 {
				seen[m.Type.String()] = true
			}
		}
	}
	return phi, psi, slices.Sorted(maps.Keys(seen))
}

// Sizes says how large phi and psi are: "rank 8, hidden size 4" or, where layers differ, "rank 8, hidden size 8 in layer 0; rank 4, hidden size 4 in
// layers 1-5".
func Sizes(a *weights.Adapter) string {
	sizes := group(len(a.Kernels), func(i int) string {
		k := &a.Kernels[i]
		if k.Empty() {
			return ""
		}
		return fmt.Sprintf("rank %d, hidden size %d", k.Rank, k.Hidden)
	})
	if len(sizes) == 1 {
		return sizes[0].text
	}
	var parts []string
	for _, s := range sizes {
		parts = append(parts, s.text+" in "+s.layers)
	}
	return strings.Join(parts, "; ")
}

// Ranks says which ranks layers have, "rank 8" or, where they differ, "rank 4 to 8"; 0 is a layer without phi and psi.
func Ranks(ranks []int) string {
	least, most := 0, 0
	for _, r := range ranks {
		if most = max(most, r); r > 0 && (r < least || least == 0) {
			least = r
		}
	}
	if least < most {
		return fmt.Sprintf("rank %d to %d", least, most)
	}
	return fmt.Sprintf("rank %d", most)
}

// Scales returns what query heads add to the logit of the low-rank part.
func Scales(a *weights.Adapter) (scales []float32) {
	for i := range a.Kernels {
		scales = append(scales, a.Kernels[i].Scale.Values...)
	}
	return scales
}

// Allocation says by layer how an adapter spreads the slots above the least of a head, in per cent; "-" is a layer without a budget.
func Allocation(a *weights.Adapter) (parts []string) {
	var sum float64
	for _, w := range a.Budget {
		sum += float64(w)
	}
	head := 0
	for i := range a.Layers {
		n := a.Layer(i).HeadsKV
		var layer float64
		for _, w := range a.Budget[head : head+n] {
			layer += float64(w)
		}
		head += n
		if n > 0 && sum > 0 {
			parts = append(parts, fmt.Sprintf("%.1f", 100*layer/sum))
		} else {
			parts = append(parts, "-")
		}
	}
	return parts
}

var (
	trainedLine    = regexp.MustCompile(`(?m)^made by (.*?), with (\{.*\})$`)
	validationLine = regexp.MustCompile(`(?m)^layer (\d+): validation error ([0-9.]+) of sparse only's$`)
)

// Validation reads what training found layer by layer out of an adapter's description, as "3: 0.412": errors on the validation windows, that of
// the sparse policy alone being 1. It is nil where there is none.
func Validation(description string) (errs []string) {
	for _, v := range validationLine.FindAllStringSubmatch(description, -1) {
		errs = append(errs, v[1]+": "+v[2])
	}
	return errs
}

// MadeBy reads how an adapter was made out of its description, in lines: its first one, if lesskv train did not write it. It is nil where there is
// none.
func MadeBy(description string) (lines []string) {
	found := trainedLine.FindAllStringSubmatch(description, -1)
	if found == nil {
		if first, _, _ := strings.Cut(description, "\n"); first != "" {
			return []string{first}
		}
		return nil
	}
	for _, f := range found {
		lines = append(lines, f[1])
	}
	var options struct {
		Rate    float64
		Steps   int
		Seed    int
		Budgets []int
	}
	if json.Unmarshal([]byte(found[0][2]), &options) == nil {
		lines = append(lines, fmt.Sprintf("budgets %v, at most %d steps of %g, seed %d", options.Budgets, options.Steps, options.Rate, options.Seed))
	}
	return lines
}
