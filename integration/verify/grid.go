package verify

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
)

// A run is one way to hold the cache, at one context and micro-batch: a worker that is opened once.
type run struct {
	tree     worker.Tree
	config   worker.Config // without model, batch and threads, which change no result
	adapter  *adapter
	few      bool  // the first window is enough
	optional bool  // a runtime that can't do it is noted, and nothing else
	bytes    int64 // of the cache, as planned; what is reported is what the worker says
}

// A group is the runs of one context and micro-batch, and the rows that are made of them.
type group struct {
	context, ubatch int
	texts           bool // generations and recall tasks are made here: at a context's first micro-batch
	windows         [][]int32
	full            *run
	runs            []*run // without full
	rows            []*row
	byKey           map[string]*run // every run, by what it depends on
}

// A row is a run seen from one budget.
type row struct {
	Row
	run  *run
	fast *run // of a reference run: what it must agree with
}

// An adapter is a file that was given, read.
type adapter struct {
	*weights.Adapter
	path string
}

func (a *adapter) name() string { return filepath.Base(a.path) }

func (a *adapter) budget() int { return a.Trained.Heavy + a.Trained.Recent }

// info is what the report says of it.
func (a *adapter) info() AdapterInfo {
	rank, hidden := a.Largest()
	ranks, hiddens := a.Sizes()
	t := a.Trained
	return AdapterInfo{a.name(), a.SHA256, t.Policy, t.Heavy, t.Recent, t.Ubatch, rank, hidden, ranks, hiddens, int64(a.Bytes())}
}

// choose returns the adapter of a policy that was trained for the budget that is nearest in proportion, or nil.
func choose(all []*adapter, policy string, budget int) *adapter {
	var best *adapter
	distance := func(a *adapter) float64 { return math.Abs(math.Log(float64(a.budget()) / float64(budget))) }
	for _, a := range all {
		if a.Trained.Policy == policy && a.budget() > 0 && (best == nil || distance(a) < distance(best)) {
			best = a
		}
	}
	return best
}

// cacheTypes are the runtime's own caches: bits per element, and what they need.
var cacheTypes = map[string]struct {
	bits  float64
	block int
	flash bool
}{
	"f16": {16, 1, false}, F32: {32, 1, false}, Q8: {8.5, 32, true}, Q4: {4.5, 32, true},
}

// groups plans every run of the plan.
func (v *verifier) groups() ([]*group, error) {
	var all []*group
	for _, context := range v.plan.Contexts {
		windows := v.windows(context)
		for _, ubatch := range v.plan.Ubatches {
			g := &group{context: context, ubatch: ubatch, windows: windows, texts: ubatch == v.plan.Ubatches[0]}
			if err := v.fillGroup(g, len(all) == 0); err != nil {
				return nil, err
			}
			all = append(all, g)
		}
	}
	return all, nil
}

// add plans a run of a group, once.
func (v *verifier) add(g *group, r run) *run {
	k := v.key("run", g, &r)
	if g.byKey[k] == nil {
		g.byKey[k] = &r
		if g.full != nil {
			g.runs = append(g.runs, &r)
		}
	}
	return g.byKey[k]
}

// cache is one of the runtime's own caches.
func (v *verifier) cache(g *group, name string) run {
	t := cacheTypes[name]
	c := worker.Config{Context: g.context, Ubatch: g.ubatch, WindowOnly: true, FlashAttention: t.flash, GPULayers: v.plan.GPULayers}
	if name != "f16" {
		c.TypeK, c.TypeV = name, name
	}
	return run{tree: worker.Unmodified, config: c, optional: name != "f16", bytes: int64(float64(v.fullBytes[g.context]) * t.bits / 16)}
}

// less is a sparse cache, with an adapter or (nil) without. The types are checked with the plan.
func (v *verifier) less(g *group, policy, types string, slots int, a *adapter) run {
	l := &worker.LESS{Policy: policy, Budget: min(slots, g.context)}
	if types != "f16" {
		l.TypeK, l.TypeV, _ = worker.SlotTypes(types)
	}
	r := run{tree: worker.Patched, config: worker.Config{Context: g.context, Ubatch: g.ubatch, WindowOnly: true, GPULayers: v.plan.GPULayers, LESS: l}, adapter: a}
	r.bytes = int64(v.takes(g, policy, types, l.Budget, a).Cache())
	if a != nil {
		l.Adapter = a.path
	}
	return r
}

// takes is what one sequence of a sparse cache takes, with an adapter or (nil) without; nothing of a cache that the runtime refuses.
func (v *verifier) takes(g *group, policy, types string, slots int, a *adapter) memory.Bytes {
	c := memory.Cache{Context: g.context, Budget: Budget{Tokens: min(slots, g.context)}, Policy: policy, Pinned: 1, Types: v.types(types)}
	if a != nil {
		c.Adapter = a.Adapter
	}
	bytes, _ := memory.Less(v.model, c)
	return bytes
}

// addRow plans a row of a group: what is known of it before it is measured, and its run.
func (g *group) addRow(r Row, x *run) *row {
	r.Context, r.Ubatch, r.Slots = g.context, g.ubatch, min(r.Slots, g.context)
	if x.adapter != nil {
		r.Adapter = x.adapter.name()
	}
	w := &row{Row: r, run: x}
	g.rows = append(g.rows, w)
	return w
}

// fillChecks plans what reports whether the build is what it claims to be.
func (v *verifier) fillChecks(g *group, budget, from int) {
	off := v.cache(g, "f16")
	off.tree, off.optional = worker.Patched, false
	g.addRow(Row{Method: Off, Budget: budget, Slots: g.context, From: from}, v.add(g, off))
	all := v.less(g, "lambda", "f16", g.context, nil) // rounded as the full cache is
	g.addRow(Row{Method: NothingEvicted, Budget: budget, Slots: g.context, From: from}, v.add(g, all))
}

func (v *verifier) fillGroup(g *group, first bool) error {
	g.byKey = map[string]*run{}
	g.full = v.add(g, v.cache(g, "f16"))
	g.full.bytes = v.fullBytes[g.context]
	if len(v.plan.Bytes) > 0 {
		return v.fillBytes(g)
	}
	add := func(r run) *run { return v.add(g, r) }
	less := func(policy string, slots int, a *adapter) run { return v.less(g, policy, v.plan.SlotType, slots, a) }
	offered := map[string]bool{}
	var budgets []int
	for _, b := range v.plan.Budgets {
		n, err := v.slots(b, g.context)
		if err != nil {
			return err
		}
		budgets = append(budgets, n)
	}
	for i, budget := range unique(budgets) {
		from := 0
		if budget+g.ubatch+1 < g.context { // the last position has no next token
			from = budget + g.ubatch
		} else {
			v.note("context %d, micro-batches of %d: behind the first eviction at a budget of %d no token is left to predict, so all positions count", g.context, g.ubatch, budget)
		}
		row := func(method, policy string, slots int, r *run) *row {
			return g.addRow(Row{Method: method, Policy: policy, Budget: budget, Slots: slots, From: from}, r)
		}
		row(Full, "", g.context, g.full)
		for _, t := range []string{F32, Q8, Q4} {
			switch {
			case !v.plan.wants(t):
			case !v.holds(t):
			default:
				row(t, "", g.context, add(v.cache(g, t)))
			}
		}
		if v.plan.wants(Window) {
			r := less("lambda", budget, nil)
			r.config.LESS.Heavy, r.config.LESS.Pinned = worker.Int(0), worker.Int(0)
			row(Window, "", budget, add(r))
		}
		for _, policy := range v.plan.Policies {
			if v.plan.wants(Sparse) {
				row(Sparse, policy, budget, add(less(policy, budget, nil)))
			}
			a := choose(v.adapters, policy, budget)
			if a == nil {
				if !offered[policy] {
					v.note("no adapter for %s: no LESS, and no slots at equal bytes", policy)
				}
				offered[policy] = true
				continue
			}
			slot, takes := v.slotBytes(v.plan.SlotType), v.takes(g, policy, v.plan.SlotType, budget, a)
			if v.plan.wants(Plus) {
				n := budget + int(takes.State/slot)
				row(Plus, policy, n, add(less(policy, n, nil)))
			}
			if v.plan.wants(PlusPlus) {
				n := budget + int((takes.State+takes.Kernels)/slot)
				row(PlusPlus, policy, n, add(less(policy, n, nil)))
			}
			if !v.plan.wants(LESS) {
				continue
			}
			last := row(LESS, policy, budget, add(less(policy, budget, a)))
			use := weights.Trained{Policy: policy, Ubatch: g.ubatch, Context: g.context}
			c := memory.Cache{Policy: policy, Pinned: 1, Adapter: a.Adapter}
			if h, known := c.Heavy(last.Slots); known { // as the runtime splits them
				use.Heavy, use.Recent = h, last.Slots-h
			}
			var err error
			if last.AdapterNotes, err = weights.CheckUse(a.Adapter, use); err != nil {
				return err
			}
		}
		if i > 0 {
			continue
		}
		v.fillChecks(g, budget, from)
		if first {
			for _, policy := range v.plan.Policies {
				r := less(policy, budget, choose(v.adapters, policy, budget))
				row(Reference, policy, budget, add(reference(r))).fast = add(r)
			}
		}
	}
	return nil
}

// reference is a run with the kernels' reference loops, which are slow.
func reference(r run) run {
	l := *r.config.LESS
	l.Reference = true
	r.config.LESS, r.few = &l, true
	return r
}

// slots returns the slots of a KV head at a context, on average. A budget in bytes pays for the phi and psi of the first adapter.
func (v *verifier) slots(b Budget, context int) (int, error) {
	c := memory.Cache{Context: context, Budget: b, Pinned: 1, Types: v.types(v.plan.SlotType)}
	if len(v.adapters) > 0 {
		c.Adapter = v.adapters[0].Adapter
	}
	n, err := memory.Slots(v.model, c)
	switch {
	case err != nil:
		return 0, fmt.Errorf("verify: %w: %w", err, ErrPlan)
	case b.Tokens == 0: // else as it was given, maybe more than there are
		n = min(n, context)
	}
	return n, nil
}

// types are those of each layer's slots, as the plan has them.
func (v *verifier) types(text string) []weights.SlotTypes {
	all, _ := worker.ModelTypes(text, v.model.Layers) // checked with the plan
	return all
}

// slotBytes is one slot of every layer and KV head together, of types that fit (checkTypes).
func (v *verifier) slotBytes(types string) uint64 {
	all, _ := memory.SlotOfEach(v.model, v.types(types))
	return all
}

// checkTypes fails with memory.ErrType where heads do not fill the blocks of their layer's types.
func (v *verifier) checkTypes(types string) error {
	for i, t := range v.types(types) {
		s := v.model.Layer(i)
		if _, err := memory.SlotBytes(s, t); err != nil && s.HeadsKV > 0 {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

// describe names a run for people.
func (r *run) describe() string {
	c := r.config
	var parts []string
	switch l := c.LESS; {
	case l == nil && r.tree == worker.Patched:
		parts = append(parts, "off")
	case l == nil && c.TypeK == "":
		parts = append(parts, "full f16")
	case l == nil:
		parts = append(parts, "full "+c.TypeK)
	default:
		parts = append(parts, fmt.Sprintf("%s %d", l.Policy, l.Budget))
		if r.adapter != nil {
			parts = append(parts, r.adapter.name())
		}
	}
	return fmt.Sprintf("%s, context %d, micro-batches of %d", strings.Join(parts, " "), c.Context, c.Ubatch)
}
