// Package bench measures speed and memory of the LESS cache beside the unmodified runtime: prompt and decoding at growing
// contexts, every method in a process of its own, in rounds that visit all of them, so that a ratio compares what ran side by
// side.
//
// A context of 32,768 tokens is not decoded. The unmodified cache is filled with copies of one micro-batch's keys and values
// (worker.Fill). LESS's cells beyond its budget are all the same: the slots are full, every micro-batch evicts as much as it
// brings, and no cost depends on the position; one state, decoded in full until then, serves them all. CompareFilled measures
// that both ways to reach a cell give the same speed.
package bench

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/describe"
	"github.com/lesskv/lesskv/weights/memory"
)

const (
	sampleTime = 700 * time.Millisecond // that a sample of decoding takes, about
	minTokens  = 4                      // and what it has at least and at most
	maxTokens  = 64
	warmTokens = 2                            // a new graph, cold caches
	headroom   = 2 * (maxTokens + warmTokens) // one sequence, and then all of them
)

// Run measures. It fails with ErrOption, with ErrMemory before anything has begun, and with what the workers answer.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	b := &bench{ctx: ctx, o: &o, rng: newRand()}
	defer b.close()
	if err := b.load(); err != nil {
		return nil, err
	}
	if err := b.fits(); err != nil {
		return nil, err
	}
	if o.Processes {
		if err := b.processes(); err != nil {
			return nil, err
		}
	} else if len(o.Contexts) > 0 {
		if err := b.open(); err != nil {
			return nil, err
		}
		if err := b.rounds(); err != nil {
			return nil, err
		}
		if err := b.rates(); err != nil {
			return nil, err
		}
	}
	b.close()
	if o.Growth > 0 {
		if err := b.growth(); err != nil {
			return nil, err
		}
	}
	return &b.result, nil
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(6, 1)) }

type bench struct {
	ctx     context.Context
	o       *Options
	rng     *rand.Rand
	path    string
	model   *weights.Model
	adapter string
	budget  int // B
	runners []*runner
	stream  []uint64 // what is read to measure the memory
	result  Result
}

// load finds the model or builds it, and its adapter.
func (b *bench) load() error {
	o := b.o
	patched, err := worker.Path(worker.Patched)
	if err != nil {
		return err
	}
	for _, m := range o.Methods {
		if _, err := o.worker(m); err != nil {
			return err
		}
	}
	name := strings.TrimSuffix(filepath.Base(o.Model), ".gguf")
	b.path = o.Model
	s, noShape := FindShape(o.Model)
	if _, err := os.Stat(o.Model); noShape != nil && err != nil {
		return noShape
	}
	if noShape == nil {
		o.Progress(0, 1, "making "+name)
		if b.path, err = s.Build(b.ctx, o.Dir, o.Quant, patched, o.Threads); err != nil {
			return err
		}
		name += "-" + strings.ToUpper(o.Quant)
	}
	if b.model, err = weights.ReadModel(b.path); err != nil {
		return err
	}
	var a *weights.Adapter
	if b.adapter = o.Adapter; b.adapter != "" {
		if a, err = weights.Read(b.adapter); err != nil {
			return err
		}
		o.Rank, o.Hidden = a.Largest()
		_, _, types := describe.Kernels(a)
		o.sizes, o.types = describe.Sizes(a), strings.Join(types, " and ")
		if o.Policy == "" {
			o.Policy = a.Trained.Policy
		}
	}
	if o.Policy == "" {
		o.Policy = "peak"
	}
	if o.SlotType == "" && o.OnDevice {
		o.SlotType = "f16"
	}
	if o.SlotType == "" {
		o.SlotType = worker.DefaultSlots(b.model, a)
	}
	if b.adapter == "" {
		if err := b.affordsKernels(); err != nil {
			return err
		}
		if err := os.MkdirAll(o.Dir, 0o755); err != nil {
			return err
		}
		if b.adapter, err = buildAdapter(b.model, o.Dir, name, o); err != nil {
			return err
		}
		o.types = o.KernelType.String()
	}
	if b.budget, err = b.slots(o.top()); err != nil {
		return err
	}
	b.result = newResult(o, name, patched, b.model, b.budget)
	if o.Roofline {
		if b.result.Weights, err = tokenWeights(b.path); err != nil {
			return err
		}
	}
	return nil
}

// slots returns the slots of a KV head at a context. A budget in bytes pays for phi and psi too; random ones bring none.
func (b *bench) slots(context int) (int, error) {
	a, err := weights.Read(b.adapter)
	if err != nil {
		return 0, err
	}
	if b.o.Adapter == "" && !b.o.Budget.InBytes() {
		a = nil
	}
	bytes, err := b.cache(context, b.o.Budget, b.o.SlotType, a)
	return bytes.Budget, err
}

// cache returns what a LESS cache of one sequence takes.
func (b *bench) cache(context int, budget worker.Budget, slots string, a *weights.Adapter) (memory.Bytes, error) {
	c := memory.Cache{Context: context, Budget: budget, Policy: b.o.Policy, Pinned: 1, Adapter: a, Types: b.types(slots)}
	bytes, err := memory.Less(b.model, c)
	if err != nil {
		return bytes, fmt.Errorf("bench: %w: %w", err, ErrOption)
	}
	return bytes, nil
}

// affordsKernels refuses random phi and psi that the machine has no memory for.
func (b *bench) affordsKernels() error {
	m := b.model
	need := 8 * int64(m.Sum(func(s weights.Shape) int { // in f32, and as they are written
		shape := kernels.TrainShape{Shape: kernels.Shape{Heads: s.Heads, HeadsKV: s.HeadsKV, KeySize: s.KeyLength, Rank: b.o.Rank, Hidden: b.o.Hidden}, ValueSize: s.ValueLength}
		return shape.Weights()
	}))
	if have, ok := limits.Memory(); ok && need > have {
		return fmt.Errorf("bench: random phi and psi of rank %d and hidden size %d take about %s, %s are free; lower one of the two: %w",
			b.o.Rank, b.o.Hidden, memory.Size(need), memory.Size(have), ErrMemory)
	}
	return nil
}

// fits refuses what the machine has no memory for.
func (b *bench) fits() error {
	have, ok := limits.Memory()
	if !ok {
		return nil
	}
	stat, err := os.Stat(b.path)
	if err != nil {
		return err
	}
	m := b.model
	need, file := 0., float64(stat.Size()) // each process has its own: what ggml repacks is not shared, as a mapped file is
	if b.o.Roofline {
		need += float64(streamed)
	}
	rows := float64(b.context()) // of one sequence
	compute, sequences := float64(memory.Compute(m, b.o.Ubatch)), max(1, b.o.Sequences)
	state := 0. // that a cache is filled from: one after the other
	for _, method := range b.o.Methods {
		need += file + compute
		if method.Tree == worker.Patched {
			bytes, err := b.cache(b.context(), worker.Budget{Tokens: b.methodSlots(method)}, b.slotType(method), nil)
			if err != nil {
				return err
			}
			need += float64(uint64(sequences)*bytes.Slots) + float64(memory.Scratch(m, bytes.Most, b.o.Ubatch, b.o.Threads))
			continue
		}
		one := rows * float64(b.rowBytes(method.Type))
		size := float64(sequences) * one
		state = max(state, one)
		if !method.FA {
			size += 4 * rows * float64(b.o.Ubatch) * float64(m.Max(func(s weights.Shape) int { return s.Heads })) // the logits of a micro-batch
		}
		need += size
	}
	need += state
	if need > float64(have) {
		return fmt.Errorf("bench: %s with %d methods at %d tokens, in micro-batches of %d, takes about %s, %s are free; ask for fewer methods, a smaller context or micro-batch: %w",
			b.result.Model, len(b.o.Methods), b.o.top(), b.o.Ubatch, memory.Size(int64(need)), memory.Size(have), ErrMemory)
	}
	return nil
}

// slotType is the type of a method's slots.
func (b *bench) slotType(m Method) string { return cmp.Or(m.Slots, b.o.SlotType) }

// methodSlots returns how many slots a KV head has on average.
func (b *bench) methodSlots(m Method) int {
	if !m.SameBytes {
		return b.budget
	}
	return b.budget * b.slotBytes(b.o.SlotType) / max(1, b.slotBytes(m.Slots)) // 0: heads don't fill the type's blocks, which fits refuses
}

// types are those of each layer's slots, of a text that the options or an adapter have.
func (b *bench) types(kind string) []weights.SlotTypes {
	types, _ := worker.ModelTypes(kind, b.model.Layers) // checked with the options
	return types
}

// slotBytes is what one slot of each KV head that has a budget takes; 0 where heads do not fill the type's blocks.
func (b *bench) slotBytes(kind string) int {
	n, _ := memory.SlotOfEach(b.model, b.types(kind))
	return int(n)
}

// rowBytes is what one token takes in all layers of an unmodified cache.
func (b *bench) rowBytes(kind string) int64 {
	t, _, _ := worker.GGUFTypes(kind) // of Methods
	const some = 256                  // tokens, a multiple of what contexts are rounded to
	n, _ := memory.Full(b.model, some, t)
	return int64(n / some)
}

// context is n_ctx of a sequence.
func (b *bench) context() int { return memory.Pad(b.o.top() + headroom) }

func (b *bench) tokens(n int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = b.rng.Int32N(int32(b.model.Vocab))
	}
	return tokens
}

func (b *bench) less(m Method) *worker.LESS {
	l := &worker.LESS{Policy: b.o.Policy, Budget: b.methodSlots(m), OnDevice: b.o.OnDevice, Profile: b.o.Profile}
	l.TypeK, l.TypeV, _ = worker.SlotTypes(b.slotType(m)) // checked with the options
	if m.LESS {
		l.Adapter = b.adapter
	}
	if m.Unequal {
		l.Budget, l.Slots = 0, b.unequal()
	}
	return l
}

// unequal returns how many slots each KV head has where every other one has a quarter of the budget and the next one the rest of two:
// as many in all as with equal budgets.
func (b *bench) unequal() []int {
	var slots []int
	for i := range b.model.Layers {
		if b.model.HasBudget(i) {
			slots = append(slots, make([]int, b.model.Layer(i).HeadsKV)...)
		}
	}
	for i := range slots {
		slots[i] = b.budget
		if i%2 == 1 {
			slots[i-1] = b.budget / 4
			slots[i] = 2*b.budget - slots[i-1]
		}
	}
	return slots
}

// start opens a method in a process of its own, with its layers on these servers' devices first.
func (b *bench) start(m Method, context int, less *worker.LESS, servers string) (*worker.Worker, error) {
	path, err := b.o.worker(m)
	if err != nil {
		return nil, err
	}
	w, err := worker.Start(b.ctx, path)
	if err != nil {
		return nil, err
	}
	sequences := max(1, b.o.Sequences)
	_, err = w.Open(worker.Config{Model: b.path, Context: sequences * context, Sequences: sequences, Batch: b.o.Ubatch, Ubatch: b.o.Ubatch, Threads: b.o.Threads,
		TypeK: m.Type, TypeV: m.Type, FlashAttention: m.FA, ReadFile: b.o.Processes, GPULayers: b.o.GPULayers, RPC: servers, LESS: less})
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (b *bench) open() error {
	servers, err := worker.Servers(b.o.RPC, len(b.o.Methods))
	if err != nil {
		return err
	}
	for i, m := range b.o.Methods {
		b.o.Progress(0, 1, "opening "+m.Name)
		var less *worker.LESS
		if m.Tree == worker.Patched {
			less = b.less(m)
		}
		w, err := b.start(m, b.context(), less, servers[i])
		if err != nil {
			return fmt.Errorf("bench: %s: %w", m.Name, err)
		}
		r := &runner{bench: b, Method: m, w: w}
		b.runners = append(b.runners, r)
		if err := r.setup(); err != nil {
			return fmt.Errorf("bench: %s: %w", m.Name, err)
		}
		b.o.Progress(float64(i), float64(len(b.o.Methods)), "opened "+m.Name)
	}
	return nil
}

func (b *bench) close() {
	for _, r := range b.runners {
		r.w.Close()
	}
	b.runners, b.stream = nil, nil
}

// rounds takes every sample.
func (b *bench) rounds() error {
	total := float64(b.o.Repeat * len(b.o.Contexts) * len(b.runners))
	done := 0.
	for round := range b.o.Repeat {
		for _, c := range b.o.Contexts {
			for _, r := range b.runners {
				b.o.Progress(done, total, fmt.Sprintf("round %d: %s at %d", round+1, r.Name, c))
				if err := r.measure(round, c); err != nil {
					return fmt.Errorf("bench: %s at %d tokens: %w", r.Name, c, err)
				}
				done++
			}
		}
		if b.o.Roofline {
			b.bandwidth()
		}
	}
	b.o.Progress(total, total, "")
	return nil
}

// rates compares the attention node of a prompt with the runtime's matrix product of the same shapes.
func (b *bench) rates() error {
	i := slices.IndexFunc(b.runners, func(r *runner) bool { return r.LESS })
	if i < 0 || !b.o.Profile || b.model.PerLayer != nil { // no one product has the shape of all layers
		return nil
	}
	r, m := b.runners[i], b.model
	for _, c := range b.o.Contexts {
		if !b.o.prompt(c) || c-b.o.Ubatch < b.budget {
			continue
		}
		u := b.o.Ubatch
		shape := worker.Matmul{HeadSize: m.KeyLength, Pairs: b.budget + u/2, Tokens: u, Heads: m.Heads, HeadsKV: m.HeadsKV, Threads: b.o.Threads}
		t, err := r.w.Matmul(shape)
		if err != nil {
			return err
		}
		pairs := float64(b.budget) + float64(u+1)/2
		flops := 2 * float64(m.KeyLength+m.ValueLength) * pairs * float64(u) * float64(m.Heads) * float64(m.Layers)
		var node []float64
		for _, s := range b.result.Samples {
			if s.Method == r.Name && s.Context == c && s.Phase == Prompt {
				node = append(node, s.Node)
			}
		}
		b.result.Node = &Node{Context: c, Node: flops / median(node) * 1e-9, Matmul: shape.Flops() / t.Seconds() * 1e-9}
		return nil
	}
	return nil
}
