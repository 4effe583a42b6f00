package weights

import (
	"fmt"

	"github.com/lesskv/lesskv/weights/gguf"
)

// layerKinds are what a model's layers do beside attending to everything.
type layerKinds struct {
	window    int    // tokens that a layer with a sliding window sees, the query's own included
	windowed  []bool // which have one; nil: none
	recurrent []bool // which keep a state of their own, of one size; nil: none
	both      bool   // those attend too
	state     uint64 // bytes of one such state
}

// Window returns the tokens that a layer's sliding window has, 0 if it has none.
func (m *Model) Window(layer int) int {
	if m.kinds.windowed != nil && m.kinds.windowed[layer] {
		return m.kinds.window
	}
	return 0
}

// Recurrent reports whether a layer keeps a state of its own, which has one size: a Mamba layer, a delta net, a short convolution.
func (m *Model) Recurrent(layer int) bool {
	return m.kinds.recurrent != nil && m.kinds.recurrent[layer]
}

// Attends reports whether a layer attends to keys and values, its own or another layer's.
func (m *Model) Attends(layer int) bool {
	return m.Layer(layer).HeadsKV > 0 && (!m.Recurrent(layer) || m.kinds.both)
}

// Shares reports whether a layer has no keys and values of its own, and attends to another's.
func (m *Model) Shares(layer int) bool { return m.Owner(layer) != layer }

// HasBudget reports whether a budget is for a layer: it attends to all keys and values of its own.
func (m *Model) HasBudget(layer int) bool {
	return m.Attends(layer) && !m.Shares(layer) && m.Window(layer) == 0
}

// RecurrentBytes returns what the recurrent layers keep of one sequence.
func (m *Model) RecurrentBytes() (bytes uint64) {
	for i := range m.Layers {
		if m.Recurrent(i) {
			bytes += m.kinds.state
		}
	}
	return bytes
}

// windows is how llama.cpp v0.5.0 places an architecture's sliding windows (src/models). A file may give the period, or an array with an
// entry for each layer, in the key attention.sliding_window_pattern.
type windows struct {
	period int  // one layer of so many sees everything; 0: the file must have the array
	first  bool // it is the first of them, not the last
	size   int  // where the file has no attention.sliding_window
	fixed  int  // whatever it has, if it has one
	layers int  // only models of so many layers have windows at all; 0: any
}

var windowed = map[string]windows{
	"afmoe":        {period: 4},
	"cohere2":      {period: 4},
	"cohere2moe":   {period: 4, first: true},
	"dots3note":    {},
	"exaone-moe":   {period: 4, size: 128},
	"exaone4":      {period: 4, size: 4096, layers: 64},
	"gemma2":       {period: 2, size: 4096},
	"gemma3":       {period: 6},
	"gemma3n":      {period: 5},
	"gemma4":       {},
	"gpt-oss":      {period: 2},
	"granite_swa":  {},
	"laguna":       {period: 4, first: true},
	"maple":        {},
	"mellum":       {period: 4},
	"mimo2":        {},
	"muse-glimmer": {period: 4},
	"olmo2":        {period: 4},
	"plamo3":       {period: 8},
	"smallthinker": {period: 4, first: true, fixed: 4096},
	"spark2_5":     {},
	"step35":       {},
}

// recurring says how often a layer of an architecture attends, where the others are recurrent and the file may leave it open. Of the
// other hybrids, the layers without KV heads are recurrent.
var recurring = map[string]int{"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4}

var hybrids = map[string]bool{"granitehybrid": true, "jamba": true, "lfm2": true, "lfm2moe": true, "nemotron_h": true, "nemotron_h_moe": true, "plamo2": true}

// readWindows finds out which layers have a sliding window. headsKV are those of each layer.
func (m *Model) readWindows(f *gguf.File, headsKV []int) (err error) {
	w, ok := windowed[m.Architecture]
	if !ok && m.Architecture != "lfm2" || w.layers != 0 && m.Layers != w.layers {
		return nil
	}
	k := &m.kinds
	if k.window, err = m.number(f, "attention.sliding_window", w.size); err != nil {
		return err
	}
	if f.Has(m.key("attention.sliding_window")) && w.fixed > 0 {
		k.window = w.fixed
	}
	if k.window < 1 {
		return nil
	}
	if m.Architecture == "lfm2" { // all that attend
		k.windowed = make([]bool, m.Layers)
		for i := range k.windowed {
			k.windowed[i] = headsKV[i] > 0
		}
		return nil
	}
	const name = "attention.sliding_window_pattern"
	if k.windowed, err = m.flags(f, name); err != nil || k.windowed != nil {
		return err
	}
	if w.period == 0 {
		return &Error{File: f.Name, Item: "key " + m.key(name), Err: gguf.ErrMissing, Wanted: "an array with an entry for each layer"}
	}
	period, err := m.number(f, name, w.period)
	if err != nil {
		return err
	}
	k.windowed = make([]bool, m.Layers)
	for i := range k.windowed {
		full := period > 0 && i%period == period-1
		if w.first {
			full = period > 0 && i%period == 0
		}
		k.windowed[i] = !full
	}
	return nil
}

// readRecurrent finds out which layers are recurrent, and what they keep.
func (m *Model) readRecurrent(f *gguf.File, headsKV []int, embedding int) (err error) {
	k := &m.kinds
	interval, often := recurring[m.Architecture]
	k.both = m.Architecture == "falcon-h1"
	if !often && !hybrids[m.Architecture] && !k.both {
		return nil
	}
	if often {
		if k.recurrent, err = m.flags(f, "attention.recurrent_layers"); err != nil {
			return err
		}
	}
	if k.recurrent == nil {
		if interval, err = m.number(f, "full_attention_interval", interval); err != nil {
			return err
		}
		feedForward := make([]int, m.Layers)
		if m.Architecture == "nemotron_h" || m.Architecture == "nemotron_h_moe" { // which has layers that are neither
			if feedForward, err = m.heads(f, "feed_forward_length", feedForward); err != nil {
				return err
			}
		}
		k.recurrent = make([]bool, m.Layers)
		for i := range k.recurrent {
			k.recurrent[i] = k.both || often && interval > 0 && (i+1)%interval != 0 || !often && headsKV[i] == 0 && feedForward[i] == 0
		}
	}
	var n [5]int // llama_hparams::n_embd_r and n_embd_s
	for i, name := range []string{"shortconv.l_cache", "ssm.conv_kernel", "ssm.inner_size", "ssm.group_count", "ssm.state_size"} {
		if n[i], err = m.number(f, name, 0); err != nil {
			return err
		}
	}
	short, kernel, inner, groups, state := n[0], n[1], n[2], n[3], n[4]
	floats := max(kernel-1, 0)*(inner+2*groups*state) + state*inner
	switch {
	case short > 0:
		floats = embedding * (short - 1)
	case m.Architecture == "minimax-01":
		floats = m.KeyLength * m.KeyLength * m.Heads
	}
	k.state = 4 * uint64(floats)
	return nil
}

// flags reads an array with an entry for each layer, nil if the key is none.
func (m *Model) flags(f *gguf.File, name string) ([]bool, error) {
	key := m.key(name)
	elem, n, err := f.ArrayLen(key)
	if err != nil {
		return nil, nil
	}
	if n < uint64(m.Layers) {
		return nil, &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprintf("an array of %d", n), Wanted: fmt.Sprintf("one for each of %d layers", m.Layers)}
	}
	if elem == gguf.Bool {
		return gguf.GetArray[bool](f, key)
	}
	numbers, err := m.array(f, key, elem)
	out := make([]bool, len(numbers))
	for i, n := range numbers {
		out[i] = n != 0
	}
	return out, err
}
