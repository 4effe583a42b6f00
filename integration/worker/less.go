package worker

import (
	"fmt"
	"strconv"
	"strings"
)

// LESSInfo is struct lesskv_info of cgo/llama/lesskv-llama.h.
type LESSInfo struct {
	Policy                        string
	Budget, Heavy, Recent, Pinned int
	Layers, WindowLayers          int // with a budget; with a sliding window
	SharedLayers                  int // that share the cache of one of those
	KernelLayers                  int // that have phi or psi
	Rank, Hidden                  int // the largest of a layer; 0 without phi and psi
	Sequences                     int // that hold memory
	SlotBytes, StateBytes         int64
	KernelBytes, ScratchBytes     int64
	FullBytes                     int64  // what the unmodified f16 cache holds at n_ctx tokens
	RecurrentBytes                int64  // of recurrent layers
	AdapterSHA256                 string // "" without an adapter
	Level                         string // the instruction sets that LESS's inner loops use
	GGMLLevel                     string // and ggml's CPU backend, where the runtime has it for several; else ""
	Error                         string // why the last thing that was refused was refused
}

// CacheBytes is what a budget in bytes counts: slots, state, and phi and psi.
func (i LESSInfo) CacheBytes() int64 { return i.SlotBytes + i.StateBytes + i.KernelBytes }

// LESS describes the LESS cache.
func (w *Worker) LESS() (LESSInfo, error) {
	r, err := w.call("less", nil)
	if err != nil {
		return LESSInfo{}, err
	}
	i := LESSInfo{
		Policy: r.fields["policy"],
		Budget: r.int("budget"), Heavy: r.int("heavy"), Recent: r.int("recent"), Pinned: r.int("pinned"),
		Layers: r.int("n_layer"), WindowLayers: r.int("n_layer_swa"), SharedLayers: r.int("n_layer_shared"), KernelLayers: r.int("n_layer_kernels"),
		Rank: r.int("rank"), Hidden: r.int("hidden"), Sequences: r.int("n_seq"),
		SlotBytes: r.integer("bytes_slots"), StateBytes: r.integer("bytes_state"),
		KernelBytes: r.integer("bytes_kernels"), ScratchBytes: r.integer("bytes_scratch"),
		FullBytes: r.integer("bytes_full"), RecurrentBytes: r.integer("bytes_recurrent"), AdapterSHA256: r.fields["adapter_sha256"],
		Level: r.fields["level"], GGMLLevel: r.fields["ggml_level"], Error: r.fields["error"],
	}
	return i, r.err
}

// LayerInfo is struct lesskv_layer_info: one layer of one sequence.
type LayerInfo struct {
	Layer                 int
	Window, Kernels       bool
	Seen, Kept, Folded    int64 // tokens; kept and folded per KV head
	SlotBytes, StateBytes int64
	Rank, Hidden          int     // of phi and psi; 0 without
	Scale                 float32 // softmax scale s
	SoftCap               float32 // 0: none
}

// Layers describes every layer of a sequence that has a cache of its own; none if it is empty.
func (w *Worker) Layers(seq int) ([]LayerInfo, error) {
	r, err := w.call("layers", nil, "seq", seq)
	if err != nil {
		return nil, err
	}
	const width = 10
	n := r.int("n")
	if r.err != nil || n < 0 || len(r.payload) != n*(8*width+8) {
		return nil, fmt.Errorf("worker: %d bytes in a reply about %d layers", len(r.payload), n)
	}
	v, f := view[int64](r.payload[:8*width*n]), view[float32](r.payload[8*width*n:])
	layers := make([]LayerInfo, 0, n)
	for ; len(v) > 0; v, f = v[width:], f[2:] {
		layers = append(layers, LayerInfo{int(v[0]), v[1] != 0, v[2] != 0, v[3], v[4], v[5], v[6], v[7], int(v[8]), int(v[9]), f[0], f[1]})
	}
	return layers, nil
}

// HeadInfo is what one KV head may keep.
type HeadInfo struct {
	Layer, Head   int
	Budget, Heavy int // slots, and those of them that are chosen by score
}

// Heads describes every KV head that has a budget, layer by layer.
func (w *Worker) Heads() ([]HeadInfo, error) {
	r, err := w.call("heads", nil)
	if err != nil {
		return nil, err
	}
	n := r.int("n")
	if r.err != nil || n < 0 || len(r.payload) != 8*4*n {
		return nil, fmt.Errorf("worker: %d bytes in a reply about %d heads", len(r.payload), n)
	}
	heads := make([]HeadInfo, 0, n)
	for v := view[int64](r.payload); len(v) > 0; v = v[4:] {
		heads = append(heads, HeadInfo{int(v[0]), int(v[1]), int(v[2]), int(v[3])})
	}
	return heads, nil
}

// Slots returns the positions that one KV head holds and their scores, in storage order.
func (w *Worker) Slots(seq, layer, head int) (pos []int32, score []float32, err error) {
	r, err := w.call("slots", nil, "seq", seq, "layer", layer, "head", head)
	if err != nil {
		return nil, nil, err
	}
	half := len(r.payload) / 2
	return view[int32](r.payload[:half]), view[float32](r.payload[half:]), nil
}

// Supported says whether LESS can serve a model, and why not. Nothing may be open.
func (w *Worker) Supported(model string) (ok bool, reason string, err error) {
	r, err := w.call("supported", nil, "path", model)
	if err != nil {
		return false, "", err
	}
	return r.bool("supported"), r.fields["reason"], r.err
}

// Fingerprint returns the open model's fingerprint of algorithm.md, "The adapter file".
func (w *Worker) Fingerprint() (string, error) {
	r, err := w.call("fingerprint", nil)
	if err != nil {
		return "", err
	}
	return r.fields["hex"], nil
}

// Attention is one micro-batch in one layer: what the LESS cache was given and what it answered.
type Attention struct {
	Layer                  int
	Tokens, Heads, HeadsKV int       // T, Hq, Hkv
	KeyLength, ValueLength int       // D, Dv
	Q                      []float32 // [T][Hq][D]
	K                      []float32 // [T][Hkv][D], as the slots' type has rounded it
	V                      []float32 // [T][Hkv][Dv], the same
	Out                    []float32 // [T][Hq][Dv]
}

// Capture begins to copy what every micro-batch gives to the attention of some layers and gets from it; of all, if none is
// named. The model was opened with Config.Capture.
func (w *Worker) Capture(layers ...int) error {
	which := "all"
	if len(layers) > 0 {
		s := make([]string, len(layers))
		for i, il := range layers {
			s[i] = strconv.Itoa(il)
		}
		which = strings.Join(s, ",")
	}
	_, err := w.call("capture", nil, "layers", which)
	return err
}

// EndBehind makes the scheduler's callback (cb_eval) end every graph behind a layer, as an app's may, until StopCapture. The model was
// opened with Config.Capture.
func (w *Worker) EndBehind(layer int) error {
	_, err := w.call("capture", nil, "layers", layer, "ends", 1)
	return err
}

// ThrowBehind makes it throw there, which leaves llama_decode as an exception.
func (w *Worker) ThrowBehind(layer int) error {
	_, err := w.call("capture", nil, "layers", layer, "throws", 1)
	return err
}

// StopCapture copies no more. What was copied can still be taken.
func (w *Worker) StopCapture() error {
	_, err := w.call("capture", nil, "layers", "none")
	return err
}

// Captured takes what was copied since the last time, in the order of computation: micro-batch by micro-batch, layer by layer.
func (w *Worker) Captured() ([]Attention, error) {
	r, err := w.call("captured", nil)
	if err != nil {
		return nil, err
	}
	n := r.int("n")
	if r.err != nil {
		return nil, r.err
	}
	all := make([]Attention, 0, n)
	b := r.payload
	for i := range n {
		const head = 6
		if len(b) < 4*head {
			return nil, fmt.Errorf("worker: %d captured records: number %d is cut off", n, i)
		}
		h := view[int32](b[:4*head])
		a := Attention{Layer: int(h[0]), Tokens: int(h[1]), Heads: int(h[2]), HeadsKV: int(h[3]), KeyLength: int(h[4]), ValueLength: int(h[5])}
		b = b[4*head:]
		for _, part := range []struct {
			dst  *[]float32
			n, d int
		}{
			{&a.Q, a.Heads, a.KeyLength}, {&a.K, a.HeadsKV, a.KeyLength}, {&a.V, a.HeadsKV, a.ValueLength}, {&a.Out, a.Heads, a.ValueLength},
		} {
			size := 4 * a.Tokens * part.n * part.d
			if size < 0 || size > len(b) {
				return nil, fmt.Errorf("worker: %d captured records: number %d is cut off", n, i)
			}
			*part.dst = view[float32](b[:size:size])
			b = b[size:]
		}
		all = append(all, a)
	}
	return all, nil
}
