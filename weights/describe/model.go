// Package describe says what the file of a model or of an adapter is, in words for people.
package describe

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/docs"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Served says whether LESS serves a model of an architecture (it begins with yes or no), and what the model keeps of a text, as docs/models.md
// has it. Latent attention shows in the metadata, whatever the architecture.
func Served(f *gguf.File, architecture string) (less, keeps string) {
	if f.Has(architecture + ".attention.key_length_mla") {
		architecture = "deepseek2"
	}
	all := docs.Architectures()
	if i := slices.IndexFunc(all, func(a docs.Architecture) bool { return a.Name == architecture }); i >= 0 {
		return all[i].LESS, all[i].Memory
	}
	return "yes, if its layers attend in the usual way: the runtime looks while it loads the model", "not known here"
}

// Layers counts the layers of a model by what they do.
func Layers(m *weights.Model) string {
	var all, windowed, shared, recurrent, neither int
	window := 0
	for i := range m.Layers {
		switch {
		case m.Attends(i) && m.Shares(i):
			shared++
		case m.Attends(i) && m.Window(i) > 0:
			windowed++
			window = m.Window(i)
		case m.Attends(i):
			all++
		case m.Recurrent(i):
			recurrent++
		default:
			neither++
		}
		if m.Attends(i) && m.Recurrent(i) {
			recurrent++
		}
	}
	var parts []string
	add := func(n int, text string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, text))
		}
	}
	add(all, "attend to the whole text")
	add(windowed, fmt.Sprintf("in a window of %d tokens", window))
	add(shared, "attend to another's keys and values")
	add(recurrent, "recurrent")
	add(neither, "without either")
	return strings.Join(parts, ", ")
}

// Heads describes the heads of a model, in lines, one for the layers that are alike where not all are.
func Heads(m *weights.Model) string {
	describe := func(i int) string {
		s := m.Layer(i)
		if !m.Attends(i) {
			return "none"
		}
		text := fmt.Sprintf("%d query heads, %d of keys and values, %d wide", s.Heads, s.HeadsKV, s.KeyLength)
		if s.ValueLength != s.KeyLength {
			text = fmt.Sprintf("%d query heads, %d of keys %d wide and values %d wide", s.Heads, s.HeadsKV, s.KeyLength, s.ValueLength)
		}
		return text
	}
	groups := group(m.Layers, describe)
	if len(groups) == 1 {
		return "each layer has " + describe(0)
	}
	var lines []string
	for _, g := range groups {
		lines = append(lines, g.layers+": "+g.text)
	}
	return strings.Join(lines, "\n")
}

// alike is layers of which the same is said.
type alike struct{ text, layers string }

// group collects layers of which the same is said, "layer 2" or "layers 0-4,6", in the order of their first ones. Of those of which "" is said there is
// none.
func group(n int, describe func(int) string) (all []alike) {
	layers := map[string][]int{}
	var texts []string
	for i := range n {
		text := describe(i)
		if text == "" {
			continue
		}
		if layers[text] == nil {
			texts = append(texts, text)
		}
		layers[text] = append(layers[text], i)
	}
	for _, text := range texts {
		name := "layers "
		if len(layers[text]) == 1 {
			name = "layer "
		}
		all = append(all, alike{text, name + weights.FormatLayers(layers[text])})
	}
	return all
}

// Type names the type that most bytes of some tensors have.
func Type(tensors []gguf.Info) string {
	bytes := map[gguf.Type]int64{}
	most := gguf.F32
	for _, t := range tensors {
		if bytes[t.Type] += t.Size; bytes[t.Type] >= bytes[most] {
			most = t.Type
		}
	}
	return most.String()
}
