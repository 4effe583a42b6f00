package bench

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

const maxSequences = 256 // LLAMA_MAX_SEQ

// The faults that errors of this package wrap.
var (
	ErrOption = errors.New("option that makes no sense")
	ErrMemory = errors.New("not enough memory")
)

// A Method is one way to hold the cache.
type Method struct {
	Name string // in tables and JSON
	Tree worker.Tree
	Type string // of the unmodified cache: f16, q8_0, q4_0
	FA   bool   // with flash attention
	LESS bool   // with phi and psi; sparse only without. Patched tree only

	// Patched tree only
	Unequal   bool   // heads share the slots unequally
	Slots     string // type of the slots, as Options.SlotType says without one
	SameBytes bool   // as many of them as take the bytes that the budget takes with slots of Options.SlotType

	Other bool // on the runtime in Options.OtherBuild
}

// otherSuffix ends the names of methods on the other runtime.
const otherSuffix = "-other"

// other returns the method on the other runtime.
func (m Method) other() Method {
	m.Name, m.Other = m.Name+otherSuffix, true
	return m
}

// special says whether a method is measured only where its name is given.
func (m Method) special() bool { return m.Unequal || m.Slots != "" }

// Methods lists all of them, the unmodified ones first.
func Methods() []Method {
	return []Method{
		{Name: "f16", Tree: worker.Unmodified, Type: "f16"},
		{Name: "f16-fa", Tree: worker.Unmodified, Type: "f16", FA: true},
		{Name: "q8_0-fa", Tree: worker.Unmodified, Type: "q8_0", FA: true},
		{Name: "q4_0-fa", Tree: worker.Unmodified, Type: "q4_0", FA: true},
		{Name: "sparse", Tree: worker.Patched},
		{Name: "less", Tree: worker.Patched, LESS: true},
		{Name: "sparse-unequal", Tree: worker.Patched, Unequal: true},
		{Name: "less-q8_0", Tree: worker.Patched, LESS: true, Slots: "q8_0"},
		{Name: "less-q4_0", Tree: worker.Patched, LESS: true, Slots: "q4_0"},
		{Name: "less-q8_0-bytes", Tree: worker.Patched, LESS: true, Slots: "q8_0", SameBytes: true},
		{Name: "less-q4_0-bytes", Tree: worker.Patched, LESS: true, Slots: "q4_0", SameBytes: true},
	}
}

// FindMethods returns the methods of the names, or if there are none all but those with unequal heads or slots of a type of their own. It
// fails with ErrOption on a name that is no method's.
func FindMethods(names []string) ([]Method, error) {
	all := Methods()
	if len(names) == 0 {
		return slices.DeleteFunc(all, Method.special), nil
	}
	var list []Method
	for _, name := range names {
		i := slices.IndexFunc(all, func(m Method) bool { return m.Name == name })
		if i < 0 {
			known := make([]string, len(all))
			for i, m := range all {
				known[i] = m.Name
			}
			return nil, fmt.Errorf("bench: no method %q: want some of %s: %w", name, strings.Join(known, ", "), ErrOption)
		}
		list = append(list, all[i])
	}
	return list, nil
}

// Options say what is to be measured. Zero fields mean the default behind them.
type Options struct {
	Model string // path of a GGUF, or the name of a shape
	Quant string // type of a shape's matrices; Q4_0
	Dir   string // where shapes and random adapters lie

	Methods     []Method      // all but special ones
	Contexts    []int         // ascending; 0 is an empty cache; 512, 2k, 8k, 32k
	PromptLimit int           // prompts are measured up to this context; -1: none; all
	Repeat      int           // 5
	Cell        time.Duration // no more repetitions of a cell's prompt after so long; 30 s

	Budget     worker.Budget // of the largest context; the zero one is the runtime's default
	Policy     string        // the adapter's, peak without one
	SlotType   string        // of keys and values, or one for each, q4_0,q8_0; the runtime's default
	Adapter    string        // path; random phi and psi
	Rank       int           // of random phi and psi; 8
	Hidden     int           // 16
	KernelType gguf.Type     // F16; F32 can't be asked for, as it is the zero

	OtherBuild string // build folder of another assembled runtime, on which every method is measured too; none

	Sequences int    // 2 or more: how fast so many decode together, too
	Ubatch    int    // 512
	Threads   int    // all CPUs
	GPULayers int    // layers on devices; none
	OnDevice  bool   // LESS on them too, and its slots f16 where nothing else is said
	RPC       string // servers whose devices are among them, host:port with commas between them: as many for each method
	Profile   bool   // where LESS's time goes
	Roofline  bool   // what share of the memory's bandwidth decoding reaches
	Processes bool   // what a process takes that is opened for each of the contexts
	Growth    int    // feed so many tokens, and say how much the peak grew from 2,048 on; 0: not

	Progress func(done, total float64, what string) // share of the work, and what is done next

	sizes string // of the adapter's layers, in words
	types string // of its phi and psi
}

// quants are the types that the worker quantises to.
var quants = []string{"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL"}

func (o *Options) fill() error {
	for _, d := range []struct {
		field *int
		value int
	}{{&o.Repeat, 5}, {&o.Rank, 8}, {&o.Hidden, 16}, {&o.Ubatch, 512}, {&o.Threads, limits.CPUs()}, {&o.PromptLimit, 1 << 30}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, d := range []struct {
		field *string
		value string
	}{{&o.Quant, "Q4_0"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if o.KernelType == gguf.F32 {
		o.KernelType = gguf.F16
	}
	if o.Cell == 0 {
		o.Cell = 30 * time.Second
	}
	if len(o.Methods) == 0 {
		o.Methods, _ = FindMethods(nil)
	}
	if o.OtherBuild != "" {
		var both []Method
		for _, m := range o.Methods {
			both = append(both, m, m.other()) // one after the other in each round
		}
		o.Methods = both
	}
	if o.Contexts == nil {
		o.Contexts = []int{512, 2048, 8192, 32768}
	}
	if o.Progress == nil {
		o.Progress = func(float64, float64, string) {}
	}
	if _, _, err := worker.GGUFTypes(o.SlotType); err != nil && o.SlotType != "" {
		return fmt.Errorf("bench: %w: %w", err, ErrOption)
	}
	if err := o.Budget.Check(); err != nil {
		return fmt.Errorf("bench: %w: %w", err, ErrOption)
	}
	if _, err := kernels.PolicyHeavy(o.Policy, 64); err != nil && o.Policy != "" {
		return fmt.Errorf("bench: %w: %w", err, ErrOption)
	}
	if !slices.Contains(quants, strings.ToUpper(o.Quant)) {
		return fmt.Errorf("bench: matrices in %s: want one of %s: %w", o.Quant, strings.Join(quants, ", "), ErrOption)
	}
	if o.Ubatch > trainedContext {
		return fmt.Errorf("bench: micro-batches of %d tokens: want 1 to %d, as many as a context has at most: %w", o.Ubatch, trainedContext, ErrOption)
	}
	slices.Sort(o.Contexts)
	o.Contexts = slices.Compact(o.Contexts)
	for _, c := range o.Contexts {
		if c != 0 && c < o.Ubatch || c > trainedContext {
			return fmt.Errorf("bench: a context of %d tokens: want 0, or %d (a micro-batch) to %d: %w", c, o.Ubatch, trainedContext, ErrOption)
		}
	}
	if o.Repeat < 1 || o.Ubatch < 1 || o.Threads < 1 || o.Rank < 1 || o.Hidden < 1 || o.GPULayers < 0 || o.Growth < 0 {
		return fmt.Errorf("bench: %d repetitions, micro-batches of %d, %d threads, rank %d, hidden size %d: %w",
			o.Repeat, o.Ubatch, o.Threads, o.Rank, o.Hidden, ErrOption)
	}
	if o.Sequences < 0 || o.Sequences > min(maxSequences, o.Ubatch) {
		return fmt.Errorf("bench: %d sequences: want at most %d, and no more than a micro-batch has tokens (%d): %w", o.Sequences, maxSequences, o.Ubatch, ErrOption)
	}
	if max(o.Rank, o.Hidden) > weights.MaxSize || o.Growth > 1<<20 {
		return fmt.Errorf("bench: rank %d, hidden size %d, a growth to %d tokens: want at most %d, %d and %d: %w", o.Rank, o.Hidden, o.Growth, weights.MaxSize, weights.MaxSize, 1<<20, ErrOption)
	}
	if _, err := worker.Servers(o.RPC, len(o.Methods)); err != nil && !o.Processes { // whose processes come one by one
		return fmt.Errorf("bench: %w: %w", err, ErrOption)
	}
	if len(o.Contexts) == 0 && o.Growth == 0 {
		return fmt.Errorf("bench: no contexts: %w", ErrOption)
	}
	return nil
}

// worker returns the program that runs a method.
func (o *Options) worker(m Method) (string, error) {
	if m.Other {
		return worker.In(layout.Layout(o.OtherBuild), m.Tree)
	}
	return worker.Path(m.Tree)
}

// top is the largest context.
func (o *Options) top() int {
	if len(o.Contexts) == 0 {
		return o.Growth
	}
	return max(o.Contexts[len(o.Contexts)-1], o.Ubatch)
}

// prompt reports whether the last micro-batch of a prompt of so many tokens is measured.
func (o *Options) prompt(context int) bool { return context > 0 && context <= o.PromptLimit }
