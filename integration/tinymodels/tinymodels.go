// Package tinymodels writes small GGUF models with random weights, one for each kind of attention that the runtime builds:
// those that LESS serves, and those that it has to refuse. Unmodified llama.cpp loads and decodes them all.
//
// Random is not degenerate: queries and keys are scaled so that attention is peaked (the logits of a head spread by about
// two and a half), every other norm and bias is off its neutral value, and windows and soft-caps are small enough to bite
// within a hundred tokens. An error anywhere in the attention shows in the logits.
//
// All of them have a SentencePiece vocabulary of 384 tokens with byte fallback, which tokenises any text, and are trained
// for a context of 4,096. The same name, type and seed give the same bytes.
package tinymodels

import (
	"fmt"
	"path/filepath"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Model describes a model that can be written.
type Model struct {
	Name         string // unique, fit for a file name
	Architecture string // general.architecture
	Refused      string // why LESS can't serve it, in a few words; "" if it can
	NoDecode     bool   // it has no decoder, or needs an encoder's output before it can decode
	Shared       int    // layers, the last ones, that share another's keys and values
	Without      int    // layers without attention
	Differ       bool   // whether layers differ in the number of their heads or the size of them
	Window       int    // sliding window of every layer that has one, in tokens; 0 if none has
	Attends      []int  // of a hybrid, the layers that attend; the others are recurrent, or neither. nil: all attend
	Experts      bool   // tokens choose among experts: what rounds otherwise may choose otherwise

	build func(*builder)
}

// All returns every model, those that LESS serves first.
func All() []Model {
	return []Model{
		{Name: "llama", Architecture: "llama", build: llama},                                 // GQA, groups of 4
		{Name: "qwen3", Architecture: "qwen3", build: qwen3},                                 // norms of q and k, heads wider than the embedding
		{Name: "gemma2", Architecture: "gemma2", Window: 32, build: gemma2},                  // every other layer windowed, soft-cap, scaled q
		{Name: "gemma3", Architecture: "gemma3", Window: 24, build: gemma3},                  // five layers of six windowed, MQA, two RoPE bases
		{Name: "phi3", Architecture: "phi3", build: phi3},                                    // fused q, k and v, scaled q
		{Name: "falcon", Architecture: "falcon", build: falcon},                              // MQA, strided v, attention beside the feed-forward
		{Name: "gpt2", Architecture: "gpt2", build: gpt2},                                    // MHA, learned positions, biases, strided q, k and v
		{Name: "gpt-oss", Architecture: "gpt-oss", Window: 32, Experts: true, build: gptOSS}, // sink logits, experts, every other layer windowed
		{Name: "granite-swa", Architecture: "granite_swa", Window: 32, build: graniteSWA},    // sink logits, three layers of four windowed, four scales
		{Name: "qwen2vl", Architecture: "qwen2vl", build: qwen2vl},                           // M-RoPE
		{Name: "qwen3vl", Architecture: "qwen3vl", build: qwen3vl},                           // M-RoPE in turns

		{Name: "qwen35", Architecture: "qwen35", Attends: []int{3, 7}, build: qwen35},                                      // delta net, M-RoPE, gated attention
		{Name: "qwen35-ahead", Architecture: "qwen35", Attends: []int{3, 7}, build: qwen35Ahead},                           // and a layer that predicts one token more, which no text needs
		{Name: "qwen35moe", Architecture: "qwen35moe", Attends: []int{3}, Experts: true, build: qwen35MoE},                 // the same with experts
		{Name: "qwen3next", Architecture: "qwen3next", Attends: []int{3}, Experts: true, build: qwen3Next},                 // delta net, beta and alpha in one
		{Name: "lfm2", Architecture: "lfm2", Attends: []int{2, 4}, build: lfm2},                                            // short convolutions
		{Name: "lfm2-window", Architecture: "lfm2", Attends: []int{2, 4}, Window: 32, build: lfm2Window},                   // the same, and no layer with a budget: v0.5.0 has no hybrid that attends to all in some layers and to a window in others
		{Name: "lfm2moe", Architecture: "lfm2moe", Attends: []int{2, 4}, Experts: true, build: lfm2MoE},                    // the same with experts
		{Name: "granitehybrid", Architecture: "granitehybrid", Attends: []int{2, 4}, build: graniteHybrid},                 // Mamba 2, four scales
		{Name: "nemotron_h", Architecture: "nemotron_h", Attends: []int{2, 6}, build: nemotronH},                           // Mamba 2, layers that are neither, no RoPE
		{Name: "nemotron_h_moe", Architecture: "nemotron_h_moe", Attends: []int{2, 6}, Experts: true, build: nemotronHMoE}, // the same with experts
		{Name: "falcon-h1", Architecture: "falcon-h1", Attends: []int{0, 1, 2, 3}, build: falconH1},                        // Mamba 2 and attention in every layer
		{Name: "jamba", Architecture: "jamba", Attends: []int{1, 3}, build: jamba},                                         // Mamba
		{Name: "plamo2", Architecture: "plamo2", Attends: []int{1, 3}, build: plamo2},                                      // Mamba with heads
		{Name: "minimax-01", Architecture: "minimax-01", Attends: []int{1, 3}, Experts: true, build: minimax01},            // linear attention with decay

		// layers that share another one's KV, and layers whose heads differ
		{Name: "gemma3n", Architecture: "gemma3n", Window: 32, Shared: 5, build: gemma3n},
		{Name: "gemma4", Architecture: "gemma4", Window: 32, Shared: 4, Differ: true, build: gemma4},
		{Name: "gemma4-64", Architecture: "gemma4", Window: 32, Shared: 3, Differ: true, build: gemma4Wide},
		{Name: "openelm", Architecture: "openelm", Differ: true, build: openelm},
		{Name: "deci", Architecture: "deci", Differ: true, Without: 2, build: deci},

		{Name: "mpt", Architecture: "mpt", Refused: "ALiBi", build: mpt},
		{Name: "bloom", Architecture: "bloom", Refused: "ALiBi", build: bloom},
		{Name: "bert", Architecture: "bert", Refused: "encoder", NoDecode: true, build: bert},
		{Name: "mamba", Architecture: "mamba", Refused: "recurrent", build: mamba},
		{Name: "deepseek2", Architecture: "deepseek2", Refused: "MLA", build: deepseek2},
		{Name: "mistral4", Architecture: "mistral4", Refused: "MLA", build: deepseek2},
		{Name: "t5", Architecture: "t5", Refused: "encoder-decoder", NoDecode: true, build: t5},
		{Name: "kimi-linear", Architecture: "kimi-linear", Refused: "MLA", build: kimiLinear},
		{Name: "llama4", Architecture: "llama4", Refused: "chunked attention", build: llama4},
		{Name: "grok", Architecture: "grok", Refused: "grok's attention scaling", build: grok},
	}
}

// Llama1B is not tiny: its layers have the shape of Llama-3.2-1B's, behind the vocabulary of the others. It is as slow as the real
// one where logits are not asked for. It is none of All, and takes 5 GB of memory to write.
func Llama1B() Model {
	return Model{Name: "llama-3.2-1b", Architecture: "llama", build: func(b *builder) {
		llamaOf(b, shape{layers: 16, embd: 2048, ff: 8192, heads: 32, headsKV: 8, dim: 64})
	}}
}

// Supported returns the models that LESS serves.
func Supported() []Model { return filter(true) }

// Refused returns the models that LESS has to refuse.
func Refused() []Model { return filter(false) }

func filter(supported bool) []Model {
	var out []Model
	for _, m := range All() {
		if (m.Refused == "") == supported {
			out = append(out, m)
		}
	}
	return out
}

// Find returns the model of a name. It fails if there is none.
func Find(name string) (Model, error) {
	for _, m := range All() {
		if m.Name == name {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("no tiny model %q", name)
}

// Write writes the model to path, its matrices of type t, gguf.F32, gguf.F16 or, where rows are long enough, gguf.Q8_0, vectors
// always F32.
func (m Model) Write(path string, t gguf.Type, seed uint64) error {
	return m.WriteChanged(path, t, seed, nil)
}

// WriteChanged does as Write does, with other values for some of the tensors, by their names.
func (m Model) WriteChanged(path string, t gguf.Type, seed uint64, values map[string][]float32) error {
	return m.write(path, t, seed, plain(), values)
}

// WriteVocabulary does as Write does, with another vocabulary.
func (m Model) WriteVocabulary(path string, t gguf.Type, seed uint64, v Vocabulary) error {
	return m.write(path, t, seed, v, nil)
}

func (m Model) write(path string, t gguf.Type, seed uint64, v Vocabulary, values map[string][]float32) error {
	b := newBuilder(m, t, seed, v)
	m.build(b)
	for i, tensor := range b.tensors {
		if v, ok := values[tensor.Name]; ok {
			b.tensors[i].Values = v
		}
	}
	if err := gguf.WriteFile(path, b.pairs, b.tensors); err != nil {
		return fmt.Errorf("tiny model %s: %w", m.Name, err)
	}
	return nil
}

// WriteIn writes the model into a folder, under a name made of its own, the type and the seed, and returns the path.
func (m Model) WriteIn(dir string, t gguf.Type, seed uint64) (string, error) {
	path := filepath.Join(dir, fmt.Sprintf("%s-%v-%d.gguf", m.Name, t, seed))
	return path, m.Write(path, t, seed)
}
