package train

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// The faults that errors of this package wrap.
var (
	ErrOption  = errors.New("option that makes no sense")
	ErrText    = errors.New("not enough text")
	ErrDisk    = errors.New("not enough disk")
	ErrMemory  = errors.New("not enough memory")
	ErrOther   = errors.New("work of another run")
	ErrDamaged = errors.New("damaged recording")
	ErrModel   = errors.New("model that can't be trained for")
)

// The defaults of Options; docs/training.md has the sweep that they come from.
const (
	DefaultRank   = 8
	DefaultHidden = 4
	DefaultSteps  = 4000
	DefaultRate   = 5e-3
)

// MaxRate is the largest rate: a step of Adam is about as long, and weights are about 1.
const MaxRate = 1.0

// Options say what is to be trained. Zero fields mean the default behind them.
type Options struct {
	Model  *weights.Model // what the adapter is for
	Source string         // what tells the model's file from others, such as its SHA-256; models of one fingerprint may differ
	Output string         // path of the adapter; the work folder is Output + ".work"

	Policy  string // "peak"
	Budgets []int  // slots per KV head; several make one adapter that serves them all, the first is its own
	// Allocation spreads each budget over layers and heads: a weight for each KV head of each layer, as an adapter has them; nil: equal.
	Allocation []float32
	SlotTypes  []weights.SlotTypes // of each layer, which the adapter is to have; the training knows nothing of them. nil: none
	Heavy      int                 // h of the first budget, others in proportion; the policy's own share
	Pinned     int                 // -1: none; 1
	Ubatch     int                 // tokens of a micro-batch; 32
	Rank       int                 // R; DefaultRank
	Hidden     int                 // R'; DefaultHidden
	// Ranks and Hiddens are those of layers that have another. A layer that shares another's cache has that one's.
	Ranks, Hiddens map[int]int

	Context int     // tokens of a window; set by Windows
	Layers  []int   // to be trained, ascending; all
	Steps   int     // of the optimiser, one window each; DefaultSteps
	Rate    float64 // its largest step; DefaultRate
	Seed    uint64
	Threads int       // layers that are fitted at a time; 1
	Type    gguf.Type // of the adapter's matrices

	Disk     int64 // bytes that recordings may take; all that is free but a tenth
	Memory   int64 // bytes that training may take, beside the model; 0: no bound
	Progress func(Event)
	Trained  func(*Report) // is told how the layers came out before the adapter is written, which may fail

	// Recordings is a folder in which recordings stay, for other runs with the same model, text and context, whatever
	// else they change. "": they are in the work folder, each as long as its layer needs it.
	Recordings string

	// KeepWork leaves the work folder when the adapter is written: until RemoveWork, a call with the same options only writes it again.
	KeepWork bool

	own    int                              // of options of one layer: which
	spread map[int]map[int][]kernels.Budget // of an allocation, what a budget gives the heads of a layer
}

// Stage is what a run is busy with.
type Stage int

// The stages of a layer.
const (
	Planned   Stage = iota // before the first pass: Done layers at a time, of Total, take Bytes each in Folder
	Recording              // all layers of a pass together; Layer is the first
	Replaying
	Fitting
	Finished
)

// Event tells how far a run has come. Errors are relative to sparse-only's.
type Event struct {
	Stage       Stage
	Layer       int
	Done, Total int     // windows, or steps of this layer
	Train       float64 // error on training windows since the last event
	Valid       float64 // on validation windows, when last looked at
	Plus        float64 // that of Baseline+, sparse-only with the state's bytes as more slots
	Bytes       int64
	Folder      string
	Sparse      string // why a finished layer has no phi and psi; see LayerReport
}

func (o *Options) fill() error {
	for _, d := range []struct {
		field *int
		value int
	}{{&o.Ubatch, 32}, {&o.Rank, DefaultRank}, {&o.Hidden, DefaultHidden}, {&o.Steps, DefaultSteps}, {&o.Threads, 1}} {
		if *d.field == 0 {
			*d.field = d.value
		}
		if *d.field < 0 {
			return fmt.Errorf("train: %d for a size: want a positive number: %w", *d.field, ErrOption)
		}
	}
	if max(o.Rank, o.Hidden) > weights.MaxSize {
		return fmt.Errorf("train: rank %d, hidden size %d: want at most %d: %w", o.Rank, o.Hidden, weights.MaxSize, ErrOption)
	}
	for _, s := range []struct {
		what  string
		sizes map[int]int
		all   int
	}{{"rank", o.Ranks, o.Rank}, {"hidden size", o.Hiddens, o.Hidden}} {
		for _, layer := range slices.Sorted(maps.Keys(s.sizes)) {
			if err := o.checkSize(s.what, layer, s.sizes, s.all); err != nil {
				return err
			}
		}
	}
	if o.Policy == "" {
		o.Policy = "peak"
	}
	switch {
	case o.Pinned == 0:
		o.Pinned = 1
	case o.Pinned < 0:
		o.Pinned = 0
	}
	if o.Rate == 0 {
		o.Rate = DefaultRate
	}
	if !(o.Rate > 0 && o.Rate <= MaxRate) {
		return fmt.Errorf("train: a rate of %g: want more than 0, and at most %g: %w", o.Rate, MaxRate, ErrOption)
	}
	if len(o.Layers) == 0 {
		for layer := range o.Model.Layers {
			o.Layers = append(o.Layers, layer)
		}
	}
	for i, layer := range o.Layers {
		if layer < 0 || layer >= o.Model.Layers || i > 0 && layer <= o.Layers[i-1] {
			return fmt.Errorf("train: layers %v of %d: want numbers from 0, ascending: %w", o.Layers, o.Model.Layers, ErrOption)
		}
	}
	if len(o.Budgets) == 0 {
		return fmt.Errorf("train: no budget: %w", ErrOption)
	}
	for _, b := range o.Budgets {
		if b < 1 {
			return fmt.Errorf("train: a budget of %d slots: want 1 at least: %w", b, ErrOption)
		}
		if h, err := o.heavy(b); err != nil {
			return err
		} else if h < o.Pinned || h > b {
			return fmt.Errorf("train: budget %d of which %d are heavy and %d pinned: %w", b, h, o.Pinned, ErrOption)
		}
		// Eviction follows a micro-batch: the first that passes the budget must not be the last.
		if first := (b/o.Ubatch + 1) * o.Ubatch; first >= o.Context {
			return fmt.Errorf("train: budget %d with micro-batches of %d: nothing is evicted before the end of a window of %d tokens, so that there is nothing to learn; give a smaller budget or a longer context: %w",
				b, o.Ubatch, o.Context, ErrOption)
		}
	}
	if n := o.Model.KVHeads(); o.Allocation != nil && len(o.Allocation) != n {
		return fmt.Errorf("train: an allocation of %d weights: want one for each of %d KV heads, layer by layer: %w", len(o.Allocation), n, ErrOption)
	}
	for _, w := range o.Allocation {
		if !(w >= 0 && w <= kernels.MaxWeight) { // nor NaN
			return fmt.Errorf("train: an allocation with the weight %v: want 0 to %.0f: %w", w, float64(kernels.MaxWeight), ErrOption)
		}
	}
	return o.enough()
}

// checkSize refuses what can be no size of a layer, or not of its own; all is the size of those that sizes does not name.
func (o *Options) checkSize(what string, layer int, sizes map[int]int, all int) error {
	n := sizes[layer]
	if layer < 0 || layer >= o.Model.Layers {
		return fmt.Errorf("train: %s %d of layer %d: want one of the model's %d layers, counted from 0: %w", what, n, layer, o.Model.Layers, ErrOption)
	}
	if n < 1 || n > weights.MaxSize {
		return fmt.Errorf("train: %s %d of layer %d: want 1 to %d: %w", what, n, layer, weights.MaxSize, ErrOption)
	}
	if owner := o.Model.Owner(layer); owner != layer && cmp.Or(sizes[owner], all) != n {
		return fmt.Errorf("train: %s %d of layer %d, which shares the cache of layer %d: want the same of that one: %w", what, n, layer, owner, ErrOption)
	}
	return nil
}

// Size returns rank and hidden size of a layer.
func (o *Options) Size(layer int) (rank, hidden int) {
	owner := o.Model.Owner(layer)
	return cmp.Or(o.Ranks[owner], o.Rank), cmp.Or(o.Hiddens[owner], o.Hidden)
}

// sized reports whether layers may have different sizes.
func (o *Options) sized() bool { return len(o.Ranks)+len(o.Hiddens) > 0 }

// allocate spreads the budgets over the heads of the layers that have one ("Budgets by layer and head" in algorithm.md).
func (o *Options) allocate(layers []Layer) error {
	if o.Allocation == nil {
		return nil
	}
	var w []float32
	var of []int // the layer of each
	at := 0
	for layer := range o.Model.Layers {
		n := o.Model.Layer(layer).HeadsKV
		for _, l := range layers {
			if l.Index == layer && !l.Window && o.Model.Owner(layer) == layer {
				w = append(w, o.Allocation[at:at+n]...)
				of = append(of, slices.Repeat([]int{layer}, n)...)
			}
		}
		at += n
	}
	o.spread = map[int]map[int][]kernels.Budget{}
	for _, b := range o.Budgets {
		slots, err := kernels.Allocate(w, b, kernels.HeadLeast(b, o.Pinned), o.Context)
		if err != nil {
			return fmt.Errorf("train: %w: %w", err, ErrOption)
		}
		o.spread[b] = map[int][]kernels.Budget{}
		for i, n := range slots {
			h, err := o.heavyOf(n, b)
			if err != nil {
				return err
			}
			o.spread[b][of[i]] = append(o.spread[b][of[i]], kernels.Budget{Slots: n, Heavy: h})
		}
	}
	return nil
}

// heavyOf returns h of a head that has so many slots of a budget.
func (o *Options) heavyOf(slots, budget int) (int, error) {
	whole := -1
	if o.Heavy > 0 {
		whole, _ = o.heavy(budget)
	}
	return kernels.HeadHeavy(o.Policy, slots, budget, whole, o.Pinned)
}

// heavy returns h of a budget.
func (o *Options) heavy(budget int) (int, error) {
	if o.Heavy > 0 {
		return max(o.Heavy*budget/o.Budgets[0], o.Pinned), nil
	}
	h, err := kernels.PolicyHeavy(o.Policy, budget)
	if err != nil {
		return 0, fmt.Errorf("train: %w: %w", err, ErrOption)
	}
	return max(h, o.Pinned), nil
}

// of returns the options with the geometry and the size of one layer, where layers differ, as those of all. Keys and values are those of the cache.
func (o *Options) of(layer int) *Options {
	if o.Model.PerLayer == nil && o.spread == nil && !o.sized() {
		return o
	}
	of, m, s, kv := *o, *o.Model, o.Model.Layer(layer), o.Model.Layer(o.Model.Owner(layer))
	of.own = layer
	of.Rank, of.Hidden = o.Size(layer)
	of.Ranks, of.Hiddens = nil, nil
	m.Geometry = weights.Geometry{Layers: m.Layers, Heads: s.Heads, HeadsKV: kv.HeadsKV, KeyLength: kv.KeyLength, ValueLength: kv.ValueLength}
	of.Model = &m
	return &of
}

// largest returns the options of the layer, of those that are trained, that takes the most memory.
func (o *Options) largest() *Options {
	most := o.of(o.Layers[0])
	if o.Model.PerLayer == nil && !o.sized() {
		return most
	}
	for _, layer := range o.Layers[1:] {
		if of := o.of(layer); of.windowMemory()+of.fitMemory() > most.windowMemory()+most.fitMemory() {
			most = of
		}
	}
	return most
}

// layer is what a replay with a budget runs on.
func (o *Options) layer(budget int) kernels.Layer {
	h, _ := o.heavy(budget) // fill has seen to it
	m := o.Model
	return kernels.Layer{
		Heads: m.Heads, HeadsKV: m.HeadsKV, KeySize: m.KeyLength, ValueSize: m.ValueLength, KeyType: kernels.F16, ValueType: kernels.F16,
		Policy: o.Policy, Budget: budget, Heavy: h, Pinned: o.Pinned, Budgets: o.spread[budget][o.own],
	}
}

// plus is the layer of Baseline+ ("Memory, per sequence" in algorithm.md): the state's bytes are slots, of every head.
func (o *Options) plus(budget int) kernels.Layer {
	m := o.Model
	l := o.layer(budget)
	slot, _ := memory.SlotBytes(m.Layer(o.own), weights.SlotTypes{Key: gguf.F16, Value: gguf.F16}) // as the layer has them
	more := 4 * o.Rank * (m.ValueLength + 1) / int(slot)
	l.Budget += more
	l.Heavy, _ = o.heavy(l.Budget)
	l.Budgets = slices.Clone(l.Budgets)
	for j := range l.Budgets {
		b := &l.Budgets[j]
		b.Slots += more
		b.Heavy, _ = o.heavyOf(b.Slots, budget)
	}
	return l
}

func (o *Options) shape() kernels.TrainShape {
	m := o.Model
	return kernels.TrainShape{
		Shape:     kernels.Shape{Heads: m.Heads, HeadsKV: m.HeadsKV, KeySize: m.KeyLength, Rank: o.Rank, Hidden: o.Hidden},
		ValueSize: m.ValueLength,
	}
}

// Sized returns an adapter with phi and psi as large as those that would be trained, and the allocation: what they take is known before
// they are trained. A layer that shares another's cache has them where that one does, with which it is trained; one with a sliding window
// has none. It fails with ErrMemory where they would take more than there is.
func (o Options) Sized() (*weights.Adapter, error) {
	if all := o.kernelMemory(); o.Memory > 0 && all > o.Memory {
		return nil, fmt.Errorf("train: phi and psi take %s of memory, and %s are free; want a lower rank or hidden size: %w", memory.Size(all), memory.Size(o.Memory), ErrMemory)
	}
	trained := weights.Trained{Policy: o.Policy, Ubatch: o.Ubatch, Context: o.Context}
	a := weights.RandomSized(o.Model, func(layer int) (rank, hidden int) {
		if !o.trains(layer) {
			return 0, 0
		}
		return o.Size(layer)
	}, trained, o.Seed)
	for layer := range a.Kernels {
		if k := &a.Kernels[layer]; !k.Empty() {
			k.Scale = weights.Matrix{Type: gguf.F32, Values: make([]float32, o.Model.Layer(layer).Heads)}
		}
	}
	a.Budget, a.SlotTypes = o.Allocation, o.SlotTypes
	return a, a.Convert(o.Type)
}

// trains reports whether a layer is to have phi and psi, or phi alone.
func (o *Options) trains(layer int) bool {
	return (len(o.Layers) == 0 || slices.Contains(o.Layers, o.Model.Owner(layer))) && o.Model.Window(layer) == 0
}

// Check tells what is wrong with options for windows of so many tokens, before there are any.
func (o Options) Check(context int) error {
	o.Context = context
	return o.fill()
}

// enough refuses what would not fit into the memory: phi and psi of all layers, and a window and a fit of one.
func (o *Options) enough() error {
	kernels := o.kernelMemory()
	o = o.largest()
	if most := max(kernels, o.windowMemory(), o.fitMemory()); o.Memory > 0 && most > o.Memory {
		return fmt.Errorf("train: rank %d and hidden size %d in windows of %d tokens: recording takes %s of memory, fitting %s for a layer, phi and psi of %d layers %s, and %s are free; lower one of these: %w",
			o.Rank, o.Hidden, o.Context, memory.Size(o.windowMemory()), memory.Size(o.fitMemory()), len(o.Layers), memory.Size(kernels), memory.Size(o.Memory), ErrMemory)
	}
	return nil
}

// kernelMemory is what phi and psi of all layers take: in f32, and as they are written.
func (o *Options) kernelMemory() (bytes int64) {
	for layer := range o.Model.Layers {
		if o.trains(layer) {
			bytes += 8 * int64(o.of(layer).shape().Weights())
		}
	}
	return bytes
}

// windowMemory is what a layer takes while it is recorded.
func (o *Options) windowMemory() int64 { return o.recordSize() + o.replaySize() }

// fitMemory is what a layer takes while it is fitted.
func (o *Options) fitMemory() int64 {
	in := int64(o.Model.Heads * o.Model.ValueLength)
	return int64(o.shape().Scratch(o.Context, o.Ubatch)) +
		3*o.windowMemory() + // the samples', the replay's and Baseline+'s
		2*4*in*in + // the output projection and its Gram matrix
		32*int64(o.shape().Weights()) // in f32: weights, gradient, mean and best; in f64: two moments
}

// atOnce returns how many of n things that take so many bytes each may be in memory, one at least.
func (o *Options) atOnce(n int, each int64) int {
	if o.Memory == 0 {
		return n
	}
	return int(max(1, min(int64(n), o.Memory/each)))
}

// adapter returns an adapter without phi and psi, as the options describe it.
func (o *Options) adapter() *weights.Adapter {
	h, _ := o.heavy(o.Budgets[0])
	a := weights.New(o.Model, weights.Trained{
		Policy: o.Policy, Heavy: h, Recent: o.Budgets[0] - h, Ubatch: o.Ubatch, Context: o.Context,
	})
	a.Budget, a.SlotTypes = o.Allocation, o.SlotTypes
	return a
}
