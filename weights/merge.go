package weights

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// ErrMerge is what errors about adapters that don't belong together wrap.
var ErrMerge = errors.New("adapters that don't belong together")

// Describe returns the description of an adapter that training made for some layers, ascending. The parts of one adapter differ in the
// layers and their sizes alone: how is text and options, everything that it would take to make them again.
func Describe(layers []int, how string) string {
	var parts []string
	for _, r := range runs(layers) {
		parts = append(parts, fmt.Sprintf("%d to %d", r[0], r[1]))
	}
	return fmt.Sprintf("made by lesskv train, layers %s, %s", strings.Join(parts, " and "), how)
}

// described finds in a description how its parts were made, a line each.
var described = regexp.MustCompile(`(?m)^made by lesskv train, layers \d+ to \d+(?: and \d+ to \d+)*, (.*)$`)

// ownSizes are what a part may have of its own: the rank and the hidden size of its layers.
var ownSizes = regexp.MustCompile(`"(Rank|Hidden)":\d+,|"(Ranks|Hiddens)":\{[^}]*\},`)

// differ returns the first parts in which two lists, with commas, differ.
func differ(found, wanted string) (string, string) {
	a, b := strings.Split(found, ","), strings.Split(wanted, ",")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return strings.TrimSpace(a[i]), strings.TrimSpace(b[i])
		}
	}
	return found, wanted
}

// Merge joins adapters of one model that have phi and psi of different layers, as machines that share the work of training make them.
// An adapter with weights of budgets or types of slots gives them to all.
// It fails with ErrMerge if they differ in anything but their layers and the sizes of these, or if two have phi or psi of the same one.
func Merge(adapters ...*Adapter) (*Adapter, error) {
	if len(adapters) == 0 {
		return nil, &Error{Item: "adapters", Err: ErrMerge, Found: "none", Wanted: "one at least"}
	}
	first := adapters[0]
	for _, a := range adapters {
		if a.Bytes() > 0 { // an allocation alone was trained under nothing
			first = a
			break
		}
	}
	merged := *first
	merged.SHA256 = ""
	merged.Kernels = make([]Kernels, first.Layers)
	var descriptions []string         // in the adapters' order, each once
	how := ""                         // the parts were trained
	from := make([]int, first.Layers) // which adapter a layer is of, counted from 1
	for i, a := range adapters {
		for _, c := range []struct {
			item        string
			found, want any
			kernels     bool // whether it is the kernels' alone
		}{
			{"architecture", a.Architecture, first.Architecture, false}, {"geometry", a.Geometry, first.Geometry, false},
			{"fingerprint", a.Fingerprint, first.Fingerprint, false}, {"policy", a.Trained.Policy, first.Trained.Policy, false},
			{"training", a.Trained, first.Trained, true},
		} {
			if c.kernels && a.Bytes() == 0 {
				continue
			}
			if !reflect.DeepEqual(c.found, c.want) {
				return nil, &Error{Item: fmt.Sprintf("adapter %d: %s", i+1, c.item), Err: ErrMerge, Found: fmt.Sprintf("%+v", c.found), Wanted: fmt.Sprintf("%+v, as the first has it", c.want)}
			}
		}
		switch {
		case merged.Budget == nil:
			merged.Budget = a.Budget
		case a.Budget != nil && !slices.Equal(a.Budget, merged.Budget):
			return nil, &Error{Item: fmt.Sprintf("adapter %d: key %s", i+1, keyBudgetWeight), Err: ErrMerge, Found: "other weights", Wanted: "those of the adapters before it, or none"}
		}
		switch {
		case merged.SlotTypes == nil:
			merged.SlotTypes = a.SlotTypes
		case a.SlotTypes != nil && !slices.Equal(a.SlotTypes, merged.SlotTypes):
			return nil, &Error{Item: fmt.Sprintf("adapter %d: key %s", i+1, keySlotKeyType), Err: ErrMerge, Found: "other types", Wanted: "those of the adapters before it, or none"}
		}
		for _, made := range described.FindAllStringSubmatch(a.Description, -1) {
			text := ownSizes.ReplaceAllString(made[1], "")
			if how == "" {
				how = text
			}
			if text != how {
				found, wanted := differ(text, how)
				return nil, &Error{Item: fmt.Sprintf("adapter %d: training", i+1), Err: ErrMerge, Found: found, Wanted: wanted + ", as the parts before it have it"}
			}
		}
		for l := range a.Kernels {
			if a.Kernels[l].Empty() {
				continue
			}
			if from[l] != 0 {
				return nil, &Error{Item: fmt.Sprintf("layer %d", l), Err: ErrMerge, Found: fmt.Sprintf("phi and psi in adapters %d and %d", from[l], i+1), Wanted: "them in one"}
			}
			from[l] = i + 1
			merged.Kernels[l] = a.Kernels[l]
		}
		if a.Description != "" && !slices.Contains(descriptions, a.Description) {
			descriptions = append(descriptions, a.Description)
		}
	}
	merged.Description = strings.Join(descriptions, "\n")
	return &merged, nil
}
