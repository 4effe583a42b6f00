// Package activations lets the verification worker be the model that training learns from: it runs the patched runtime with a
// LESS cache that evicts nothing, which is exact attention, and copies what the layers see.
package activations

import (
	"context"
	"fmt"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/train"
)

// batch is how many tokens the model computes at a time. What is copied of them waits in memory: bytes of q, k, v and output
// of all recorded layers, in f32.
const batch = 256

// Runtime is a train.Runtime. Close must be called.
type Runtime struct {
	w     *worker.Worker
	file  *gguf.File
	start []int32
}

// Open starts the worker at path with a model and a context of so many tokens.
func Open(ctx context.Context, path, model string, tokens, threads int) (_ *Runtime, err error) {
	r := &Runtime{}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if r.file, err = gguf.Open(model); err != nil {
		return nil, err
	}
	if r.w, err = worker.Start(ctx, path); err != nil {
		return nil, err
	}
	if _, err = r.w.Open(worker.Config{
		Model: model, Context: tokens, Batch: batch, Ubatch: batch, Threads: threads, Capture: true,
		LESS: &worker.LESS{Policy: "lambda", Budget: tokens, TypeK: "f16", TypeV: "f16"},
	}); err != nil {
		return nil, err
	}
	if kind, err := gguf.Get[string](r.file, "tokenizer.ggml.model"); err == nil && kind == "none" {
		return r, nil // tokens alone
	}
	if r.start, err = r.w.StartToken(); err != nil {
		return nil, err
	}
	return r, nil
}

// Close ends the worker.
func (r *Runtime) Close() error {
	if r.file != nil {
		r.file.Close()
	}
	if r.w == nil {
		return nil
	}
	return r.w.Close()
}

// Peak returns the most memory that the worker has occupied, the model included; -1 where the system does not say.
func (r *Runtime) Peak() (int64, error) {
	m, err := r.w.Memory()
	return m.Peak, err
}

// Start returns the token that the model wants at the start of a sequence, or none.
func (r *Runtime) Start() []int32 { return r.start }

// Tokenize returns a document's tokens, without those that the model wants at its ends. A long document is cut at ends of lines.
func (r *Runtime) Tokenize(text string) ([]int32, error) {
	return r.w.TokenizeLong(text, 32<<10, false)
}

// Layers implements train.Runtime.
func (r *Runtime) Layers() ([]train.Layer, error) {
	token := int32(0)
	if len(r.start) > 0 {
		token = r.start[0]
	}
	if err := r.w.Clear(); err != nil {
		return nil, err
	}
	if _, err := r.w.Decode(0, 0, []int32{token}, worker.None); err != nil { // before it nothing has a layer
		return nil, err
	}
	infos, err := r.w.Layers(0)
	layers := make([]train.Layer, len(infos))
	for i, l := range infos {
		layers[i] = train.Layer{Index: l.Layer, Window: l.Window, Scale: l.Scale, SoftCap: l.SoftCap}
	}
	return layers, err
}

// Record implements train.Runtime.
func (r *Runtime) Record(tokens []int32, layers []int, each func(train.Attention) error) error {
	if err := r.w.Clear(); err != nil {
		return err
	}
	if err := r.w.Capture(layers...); err != nil {
		return err
	}
	defer r.w.StopCapture()
	for at := 0; at < len(tokens); at += batch {
		if _, err := r.w.Decode(0, at, tokens[at:min(at+batch, len(tokens))], worker.None); err != nil {
			return err
		}
		all, err := r.w.Captured()
		if err != nil {
			return err
		}
		for _, a := range all {
			if err := each(train.Attention{Layer: a.Layer, Tokens: a.Tokens, Q: a.Q, K: a.K, V: a.V, Out: a.Out}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Tensor implements train.Runtime: from the model's file, by ggml's own conversion where the type is quantised.
func (r *Runtime) Tensor(name string) ([]float32, []uint64, error) {
	info, ok := r.file.Tensor(name)
	if !ok {
		return nil, nil, nil
	}
	switch info.Type {
	case gguf.F32, gguf.F16, gguf.BF16, gguf.Q8_0:
		values, err := r.file.Floats(name)
		return values, info.Dims, err
	}
	data, err := r.file.Raw(name)
	if err != nil {
		return nil, nil, err
	}
	values, err := r.w.Floats(uint32(info.Type), int(info.Elements()), data)
	if err != nil {
		err = fmt.Errorf("tensor %s: %w", name, err)
	}
	return values, info.Dims, err
}
