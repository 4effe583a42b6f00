package tune

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
)

// workFormat goes into the name of every piece. It changes with how the pieces are computed.
var workFormat = 3

// beside is how many caches read a window beside the full one: its logits, which are large, are never kept.
const beside = 4

// meter measures distances. It has a worker with the full cache, and as many as run beside it.
type meter struct {
	o       *Options
	context int   // tokens of a window: what a head of no limit holds
	budget  int   // slots of a head on average
	chunk   int   // tokens that are compared at a time
	taken   int64 // bytes of one sequence with the slots that heads say
	heads   []worker.HeadInfo
	each    []int64   // bytes of a slot of each of these
	slot    []float64 // the same, where they differ and the budget is in bytes; else nil
	full    *worker.Worker
	others  []*worker.Worker
	sums    [3]string // of the model, the worker and the adapter
	bytes   int64     // of the model
	store   *pieces.Store

	done, total int // of allocations, for progress
}

func open(ctx context.Context, o *Options) (_ *meter, err error) {
	m := &meter{o: o, context: len(o.Windows[0]), chunk: max(o.Ubatch, 256/o.Ubatch*o.Ubatch)}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	m.sums[0] = o.source
	for i, path := range []string{o.Model, o.Worker, o.Adapter} {
		if path == "" || m.sums[i] != "" {
			continue
		}
		if m.sums[i], err = pieces.HashFile(path); err != nil {
			return nil, err
		}
	}
	size, err := os.Stat(o.Model)
	if err != nil {
		return nil, err
	}
	m.bytes = size.Size()
	if m.store, err = pieces.Open(o.Work); err != nil {
		return nil, err
	}
	for range 1 + beside {
		w, err := worker.Start(ctx, o.Worker)
		if err != nil {
			return nil, err
		}
		if m.full == nil {
			m.full = w
		} else {
			m.others = append(m.others, w)
		}
	}
	c := m.config(m.cache(nil))
	c.LESS, c.Threads = nil, worker.Share(m.bytes, o.Threads, 1) // it reads alone
	if _, err = m.full.Open(c); err != nil {
		return nil, err
	}
	return m, m.ask()
}

// ask asks the runtime which heads have a budget, and what it comes to.
func (m *meter) ask() error {
	w := m.others[0]
	if _, err := w.Open(m.config(m.cache(nil))); err != nil {
		return err
	}
	var err error
	if m.heads, err = w.Heads(); err != nil {
		return err
	}
	if len(m.heads) == 0 {
		return fmt.Errorf("%s: every layer has a sliding window: there is nothing to spread: %w", m.o.Model, ErrOption)
	}
	if _, err := w.Decode(0, 0, m.o.Windows[0][:1], worker.None); err != nil { // before it nothing is held
		return err
	}
	info, err := w.LESS()
	if err != nil {
		return err
	}
	m.budget, m.taken = info.Budget, info.CacheBytes()
	if err := m.count(); err != nil {
		return err
	}
	if m.o.From == nil { // else the positions that count are given, and there may be as many slots as tokens in the same bytes
		if err := evicts(m.budget, m.o.Ubatch, m.context); err != nil {
			return err
		}
	}
	m.budget = min(m.budget, m.context)
	return w.CloseModel()
}

// count says what a slot of each head takes. Where sizes differ and the budget is in bytes, the budget is what there is in the same bytes where all
// heads have as many: an adapter's allocation may have spread it.
func (m *meter) count() error {
	model, err := weights.ReadModel(m.o.Model)
	if err != nil {
		return err
	}
	types, err := m.o.slotTypes(model)
	if err != nil {
		return err
	}
	var layers []int
	for _, h := range m.heads {
		layers = append(layers, h.Layer)
	}
	if m.each, err = slotBytes(model, layers, types); err != nil {
		return err
	}
	if !m.o.Budget.InBytes() {
		return nil
	}
	if m.slot = unlike(m.each); m.slot != nil {
		var taken, one int64
		for j, h := range m.heads {
			taken, one = taken+m.each[j]*int64(h.Budget), one+m.each[j]
		}
		m.budget = int(taken / one)
	}
	return nil
}

// bytesOf returns the bytes of one sequence whose heads have so many slots.
func (m *meter) bytesOf(slots []int) int64 {
	bytes := m.taken
	for j, n := range slots {
		bytes += m.each[j] * int64(n-m.heads[j].Budget)
	}
	return bytes
}

// unlike returns what a slot of each head takes; nil where they are alike.
func unlike(bytes []int64) (all []float64) {
	differ := false
	for _, n := range bytes {
		all = append(all, float64(n))
		differ = differ || n != bytes[0]
	}
	if !differ {
		return nil
	}
	return all
}

// slotBytes returns what a slot of each head takes, heads being of these layers, under types of the layers' slots. It fails with memory.ErrType.
func slotBytes(model *weights.Model, layers []int, types []weights.SlotTypes) (all []int64, err error) {
	for _, layer := range layers {
		bytes, err := memory.SlotBytes(model.Layer(layer), types[layer])
		if err != nil {
			return nil, err
		}
		all = append(all, int64(bytes))
	}
	return all, nil
}

// first is the first position that counts: behind the first eviction of equal budgets, as in verify.
func (m *meter) first() int {
	if m.o.From != nil {
		return m.o.From.First
	}
	return m.budget + m.o.Ubatch
}

func (m *meter) close() {
	for _, w := range append([]*worker.Worker{m.full}, m.others...) {
		if w != nil {
			w.Close()
		}
	}
	if m.store != nil {
		m.store.Close()
	}
}

// A cache is one that is measured.
type cache struct {
	slots []int  // of each head; nil: equal budgets
	k, v  string // types, as worker.SlotTypes returns them
}

// cache is one of the types that are tuned for.
func (m *meter) cache(slots []int) cache { return cache{slots, m.o.TypeK, m.o.TypeV} }

func (m *meter) config(c cache) worker.Config {
	o := m.o
	l := &worker.LESS{Policy: o.Policy, TypeK: c.k, TypeV: c.v, Slots: c.slots, Adapter: o.Adapter}
	if c.slots == nil {
		l.Limit(o.Budget)
	}
	return worker.Config{Model: o.Model, Context: m.context, Batch: m.chunk, Ubatch: o.Ubatch, Threads: worker.Share(m.bytes, o.Threads, beside), LESS: l}
}

// distances returns the mean KL divergence, over the positions that count, of caches whose heads have so many slots.
func (m *meter) distances(ctx context.Context, stage Stage, windows [][]int32, slots [][]int) ([]float64, error) {
	var all []cache
	for _, s := range slots {
		all = append(all, m.cache(s))
	}
	return m.measure(ctx, stage, windows, all)
}

// measure is distances of caches whose types may differ too.
func (m *meter) measure(ctx context.Context, stage Stage, windows [][]int32, all []cache) ([]float64, error) {
	d := make([]float64, len(all))
	var todo []int
	for i, c := range all {
		if !m.store.Load(m.key(windows, c), &d[i]) {
			todo = append(todo, i)
		}
	}
	say := func() {
		if m.o.Progress != nil {
			e := Event{Stage: stage, Done: len(all) - len(todo), Total: len(all)}
			if stage == Allocations {
				e.Done, e.Total = min(m.done+e.Done, m.total), m.total
			}
			m.o.Progress(e)
		}
	}
	for say(); len(todo) > 0; say() {
		n := min(beside, len(todo))
		var some []cache
		for _, i := range todo[:n] {
			some = append(some, all[i])
		}
		means, err := m.together(ctx, windows, some)
		if err != nil {
			return nil, err
		}
		for k, i := range todo[:n] {
			d[i] = means[k]
			if err := m.store.Save(m.key(windows, all[i]), d[i]); err != nil {
				return nil, err
			}
		}
		todo = todo[n:]
	}
	if stage == Allocations {
		m.done += len(all)
	}
	return d, nil
}

// together measures a few caches beside the full one.
func (m *meter) together(ctx context.Context, windows [][]int32, all []cache) ([]float64, error) {
	for i, c := range all {
		if _, err := m.others[i].Open(m.config(c)); err != nil {
			return nil, err
		}
	}
	total := make([]distance.Points, len(all))
	for _, tokens := range windows {
		for _, w := range append([]*worker.Worker{m.full}, m.others[:len(all)]...) {
			if err := w.Clear(); err != nil {
				return nil, err
			}
		}
		for at := 0; at < len(tokens); at += m.chunk {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			end := min(at+m.chunk, len(tokens))
			rows := worker.All
			if end <= m.first() { // nobody counts them
				rows = worker.None
			}
			out, err := m.full.Decode(0, at, tokens[at:end], rows)
			if err != nil {
				return nil, err
			}
			want := distance.Expect(out)
			var step errgroup.Group
			step.SetLimit(max(1, m.o.Threads))
			for i := range all {
				step.Go(func() error {
					out, err := m.others[i].Decode(0, at, tokens[at:end], rows)
					if err != nil {
						return err
					}
					if rows == worker.None {
						total[i].Skip(end - at)
						return nil
					}
					return total[i].Add(want, out, tokens[at+1:])
				})
			}
			if err := step.Wait(); err != nil {
				return nil, err
			}
		}
	}
	means := make([]float64, len(all))
	for i, p := range total {
		if p.Fault != "" {
			return nil, fmt.Errorf("slots %v: %s", all[i].slots, p.Fault)
		}
		n := 0
		for k, kl := range p.KL {
			if k%m.context >= m.first() {
				means[i] += kl
				n++
			}
		}
		means[i] /= float64(n)
		if err := m.others[i].CloseModel(); err != nil {
			return nil, err
		}
	}
	return means, nil
}

// key names a piece by all that it depends on.
func (m *meter) key(windows [][]int32, c cache) string {
	o := m.o
	return pieces.Key("distance", workFormat, m.sums, windows, o.Policy, o.Ubatch, c.k, c.v, m.first(), c.slots)
}
