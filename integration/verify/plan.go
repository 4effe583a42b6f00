package verify

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
)

// The faults that errors of this package wrap.
var (
	ErrPlan   = errors.New("plan that makes no sense")
	ErrText   = errors.New("not enough text")
	ErrMemory = errors.New("more memory than the bound")
	ErrModel  = errors.New("model that LESS does not serve")
)

// Methods, as rows name them.
const (
	Full     = "full"
	F32      = "f32"
	Q8       = "q8_0"
	Q4       = "q4_0"
	Window   = "window"
	Sparse   = "sparse"
	Plus     = "Baseline+"
	PlusPlus = "Baseline++"
	LESS     = "LESS"

	// Checked in every run.
	Off            = "off"             // the patched runtime without LESS
	NothingEvicted = "nothing-evicted" // a budget of the whole context
	Reference      = "reference"       // the kernels' reference: plain loops
)

// Methods lists what can be asked for, in the order of a table.
func Methods() []string {
	return []string{Full, F32, Q8, Q4, Window, Sparse, Plus, PlusPlus, LESS}
}

// Policies lists the policies.
func Policies() []string { return kernels.PolicyNames() }

// A Budget is what a sparse cache keeps for each layer and KV head.
type Budget = worker.Budget

// Tokens is a budget of n slots.
func Tokens(n int) Budget { return Budget{Tokens: n} }

// Share is a budget in parts of the context: 0.05 is 5 %, at least 64 slots ("Budgets" in algorithm.md).
func Share(of float64) Budget { return Budget{Share: of} }

// A Prompt is what a generation begins with, and, if there is one, what it should say.
type Prompt struct {
	Prompt    string `json:"prompt"`
	Reference string `json:"reference,omitempty"`
}

// Plan says what is measured. Zero fields mean the default behind them; -1 is none where 0 is not.
type Plan struct {
	Model    string   // path of the GGUF
	Adapters []string // paths; of those of a policy the one trained for the nearest budget serves
	Force    bool     // take adapters that were made for other weights of the same shape

	Text    string  // what is read
	Tokens  []int32 // the same, tokenised
	Windows int     // sequences to read; 6
	Stride  int     // tokens between the starts of two; evenly over the text
	NoStart bool    // windows as they lie in the text, without the model's own first token before each

	Contexts []int    // tokens of a window, and n_ctx; the model's, 2,048 at most
	Budgets  []Budget // what the first adapter's phi and psi were trained for, else the runtime's default, which is the zero Budget too
	Ubatches []int    // tokens of a micro-batch; 32. Generations, recall tasks and most pictures are of the first
	Policies []string // all
	Methods  []string // all
	SlotType string   // of sparse caches' keys and values, as worker.SlotTypes reads it; f16

	Bytes     []Budget // instead of budgets and methods: what is best under so many bytes, of the policies with and without each adapter
	SlotTypes []string // and of slots of these types; CandidateTypes

	Generate int      // tokens of a greedy generation; 48
	Prompts  []Prompt // what it begins with; the first half of each window, its continuation being the reference
	Recall   []string // kinds of recall tasks: passkey, needle, needles; all. []string{} is none
	Tasks    int      // of each kind, length and depth; 1
	Template string   // what a recall task is put into, as a chat model wants it, with {prompt} in it; the prompt alone

	Read  int   // tokens that are read without a full cache beside it, at the budgets; none
	Peaks []int // contexts at which the peak memory of both runtimes is measured; none

	Samples int    // of the bootstrap; 1000
	Block   int    // consecutive positions that are drawn together; 64
	Seed    uint64 // of the draws; 1
	Buckets int    // of positions, along the sequence; 16

	Memory  int64 // bytes that all processes together may take; four fifths of what is available
	Threads int   // all processes together; the machine's

	GPULayers    int            // layers on devices; none
	DeviceMemory int64          // bytes that all processes on the same devices may take there; four fifths of what is free
	RPC          string         // servers whose devices are among them, host:port with commas between them: half for the full cache, half for the one beside it
	Work         string         // folder where finished work is kept, so that the same plan goes on where it was stopped; none
	Progress     func(Progress) // is told how far it has come

	// Workers: programs of either tree; those of the assembled runtime.
	Worker, UnmodifiedWorker string
}

// Progress tells how far a run has come.
type Progress struct {
	Stage       string
	Done, Total int64 // of the whole run, in units of computing
}

func (p *Plan) wants(method string) bool { return slices.Contains(p.Methods, method) }

// fill puts in the defaults and refuses what makes no sense.
func (p *Plan) fill(modelContext int) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("verify: "+format+": %w", append(args, ErrPlan)...)
	}
	for _, d := range []struct {
		field     *int
		name      string
		otherwise int
		least     int
	}{
		{&p.Windows, "windows", 6, 1}, {&p.Stride, "stride", 0, 0}, {&p.Generate, "generated tokens", 48, -1}, {&p.Read, "tokens to read", 0, 0},
		{&p.Samples, "samples", 1000, 10}, {&p.Block, "positions of a block", 64, 1}, {&p.Buckets, "buckets", 16, 1},
		{&p.Tasks, "recall tasks", 1, 1}, {&p.Threads, "threads", limits.CPUs(), 1}, {&p.GPULayers, "GPU layers", 0, 0},
	} {
		if *d.field == 0 {
			*d.field = d.otherwise
		}
		if *d.field < d.least {
			return fail("%d %s: want %d at least", *d.field, d.name, max(d.least, 0))
		}
	}
	if _, err := worker.Servers(p.RPC, 2); err != nil {
		return fail("%v", err)
	}
	if p.Seed == 0 {
		p.Seed = 1
	}
	if p.Contexts == nil {
		p.Contexts = []int{min(modelContext, 2048)}
	}
	if p.Budgets == nil {
		p.Budgets = []Budget{{}}
	}
	if p.Ubatches == nil {
		p.Ubatches = []int{32}
	}
	if p.Policies == nil {
		p.Policies = Policies()
	}
	if p.Methods == nil {
		p.Methods = Methods()
	}
	if p.SlotType == "" {
		p.SlotType = "f16"
	}
	if _, _, err := worker.SlotTypes(p.SlotType); err != nil {
		return fail("%v", err)
	}
	if p.Recall == nil {
		p.Recall = RecallKinds()
	}
	if p.Template == "" {
		p.Template = promptMark
	}
	if !strings.Contains(p.Template, promptMark) {
		return fail("a template without %s", promptMark)
	}
	for _, l := range []struct {
		name         string
		have, wanted []string
	}{{"policy", p.Policies, Policies()}, {"method", p.Methods, Methods()}, {"recall task", p.Recall, RecallKinds()}} {
		for _, s := range l.have {
			if !slices.Contains(l.wanted, s) {
				return fail("%s %q: want some of %s", l.name, s, strings.Join(l.wanted, ", "))
			}
		}
	}
	for _, c := range p.Contexts {
		if c < 2 {
			return fail("a context of %d tokens: want 2 at least", c)
		}
	}
	for _, c := range p.Peaks {
		if c < 16 {
			return fail("peak memory at a context of %d tokens: want 16 at least", c)
		}
	}
	for _, u := range p.Ubatches {
		if u < 1 {
			return fail("micro-batches of %d tokens: want 1 at least", u)
		}
		for _, c := range p.Contexts {
			if u > c {
				return fail("micro-batches of %d tokens: want at most the context of %d", u, c)
			}
		}
	}
	for _, b := range p.Bytes {
		if !b.InBytes() {
			return fail("what is best under %d tokens, %g of the context: want bytes", b.Tokens, b.Share)
		}
	}
	if p.SlotTypes == nil {
		p.SlotTypes = CandidateTypes()
	}
	for _, t := range p.SlotTypes {
		if _, _, err := worker.SlotTypes(t); err != nil {
			return fail("%v", err)
		}
	}
	for _, b := range p.Budgets {
		if err := b.Check(); err != nil {
			return fail("%v", err)
		}
	}
	p.Contexts, p.Ubatches, p.Budgets = unique(p.Contexts), unique(p.Ubatches), unique(p.Budgets)
	p.Policies, p.Bytes, p.SlotTypes = unique(p.Policies), unique(p.Bytes), unique(p.SlotTypes)
	return nil
}

func unique[T comparable](all []T) []T {
	var out []T
	for _, x := range all {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}
