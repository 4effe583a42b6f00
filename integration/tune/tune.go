// Package tune finds how a budget is best spread over a model's KV heads ("Budgets by layer and head" in algorithm.md).
//
// It limits one layer at a time, all others full, and measures the KL divergence of the tokens' distribution from the full cache's;
// then each head of the layers that matter. Parts nearly add up, so a curve for each head predicts what an allocation costs: slots go
// one by one to the head that gains most. The allocation is then measured as a whole, beside equal budgets. Near it parts add up better
// than close to the full cache, so rounds follow in which each head alone has a little less or more than it, and the total is spread anew.
//
// Of a model with many heads that takes too long. There the policy is replayed over what the layers saw under the full cache, which says
// how far each head's limit changes its layer's output; the KL of each layer, measured once, is shared among its heads by that, and
// rounds are by layer.
package tune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/train"
)

// ErrOption is what errors of this package wrap where an option makes no sense.
var ErrOption = errors.New("option that makes no sense")

// Options say what is to be tuned. Zero fields mean the default behind them.
type Options struct {
	Model   string
	Worker  string    // path of the worker
	Windows [][]int32 // tokens, each a sequence of its own, all of one length
	Valid   [][]int32 // of the same length, in none of the others: what is found must be better on these too

	Budget       worker.Budget // of a KV head on average, or of all of them in bytes
	Adapter      string        // whose phi and psi every cache has; none
	Policy       string        // "peak"
	Ubatch       int           // tokens of a micro-batch; 32
	TypeK, TypeV string        // of the slots, as worker.SlotTypes returns them; f16
	Threads      int           // 1

	Heads  Method  // how the heads of a layer are compared; "": measured where the model has at most 16 KV heads with a budget, else replayed
	Share  float64 // the layers whose heads are measured make this much of the distance; 0.95
	Rounds int     // in which parts have a little less or more than the allocation; at most 4, or 1 where heads are replayed. -1: none

	From *Result // what parts cost, and the allocation to begin with: nothing of that is measured; nil: all is

	Work     string // folder of finished work; "": a temporary one
	Progress func(Event)

	source string // SHA-256 of the model; "": not computed yet
}

// A Method tells the heads of a layer apart.
type Method string

// The methods.
const (
	MeasureHeads Method = "measure" // limits each head of the layers that matter, and measures what that costs
	ReplayHeads  Method = "replay"  // limits each layer, and shares what that costs among its heads by the errors of replays
)

// mostMeasured is how many KV heads a model has at most, of those that have a budget, whose heads are measured. More take too many passes.
var mostMeasured = 16

// Stage is what a run is busy with.
type Stage string

// The stages, in order.
const (
	Replays     Stage = "replays" // where heads are replayed
	Layers      Stage = "layers"
	Types       Stage = "types" // of FindTypes alone, which is last
	Heads       Stage = "heads"
	Allocations Stage = "allocations"
	Validation  Stage = "validation"

	// Behind the fits of Train: larger and smaller phi and psi of a layer.
	Sizes Stage = "sizes"
)

// Event tells how far a run has come.
type Event struct {
	Stage       Stage
	Done, Total int    // measurements of the stage; of replays, layers of a window
	Why         string // said once, with no numbers: why heads are measured that were to be replayed. "": none of that
}

// A Head is what was found about one KV head.
type Head struct {
	Layer, Head int
	Measured    bool      // by itself; else it has a share of its layer's: by its error where heads were replayed, else an equal one
	Distance    []float64 // KL that limiting it to each of Result.Levels costs, in nats
	Slots       int       // of the allocation
	Weight      float32   // in the adapter: 1 on average
}

// A Result is an allocation and what it rests on. Distances are mean KL divergences from the full cache, in nats.
type Result struct {
	Budget int         // slots of a KV head, where all have as many; Slots says what the allocation has on average
	Bytes  int64       // of one sequence with this allocation, phi and psi included
	First  int         // first position that counts
	Levels []int       // slots to which parts were limited, the budget among them, or the one without phi and psi (Options.From)
	Layers [][]float64 // [layer with a budget][level]
	Heads  []Head      // layer by layer
	Full   float64     // with nothing evicted: what the slots' types cost
	Equal  float64     // with equal budgets
	Tuned  float64     // with this allocation
	Guess  float64     // what the parts predicted for it

	// Replayed: the heads were compared by replays, and distances of heads and layers are predictions, but a layer's at one level.
	Replayed bool

	// The two on the windows that were not tuned on. Where equal budgets are better there, they stay: TunedValid is the lower of what was compared, and
	// what is chosen by it is a little worse on other text.
	EqualValid, TunedValid float64
}

// Slots returns the slots of a KV head on average, of the allocation. It is the budget, but where slots of heads differ in size and the budget is in
// bytes: the more slots are small, the more there are.
func (r *Result) Slots() int {
	if len(r.Heads) == 0 {
		return r.Budget
	}
	sum := 0
	for _, h := range r.Heads {
		sum += h.Slots
	}
	return sum / len(r.Heads)
}

// headLayers returns the layer of each head.
func (r *Result) headLayers() (layers []int) {
	for _, h := range r.Heads {
		layers = append(layers, h.Layer)
	}
	return layers
}

// slotTypes returns the types of the slots of each layer.
func (o *Options) slotTypes(m *weights.Model) ([]weights.SlotTypes, error) {
	return worker.LayerTypes(cmp.Or(o.TypeK, "f16"), cmp.Or(o.TypeV, "f16"), m.Layers)
}

func (o *Options) fill() error {
	if o.Policy == "" {
		o.Policy = "peak"
	}
	if o.Ubatch == 0 {
		o.Ubatch = 32
	}
	if o.Threads == 0 {
		o.Threads = 1
	}
	if o.Share == 0 {
		o.Share = .95
	}
	if o.Heads != "" && o.Heads != MeasureHeads && o.Heads != ReplayHeads {
		return fmt.Errorf("tune: %q for heads: want %s or %s: %w", o.Heads, MeasureHeads, ReplayHeads, ErrOption)
	}
	if len(o.Windows) == 0 || len(o.Valid) == 0 || len(o.Windows[0]) < 2 {
		return fmt.Errorf("tune: no text, or none to validate on: %w", ErrOption)
	}
	for _, w := range slices.Concat(o.Windows, o.Valid) {
		if len(w) != len(o.Windows[0]) {
			return fmt.Errorf("tune: windows of %d and %d tokens: want equal lengths: %w", len(w), len(o.Windows[0]), ErrOption)
		}
	}
	switch b, n := o.Budget, len(o.Windows[0]); {
	case b == worker.Budget{}:
		return fmt.Errorf("tune: no budget: %w", ErrOption)
	case !b.InBytes():
		if err := evicts(b.Slots(n), o.Ubatch, n); err != nil {
			return fmt.Errorf("tune: %w", err)
		}
	}
	return nil
}

// evicts refuses a budget under which nothing is evicted, or so late that nothing is left to be measured.
func evicts(budget, ubatch, context int) error {
	if budget+ubatch >= context {
		return fmt.Errorf("a budget of %d slots in windows of %d tokens: want so few that something is evicted: %w", budget, context, ErrOption)
	}
	return nil
}

// levels are the slots to which parts are limited: around the budget, where the curve matters.
func levels(budget, context int) []int {
	all := []int{max(4, budget/3), budget, 4 * budget}
	all = slices.DeleteFunc(all, func(n int) bool { return n >= context })
	slices.Sort(all)
	return slices.Compact(all)
}

// Level returns the level that is nearest to the budget, by index.
func (r *Result) Level() (at int) {
	for l, n := range r.Levels {
		if math.Abs(math.Log(float64(n)/float64(r.Budget))) < math.Abs(math.Log(float64(r.Levels[at])/float64(r.Budget))) {
			at = l
		}
	}
	return at
}

// Run measures and solves. What is done is kept in the work folder: a run that was interrupted goes on there.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	m, err := open(ctx, &o)
	if err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	defer m.close()
	r, err := m.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	return r, nil
}

// Measure returns the mean KL divergence of caches whose KV heads have so many slots, one number for each that has a budget, over the
// positions of o.Windows at which o.Budget, spread equally, would have evicted.
func Measure(ctx context.Context, o Options, slots [][]int) ([]float64, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	m, err := open(ctx, &o)
	if err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	defer m.close()
	d, err := m.distances(ctx, Allocations, o.Windows, slots)
	if err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	return d, nil
}

func (m *meter) run(ctx context.Context) (*Result, error) {
	r := &Result{Budget: m.budget, First: m.first()}
	if f := m.o.From; f != nil {
		r.Replayed, r.Levels, r.Layers, r.Full, r.Heads = f.Replayed, f.Levels, f.Layers, f.Full, slices.Clone(f.Heads)
		return r, m.solve(ctx, r)
	}
	if m.o.method(len(m.heads)) == ReplayHeads {
		levels := replayLevels(m.budget, m.context)
		losses, err := m.replay(ctx, levels, false)
		switch {
		case err == nil:
			return r, m.replayed(ctx, r, levels, losses)
		case m.o.Heads == ReplayHeads || !errors.Is(err, train.ErrModel):
			return nil, err
		case m.o.Progress != nil:
			m.o.Progress(Event{Stage: Replays, Why: err.Error()})
		}
	}
	return r, m.measured(ctx, r)
}

// method is how that many heads are compared.
func (o *Options) method(heads int) Method {
	switch {
	case o.Heads != "":
		return o.Heads
	case heads > mostMeasured:
		return ReplayHeads
	}
	return MeasureHeads
}

// start gives a result its levels and heads.
func (m *meter) start(r *Result, levels []int) {
	r.Levels = levels
	for _, h := range m.heads {
		r.Heads = append(r.Heads, Head{Layer: h.Layer, Head: h.Head, Distance: make([]float64, len(levels))})
	}
}

// limited has the context for every head but some, which have n slots.
func (m *meter) limited(which []int, n int) []int {
	slots := slices.Repeat([]int{m.context}, len(m.heads))
	for _, i := range which {
		slots[i] = n
	}
	return slots
}

// layers measures each layer by itself, limited to each of some levels: [layer][level], and what the types of the slots alone cost.
func (m *meter) layers(ctx context.Context, levels []int) (costs [][]float64, full float64, err error) {
	layers := byLayer(m.heads)
	all := [][]int{m.limited(nil, 0)}
	for _, which := range layers {
		for _, n := range levels {
			all = append(all, m.limited(which, n))
		}
	}
	d, err := m.distances(ctx, Layers, m.o.Windows, all)
	if err != nil {
		return nil, 0, err
	}
	for i := range layers {
		row := make([]float64, len(levels))
		for k := range row {
			row[k] = max(0, d[1+i*len(levels)+k]-d[0])
		}
		costs = append(costs, falling(row))
	}
	return costs, d[0], nil
}

// replayed solves with heads that were replayed.
func (m *meter) replayed(ctx context.Context, r *Result, levels []int, losses []Loss) (err error) {
	r.Replayed = true
	m.start(r, levels)
	at := calibrationLevel(m.budget, levels)
	costs, full, err := m.layers(ctx, []int{at})
	if err != nil {
		return err
	}
	r.Full = full
	calibrate(r, byLayer(m.heads), losses, at, slices.Concat(costs...))
	return m.solve(ctx, r)
}

// measured solves with heads that are measured.
func (m *meter) measured(ctx context.Context, r *Result) (err error) {
	m.start(r, levels(m.budget, m.context))
	layers := byLayer(m.heads)
	if r.Layers, r.Full, err = m.layers(ctx, r.Levels); err != nil {
		return err
	}

	// the heads of those that matter
	var which []int // heads
	var all [][]int
	for _, i := range matter(r.Layers, m.o.Share) {
		for _, j := range layers[i] {
			if len(layers[i]) == 1 { // it is its layer
				r.Heads[j].Measured = true
				continue
			}
			which = append(which, j)
			for _, n := range r.Levels {
				all = append(all, m.limited([]int{j}, n))
			}
		}
	}
	d, err := m.distances(ctx, Heads, m.o.Windows, all)
	if err != nil {
		return err
	}
	for k, j := range which {
		for l := range r.Levels {
			r.Heads[j].Distance[l] = max(0, d[k*len(r.Levels)+l]-r.Full)
		}
		r.Heads[j].Measured = true
	}
	shareOut(r, layers)
	return m.solve(ctx, r)
}

// byLayer returns the heads of each layer that has some, by index.
func byLayer(heads []worker.HeadInfo) (all [][]int) {
	for i, h := range heads {
		if i == 0 || heads[i-1].Layer != h.Layer {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], i)
	}
	return all
}

// falling makes a curve one that more slots never raise: what rises is noise.
func falling(d []float64) []float64 {
	for i := len(d) - 2; i >= 0; i-- {
		d[i] = max(d[i], d[i+1])
	}
	return d
}

// matter returns the layers that make so much of the distance at the lowest level, the largest first.
func matter(layers [][]float64, share float64) (which []int) {
	order := make([]int, len(layers))
	sum := 0.0
	for i, d := range layers {
		order[i] = i
		sum += d[0]
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(layers[b][0], layers[a][0]) })
	for got := 0.0; len(which) < len(order) && got < share*sum; {
		i := order[len(which)]
		which = append(which, i)
		got += layers[i][0]
	}
	return which
}

// shareOut makes the heads of a layer cost together what the layer costs: in proportion to what each costs alone, or equally.
func shareOut(r *Result, layers [][]int) {
	for i, heads := range layers {
		for l, whole := range r.Layers[i] {
			sum := 0.0
			for _, j := range heads {
				sum += r.Heads[j].Distance[l]
			}
			for _, j := range heads {
				if h := &r.Heads[j]; sum > 0 {
					h.Distance[l] *= whole / sum
				} else {
					h.Distance[l] = whole / float64(len(heads))
				}
			}
		}
		for _, j := range heads {
			falling(r.Heads[j].Distance)
		}
	}
}

// curve predicts what a head costs at n slots: a power law through two levels, zero at the context.
func curve(levels []int, d []float64, context, n int) float64 {
	last := len(levels) - 1
	if n >= context || d[0] <= 0 {
		return 0
	}
	i := 0 // the piece between levels i and i + 1
	for i+1 < last && n >= levels[i+1] {
		i++
	}
	p := .7 // where there is one level, or nothing left at the next
	if last > 0 && d[i] > 0 && d[i+1] > 0 {
		p = math.Log(d[i]/d[i+1]) / math.Log(float64(levels[i+1])/float64(levels[i]))
	}
	if last > 0 && n >= levels[last] { // so that it ends at zero
		i = last
	}
	if i == last || n < levels[0] {
		p = max(p, .05) // beyond what was measured more slots always help
	}
	fall := func(n int) float64 { return math.Pow(float64(context)/float64(n), p) - 1 }
	if i == last {
		return d[i] * fall(n) / fall(levels[i])
	}
	return d[i] * math.Pow(float64(levels[i])/float64(n), p)
}

// least is what every head has, with one pinned position.
func least(budget int) int { return kernels.HeadLeast(budget, 1) }

// size is what a slot of a head takes: bytes where heads differ and the budget is in bytes, else 1.
func (m *meter) size(j int) float64 {
	if m.slot == nil {
		return 1
	}
	return m.slot[j]
}

// takes is what so many slots of each head take in all.
func (m *meter) takes(slots []int) (sum float64) {
	for j, n := range slots {
		sum += float64(n) * m.size(j)
	}
	return sum
}

// greedy gives slots to the heads that gain most by them. So that a curve that falls late is not overlooked, it looks ahead by
// steps of several sizes and takes what gains most for what it takes.
func (m *meter) greedy(ctx context.Context, r *Result) (slots []int, err error) {
	n := len(r.Heads)
	slots = slices.Repeat([]int{least(r.Budget)}, n)
	left := m.takes(slices.Repeat([]int{r.Budget - least(r.Budget)}, n))
	type offer struct {
		step int
		gain float64 // by what it takes
	}
	look := func(j int) (best offer) {
		d := r.Heads[j].Distance
		at := curve(r.Levels, d, m.context, slots[j])
		for s := 1; float64(s)*m.size(j) <= left && slots[j] < m.context; s *= 2 {
			s := min(s, m.context-slots[j])
			if g := (at - curve(r.Levels, d, m.context, slots[j]+s)) / (float64(s) * m.size(j)); g > best.gain {
				best = offer{s, g}
			}
		}
		return best
	}
	offers := make([]offer, n) // only that of the head that was given some changes
	for j := range offers {
		offers[j] = look(j)
	}
	for round := 0; left > 0; round++ {
		if round%1000 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		best := 0
		for j, o := range offers {
			if o.gain > offers[best].gain {
				best = j
			}
		}
		if offers[best].gain <= 0 { // nothing is gained anywhere
			break
		}
		step := min(offers[best].step, int(left/m.size(best))) // none where no slot of it is left room for
		step = min(step, max(1, step/8))                       // then it looks again
		slots[best] += step
		left -= float64(step) * m.size(best)
		offers[best] = look(best)
	}
	return slots, nil
}
