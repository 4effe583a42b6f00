package worker

import (
	"fmt"
	"strings"
)

// Config is what a model is opened with. Zero fields mean the default behind them.
type Config struct {
	Model     string // path of the GGUF
	Context   int    // n_ctx; the model's
	Batch     int    // n_batch; 2048
	Ubatch    int    // n_ubatch; 512, at most Batch
	Sequences int    // n_seq_max; 1
	Threads   int    // 1
	TypeK     string // of the unmodified cache: f32, f16, q8_0, q4_0; f16
	TypeV     string // the same

	FlashAttention bool
	Unified        bool    // kv_unified: one buffer for all sequences of the unmodified cache
	WindowOnly     bool    // swa_full=0: the unmodified cache holds no more of a sliding-window layer than its window
	KeepCache      bool    // offload_kqv=0: the cache of layers on devices is in main memory
	Embeddings     bool    // rows are embeddings, not logits
	ReadFile       bool    // mmap=0: the model's file is read, not mapped
	Capture        bool    // Capture and Captured will be used; LESS only
	Ahead          bool    // a context of the layers that predict further tokens
	RopeBase       float32 // rope_freq_base; the model's
	RopeScale      float32 // rope_freq_scale; the model's
	Rollback       int     // n_rs_seq: states of recurrent layers that a sequence can go back to, in tokens; 0

	GPULayers int    // layers on devices, the last ones first; 0
	Pretend   string // the one device is this machine's CPU under that backend's name, …
	Lacks     string // … which lacks that operation of ggml
	RPC       string // servers whose devices are among them: host:port, with commas between them

	LESS *LESS // nil: off
}

// LESS is struct lesskv_config of cgo/llama/lesskv-llama.h. Zero fields mean the default.
type LESS struct {
	Policy       string  // the adapter's, "peak" without one
	Budget       int     // slots per KV head
	BudgetShare  float64 // of the context
	BudgetBytes  int64   // for one sequence
	BudgetFull   float64 // the same, as a share of the bytes of the full f16 cache; none of the four: the runtime's default
	Slots        []int   // of every KV head that has a budget, layer by layer, in the place of a budget
	Heavy        *int    // the policy's own share
	Pinned       *int    // 1
	TypeK, TypeV string  // of the slots: f16, f32, q8_0, q4_0, or default, the runtime's; "q8_0,0=q4_0": of layer 0 another; f16
	Adapter      string  // path; none: sparse only
	ForceAdapter bool    // whatever the fingerprint says
	Reference    bool    // the kernels' reference loops
	OnDevice     bool    // slots, state and attention are where the layers are
	Profile      bool    // Profile will be used
}

// Share returns how many of some threads each of some workers gets that run a model of so many bytes at once. A small model is slower
// on two than on one: they wait for each other.
func Share(bytes int64, threads, workers int) int {
	if bytes < 128<<20 {
		return 1
	}
	return max(threads/workers, 1)
}

// Int returns a pointer to n, for the fields of LESS whose zero is not their default.
func Int(n int) *int { return &n }

func (c *Config) args() []any {
	args := []any{"path", c.Model, "flash_attn", c.FlashAttention, "kv_unified", c.Unified, "swa_full", !c.WindowOnly, "offload_kqv", !c.KeepCache,
		"embeddings", c.Embeddings, "mmap", !c.ReadFile, "capture", c.Capture, "ahead", c.Ahead}
	number := func(key string, n int) {
		if n != 0 {
			args = append(args, key, n)
		}
	}
	text := func(key, s string) {
		if s != "" {
			args = append(args, key, s)
		}
	}
	real := func(key string, x float64) {
		if x != 0 {
			args = append(args, key, x)
		}
	}
	number("n_ctx", c.Context)
	number("n_batch", c.Batch)
	number("n_ubatch", c.Ubatch)
	number("n_seq_max", c.Sequences)
	number("threads", c.Threads)
	number("rollback", c.Rollback)
	number("gpu_layers", c.GPULayers)
	text("rpc", c.RPC)
	text("pretend", c.Pretend)
	text("lacks", c.Lacks)
	text("type_k", c.TypeK)
	text("type_v", c.TypeV)
	real("rope_base", float64(c.RopeBase))
	real("rope_scale", float64(c.RopeScale))
	if l := c.LESS; l != nil {
		args = append(args, "less", true, "budget", l.Budget, "budget_bytes", l.BudgetBytes, "force_adapter", l.ForceAdapter,
			"reference", l.Reference, "on_device", l.OnDevice, "profile", l.Profile)
		text("policy", l.Policy)
		text("slots", strings.Trim(strings.ReplaceAll(fmt.Sprint(l.Slots), " ", ","), "[]"))
		real("budget_share", l.BudgetShare)
		real("budget_full", l.BudgetFull)
		if l.Heavy != nil {
			args = append(args, "heavy", *l.Heavy)
		}
		if l.Pinned != nil {
			args = append(args, "pinned", *l.Pinned)
		}
		text("less_type_k", l.TypeK)
		text("less_type_v", l.TypeV)
		text("adapter", l.Adapter)
	}
	return args
}

// Info describes the open model and its context.
type Info struct {
	Arch, Desc     string
	Vocab          int // tokens of the vocabulary
	Embd           int // width of an embedding
	Layers         int
	Heads, HeadsKV int // of layer 0
	TrainContext   int
	Window         int // n_swa: the sliding window, or 0
	Context        int // n_ctx, as llama.cpp rounded it
	Batch, Ubatch  int
	Sequences      int
	GraphsReused   int // decodes so far that used the graph before
	LESS           bool
}

func (r *reply) info() (Info, error) {
	i := Info{
		Arch: r.fields["arch"], Desc: r.fields["desc"],
		Vocab: r.int("n_vocab"), Embd: r.int("n_embd"), Layers: r.int("n_layer"),
		Heads: r.int("n_head"), HeadsKV: r.int("n_head_kv"),
		TrainContext: r.int("n_ctx_train"), Window: r.int("n_swa"), Context: r.int("n_ctx"),
		Batch: r.int("n_batch"), Ubatch: r.int("n_ubatch"), Sequences: r.int("n_seq_max"),
		GraphsReused: r.int("n_reused"), LESS: r.bool("less"),
	}
	return i, r.err
}

// Open loads a model and makes a context. One can be open at a time.
func (w *Worker) Open(c Config) (Info, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, err := w.exchange("open", nil, c.args()...)
	if err != nil {
		return Info{}, err
	}
	w.info, err = r.info()
	return w.info, err
}

// CloseModel frees the model and its context, so that another can be opened.
func (w *Worker) CloseModel() error {
	_, err := w.call("close", nil)
	return err
}

// Info describes what is open.
func (w *Worker) Info() (Info, error) {
	r, err := w.call("info", nil)
	if err != nil {
		return Info{}, err
	}
	return r.info()
}

// Memory is what the process occupies, in bytes; -1 where the system does not say.
type Memory struct {
	Resident int64
	Peak     int64 // the most that was ever resident
	Anon     int64 // resident and not of a file
}

// Memory reads the process's memory now.
func (w *Worker) Memory() (Memory, error) {
	r, err := w.call("memory", nil)
	if err != nil {
		return Memory{}, err
	}
	m := Memory{Resident: r.integer("rss"), Peak: r.integer("peak"), Anon: r.integer("anon")}
	return m, r.err
}

// Log returns what llama.cpp logged since the last time, at most 1 MiB.
func (w *Worker) Log() (string, error) {
	r, err := w.call("log", nil)
	if err != nil {
		return "", err
	}
	return string(r.payload), nil
}

// Floats returns n elements of a ggml type, given by its number and as they lie in a model's file.
func (w *Worker) Floats(ggmlType uint32, n int, data []byte) ([]float32, error) {
	r, err := w.call("floats", data, "type", int(ggmlType), "n", n)
	if err != nil {
		return nil, err
	}
	return view[float32](r.payload), nil
}
