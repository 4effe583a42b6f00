// Package describe says what the file of a model or of an adapter is, in words for people.
package describe

import (
	"fmt"
	"slices"
	"strconv"
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
	runs := group(m.Layers, describe)
	if len(runs) == 1 {
		return "each layer has " + describe(0)
	}
	var lines []string
	for _, r := range runs {
		lines = append(lines, r.layers+": "+r.text)
	}
	return strings.Join(lines, "\n")
}

// A run is layers of which the same is said.
type run struct{ text, layers string }

// group collects layers of which the same is said, "layers 0-4, 6", in the order of their first ones.
func group(n int, describe func(int) string) (runs []run) {
	parts := map[string][]string{}
	var texts []string
	for i := 0; i < n; {
		text, from := describe(i), i
		for i++; i < n && describe(i) == text; i++ {
		}
		part := strconv.Itoa(from)
		if i-1 > from {
			part += fmt.Sprintf("-%d", i-1)
		}
		if parts[text] == nil {
			texts = append(texts, text)
		}
		parts[text] = append(parts[text], part)
	}
	for _, text := range texts {
		runs = append(runs, run{text, "layers " + strings.Join(parts[text], ", ")})
	}
	return runs
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
