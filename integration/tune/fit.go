package tune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/outfile"
	"github.com/lesskv/lesskv/weights/train"
)

// The rank and hidden size that Training has where it has none. The rank is half of train's: every byte is taken from slots.
const (
	DefaultRank   = 4
	DefaultHidden = 4
)

// Training says how phi and psi are fitted. The options are those of train.Run, without what tuning knows: policy, budgets, allocation,
// micro-batch, layers and files.
type Training struct {
	train.Options
	Runtime train.Runtime
	Windows train.Windows // of the length of the others
}

// A Fitted layer is one for which phi and psi were tried.
type Fitted struct {
	Layer        int
	Rank, Hidden int     // of its phi and psi
	Error        float64 // of its output on the validation windows, relative to sparse only's
	Bytes        uint64  // that phi, psi and the state take
	Kept         bool    // the adapter has them
}

// A Trained is an allocation with phi and psi in the layers where they pay.
type Trained struct {
	Without *Result          // the allocation without them
	With    *Result          // the one beside them; nil: in no layer do they pay for their bytes
	Layers  []Fitted         // those that were tried, ascending
	Sizes   []Sizing         // in the order in which they were tried
	Fitted  *weights.Adapter // With, and its phi and psi
	Adapter *weights.Adapter // the one to use: Fitted, or Without alone
	Better  bool             // With is closer to the full cache than Without on the windows that neither was tuned on: the adapter is of With, else of Without
	Why     string           // phi and psi can't be trained for this model at all; "": they can
}

// Result is the one that the adapter is of.
func (t *Trained) Result() *Result {
	if t.Better {
		return t.With
	}
	return t.Without
}

// Train finds an allocation, fits phi and psi under it, and keeps them in the layers in which they gain more than their bytes do as slots.
// It then spreads what is left of the bytes anew: with phi and psi a sequence takes no more than without. If that is not better on o.Valid,
// which is no part of the training unless there is no other window to validate on, the allocation stays as it was. What is done is kept in the
// work folder and in TrainFolder: a run that was interrupted goes on there.
func Train(ctx context.Context, o Options, t Training) (*Trained, error) {
	if o.Adapter != "" {
		return nil, fmt.Errorf("tune: phi and psi are to be trained, and those of %s to be used: want one of the two: %w", o.Adapter, ErrOption)
	}
	if o.Work == "" {
		dir, err := os.MkdirTemp("", "lesskv-work-")
		if err != nil {
			return nil, err
		}
		defer os.Remove(dir)
		o.Work = dir
		defer Remove(dir)
	}
	err := o.fill()
	if err != nil {
		return nil, err
	}
	if o.source, err = pieces.HashFile(o.Model); err != nil { // once, for both runs and all fits
		return nil, fmt.Errorf("tune: %w", err)
	}
	f := &fitter{o: &o, t: t, context: len(o.Windows[0])}
	f.t.Rank, f.t.Hidden = cmp.Or(t.Rank, DefaultRank), cmp.Or(t.Hidden, DefaultHidden)
	f.t.Policy, f.t.Ubatch, f.t.Heavy, f.t.Pinned = o.Policy, o.Ubatch, 0, pinned
	f.t.Recordings = filepath.Join(TrainFolder(o.Work), recordings)
	f.t.Source = o.source
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	if f.plain, err = Run(ctx, o); err != nil {
		return nil, err
	}
	if !o.Budget.InBytes() {
		o.Budget = worker.Budget{Bytes: f.plain.Bytes}
	}
	others := slices.DeleteFunc(slices.Clone(t.Windows.Valid), func(w []int32) bool {
		return slices.ContainsFunc(o.Valid, func(v []int32) bool { return slices.Equal(v, w) })
	})
	if len(others) > 0 {
		f.t.Windows.Valid = others
	}
	r, err := f.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	return r, nil
}

// TrainFolder is the folder beside a work folder in which Train has fits, with work folders of their own, and recordings that serve all.
func TrainFolder(work string) string { return work + ".train" }

const recordings = "recordings"

var fitFile = regexp.MustCompile(`^fit-[0-9a-f]{32}\.gguf(\.part\.tmp)?$`)

// Remove deletes what runs have left in a work folder and in its TrainFolder. What is no run's stays.
func Remove(work string) error {
	err := pieces.Remove(work)
	dir := TrainFolder(work)
	entries, readErr := os.ReadDir(dir)
	if errors.Is(readErr, os.ErrNotExist) {
		return err
	}
	err = errors.Join(err, readErr)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		fit, work := strings.CutSuffix(e.Name(), ".work")
		switch {
		case outfile.Is(e, fitFile):
			err = errors.Join(err, os.Remove(name))
		case e.IsDir() && work && fitFile.MatchString(fit):
			err = errors.Join(err, train.RemoveWork(name))
		case e.IsDir() && e.Name() == recordings:
			err = errors.Join(err, train.RemoveRecordings(name))
		}
	}
	if left, _ := os.ReadDir(dir); err != nil || len(left) > 0 {
		return err
	}
	return os.Remove(dir)
}

// pinned is how many first positions are never evicted: the runtime's default.
const pinned = 1

type fitter struct {
	o       *Options
	t       Training
	plain   *Result
	context int // tokens of a window
}

// check refuses, before anything is measured, what could not be fitted in any layer, whatever its budget.
func (f *fitter) check() error {
	for layer := range f.t.Model.Layers {
		t := f.t.Options
		t.Layers, t.Budgets = []int{layer}, []int{least(f.context)}
		if err := t.Check(f.context); f.t.Model.HasBudget(layer) && err != nil {
			return err
		}
	}
	return nil
}

func (f *fitter) run(ctx context.Context) (*Trained, error) {
	r := &Trained{Without: f.plain, Adapter: weights.New(f.t.Model, weights.Trained{Ubatch: f.o.Ubatch, Context: f.context})}
	if err := f.plain.Give(r.Adapter, f.o.Policy); err != nil {
		return nil, err
	}
	layers, err := f.candidates(ctx)
	if err != nil || len(layers) == 0 {
		return r, err
	}
	// Half of the budget, since a layer with phi and psi will have fewer slots: this tells which layers are to have them.
	first, err := f.fit(ctx, layers, f.plain, max(least(f.plain.Budget), f.plain.Budget/2))
	if errors.Is(err, train.ErrModel) {
		r.Why = err.Error()
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if r.Layers, err = f.fitted(first); err != nil {
		return nil, err
	}
	from, err := f.choose(ctx, r.Layers)
	if err != nil || from == nil {
		return r, err
	}
	second, err := f.fit(ctx, from.layers, from.Result, from.Budget)
	if err != nil {
		return nil, err
	}
	again, err := f.fitted(second)
	if err != nil {
		return nil, err
	}
	r.replace(again)
	// Under the slots that they have now some may not pay for their bytes.
	if from, err = f.choose(ctx, again); err != nil || from == nil {
		return r, err
	}
	for layer := range second.adapter.Kernels {
		if !slices.Contains(from.layers, f.t.Model.Owner(layer)) {
			second.adapter.Kernels[layer] = weights.Kernels{}
		}
	}

	if err := second.adapter.Write(second.path); err != nil {
		return nil, err
	}
	if second, from, err = f.resize(ctx, r, second, from); err != nil {
		return nil, err
	}

	o := *f.o
	o.From, o.Adapter = from.Result, second.path
	if r.With, err = Run(ctx, o); err != nil {
		return nil, err
	}
	r.With.Levels, r.With.Layers = f.plain.Levels, f.plain.Layers
	for j := range r.With.Heads { // what was measured, not what was predicted of it
		r.With.Heads[j].Distance = f.plain.Heads[j].Distance
	}
	r.Fitted = second.adapter
	if r.Better = r.With.TunedValid < f.plain.TunedValid; r.Better {
		r.Adapter = r.Fitted
		for i, l := range r.Layers {
			r.Layers[i].Kept = !r.Adapter.Kernels[l.Layer].Empty()
		}
	}
	return r, r.With.Give(r.Fitted, f.o.Policy)
}

// replace puts what came of layers in the place of what was there.
func (t *Trained) replace(layers []Fitted) {
	for _, l := range layers {
		t.Layers[slices.IndexFunc(t.Layers, func(x Fitted) bool { return x.Layer == l.Layer })] = l
	}
}

// hopeful is an error, relative to sparse only's, that phi and psi hardly fall below: no layer is tried that would not pay with it.
const hopeful = .1

// candidates returns the layers in which phi and psi may pay for their bytes.
func (f *fitter) candidates(ctx context.Context) (layers []int, err error) {
	none, err := f.predict(ctx, nil)
	if err != nil {
		return nil, err
	}
	for j, h := range f.plain.Heads {
		if j > 0 && f.plain.Heads[j-1].Layer == h.Layer {
			continue
		}
		p, err := f.predict(ctx, map[int]float64{h.Layer: hopeful})
		if err != nil {
			return nil, err
		}
		if p.cost < none.cost {
			layers = append(layers, h.Layer)
		}
	}
	return layers, nil
}

// A prediction is what the parts say of a budget beside phi and psi of some layers.
type prediction struct {
	*Result         // its heads' distances and slots
	layers  []int   // with phi and psi, ascending
	cost    float64 // nats
}

// predict spreads the budget over the heads where layers' phi and psi leave so much of what limiting them costs.
func (f *fitter) predict(ctx context.Context, left map[int]float64) (*prediction, error) {
	r := *f.plain
	r.Heads = slices.Clone(f.plain.Heads)
	for j := range r.Heads {
		if x, ok := left[r.Heads[j].Layer]; ok {
			r.Heads[j].Distance = scaled(r.Heads[j].Distance, x)
		}
	}
	p := &prediction{Result: &r, layers: slices.Sorted(maps.Keys(left)), cost: math.Inf(1)}
	var err error
	if r.Budget, err = f.budget(p.layers); errors.Is(err, memory.ErrBudget) || errors.Is(err, train.ErrMemory) {
		return p, nil // they take more than there is
	} else if err != nil {
		return nil, err
	}
	m := &meter{context: f.context}
	if m.slot, err = f.slotSizes(); err != nil {
		return nil, err
	}
	slots, err := m.greedy(ctx, &r)
	if err != nil {
		return nil, err
	}
	p.cost = 0
	for j := range r.Heads {
		r.Heads[j].Slots = slots[j]
		p.cost += curve(r.Levels, r.Heads[j].Distance, f.context, slots[j])
	}
	return p, nil
}

// scaled returns a curve that costs so many times as much.
func scaled(d []float64, by float64) (all []float64) {
	for _, x := range d {
		all = append(all, by*x)
	}
	return all
}

// left says what phi and psi leave of what limiting a layer costs: of layers that share a cache, the worst counts.
func (f *fitter) left(layers []Fitted) map[int]float64 {
	left := map[int]float64{}
	for _, l := range layers {
		owner := f.t.Model.Owner(l.Layer)
		left[owner] = max(left[owner], l.Error)
	}
	return left
}

// choose takes the layers whose phi and psi lower the predicted distance, one after the other, the best first. It returns nil if none does,
// else the parts beside them and the allocation to begin with: the tuned one, in which each head has as many times its slots as the prediction gives it.
func (f *fitter) choose(ctx context.Context, layers []Fitted) (*prediction, error) {
	left := f.left(layers)
	none, err := f.predict(ctx, nil)
	if err != nil {
		return nil, err
	}
	best, chosen := none, map[int]float64{}
	for {
		var next *prediction
		for _, layer := range slices.Sorted(maps.Keys(left)) { // of two that are as good, the first
			with := maps.Clone(chosen)
			if with[layer] = left[layer]; len(with) == len(chosen) || left[layer] >= 1 {
				continue
			}
			p, err := f.predict(ctx, with)
			if err != nil {
				return nil, err
			}
			if p.cost < best.cost && (next == nil || p.cost < next.cost) {
				next = p
			}
		}
		if next == nil {
			break
		}
		best = next
		for _, layer := range best.layers {
			chosen[layer] = left[layer]
		}
	}
	if best == none {
		return nil, nil
	}
	var slots []int
	for j, h := range f.plain.Heads {
		n := float64(h.Slots) * float64(best.Heads[j].Slots) / float64(none.Heads[j].Slots)
		slots = append(slots, min(f.context, int(math.Round(n))))
	}
	m := &meter{context: f.context, budget: best.Budget}
	if m.slot, err = f.slotSizes(); err != nil {
		return nil, err
	}
	w, exact, err := m.allocation(slots)
	if err != nil {
		return nil, err
	}
	for j := range best.Heads {
		best.Heads[j].Slots, best.Heads[j].Weight = exact[j], w[j]
	}
	return best, nil
}

// slotSizes returns what a slot of each head takes, where they differ; else nil.
func (f *fitter) slotSizes() ([]float64, error) {
	c, err := f.cacheWith(nil)
	if err != nil {
		return nil, err
	}
	bytes, err := slotBytes(f.t.Model, f.plain.headLayers(), c.Types)
	return unlike(bytes), err
}

// budget returns the slots of a head that there are beside phi and psi of some layers, where all have as many. It fails with memory.ErrBudget.
func (f *fitter) budget(layers []int) (int, error) {
	if len(layers) == 0 {
		return f.plain.Budget, nil
	}
	c, err := f.cache(layers)
	if err != nil {
		return 0, err
	}
	c.Budget = f.o.Budget
	return memory.Slots(f.t.Model, c)
}

// cache describes one with phi and psi of some layers, as large as those that are trained.
func (f *fitter) cache(layers []int) (memory.Cache, error) {
	t := f.t.Options
	t.Layers = layers
	a, err := t.Sized()
	if err != nil {
		return memory.Cache{}, err
	}
	return f.cacheWith(a)
}

// cacheWith describes one with an adapter.
func (f *fitter) cacheWith(a *weights.Adapter) (c memory.Cache, err error) {
	c = memory.Cache{Context: f.context, Policy: f.o.Policy, Pinned: pinned, Adapter: a}
	c.Types, err = f.o.slotTypes(f.t.Model)
	return c, err
}

// A fit is what train came to, and where its adapter may lie.
type fit struct {
	layers  []train.LayerReport
	adapter *weights.Adapter
	path    string
}

// fitFormat goes into the name of every piece of these. It changes with how phi and psi are fitted.
const fitFormat = 1

// fit trains phi and psi of layers under a budget, spread as a result spreads its own.
func (f *fitter) fit(ctx context.Context, layers []int, r *Result, budget int) (*fit, error) {
	store, err := pieces.Open(f.o.Work)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	t := f.t.Options
	t.Layers, t.Budgets, t.Allocation = layers, []int{budget}, r.Weights(f.t.Model)
	key := pieces.Key("fit", fitFormat, train.FitMethod, t.Source, f.t.Windows, t.Policy, t.Ubatch, t.Rank, t.Hidden, t.Ranks, t.Hiddens, t.Steps, t.Rate, t.Seed, t.Type, layers, budget, t.Allocation)
	var done struct {
		Layers []train.LayerReport
		File   []byte
	}
	dir := TrainFolder(f.o.Work)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	t.Output = filepath.Join(dir, key+".gguf")
	t.KeepWork = true // until the store has the fit: else one that can't be saved would be lost
	if !store.Load(key, &done) {
		report, err := train.Run(ctx, t, f.t.Runtime, f.t.Windows)
		if errors.Is(err, train.ErrDisk) { // for all recordings at once: it makes them in passes then, and again for the next fit
			t.Recordings = ""
			report, err = train.Run(ctx, t, f.t.Runtime, f.t.Windows)
		}
		if err != nil {
			return nil, err
		}
		done.Layers = report.Layers
		if done.File, err = os.ReadFile(t.Output); err != nil {
			return nil, err
		}
		if err := store.Save(key, done); err != nil {
			return nil, err
		}
	} else if err := outfile.WriteBytes(t.Output, done.File); err != nil {
		return nil, err
	}
	if err := train.RemoveWork(t.Output + ".work"); err != nil {
		return nil, err
	}
	a, err := weights.Read(t.Output)
	return &fit{done.Layers, a, t.Output}, err
}

// fitted says how a fit came out.
func (f *fitter) fitted(x *fit) (all []Fitted, err error) {
	for _, l := range x.layers {
		c, err := f.cache([]int{f.t.Model.Owner(l.Layer)})
		if err != nil {
			return nil, err
		}
		c.Budget = memory.Budget{Tokens: f.plain.Budget}
		bytes, err := memory.Less(f.t.Model, c)
		if err != nil {
			return nil, err
		}
		rank, hidden := f.t.Size(l.Layer)
		all = append(all, Fitted{Layer: l.Layer, Rank: rank, Hidden: hidden, Error: l.Valid, Bytes: bytes.State + bytes.Kernels})
	}
	return all, nil
}

// Give puts the allocation into an adapter, for a policy, with the budget that it is for.
func (r *Result) Give(a *weights.Adapter, policy string) error {
	heavy, err := kernels.PolicyHeavy(policy, r.Slots())
	if err != nil {
		return err
	}
	a.Trained.Policy, a.Trained.Heavy, a.Trained.Recent = policy, heavy, r.Slots()-heavy
	a.Budget = r.Weights(&weights.Model{Geometry: a.Geometry})
	return nil
}

// Weights returns the allocation as an adapter has it: a number for each KV head of each layer, 0 where there is no budget.
func (r *Result) Weights(m *weights.Model) (all []float32) {
	found := map[[2]int]float32{}
	for _, h := range r.Heads {
		found[[2]int{h.Layer, h.Head}] = h.Weight
	}
	for layer := range m.Layers {
		for j := range m.Layer(layer).HeadsKV {
			all = append(all, found[[2]int{layer, j}])
		}
	}
	return all
}
