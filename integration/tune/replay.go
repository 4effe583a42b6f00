package tune

import (
	"context"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/train"
)

// A Loss is what a KV head loses in replays of the policy over recorded windows where it alone is limited, one number for each of some
// levels of slots: a mean over the positions that count.
type Loss struct {
	Error []float64 // squared error of the outputs of the layers that attend to it, behind their output projections
	Mass  []float64 // share of the attention that goes to evicted pairs; nil where nobody asked for it
}

// Replay returns what every KV head that has a budget loses, layer by layer, and the levels, which are those of Run. It fails with
// train.ErrModel where a layer has no output projection of the width of its heads, or numbers are not finite.
func Replay(ctx context.Context, o Options) (levels []int, all []Loss, err error) {
	if err := o.fill(); err != nil {
		return nil, nil, err
	}
	m, err := open(ctx, &o)
	if err != nil {
		return nil, nil, fmt.Errorf("tune: %w", err)
	}
	defer m.close()
	levels = replayLevels(m.budget, m.context)
	if all, err = m.replay(ctx, levels, true); err != nil {
		return nil, nil, fmt.Errorf("tune: %w", err)
	}
	return levels, all, nil
}

// replayLevels are the slots that replays are made with: the budget and its halves, from the least that a head can have; its doubles below
// the context; and one between the last of these and the context.
func replayLevels(budget, context int) []int {
	all := []int{least(budget)}
	for n := budget / 2; n > all[0]; n /= 2 {
		all = append(all, n)
	}
	for n := budget; n < context; n *= 2 {
		all = append(all, n)
	}
	slices.Sort(all)
	return slices.Compact(append(all, (all[len(all)-1]+context)/2))
}

// A member is a layer that attends to a cache: its owner, or one that shares it.
type member struct {
	train.Layer
	weights.Shape // its query heads; the rest is the cache's
	sinks         []float32
	windows       []kernels.TrainWindow // what was recorded, of each KV head with the query heads that read it
}

// A family is the owner of a cache, and behind it the layers that share it: together they decide what stays.
type family []*member

// bytes is what a recorded window of a family takes.
func (f family) bytes(tokens int) (n int) {
	for _, m := range f {
		n += 2 * tokens * (m.Heads + m.HeadsKV) * (m.KeyLength + m.ValueLength)
	}
	return n
}

// A replayer records windows and replays the policy over them.
type replayer struct {
	*meter
	levels   []int
	mass     bool // is asked for
	model    *weights.Model
	adapter  *weights.Adapter // nil: none
	runtime  *activations.Runtime
	families []family
}

// recordBytes is what is recorded of a window at a time: as many layers as fit, one at least. The others have passes of their own.
const recordBytes = 1 << 30

// replay replays the policy over the windows with each head by itself. What is done of a layer and window is kept.
func (m *meter) replay(ctx context.Context, levels []int, mass bool) ([]Loss, error) {
	all := make([]Loss, len(m.heads))
	for j := range all {
		all[j].Error = make([]float64, len(levels))
		if mass {
			all[j].Mass = make([]float64, len(levels))
		}
	}
	layers := byLayer(m.heads)
	done := -1
	say := func() {
		if done++; m.o.Progress != nil {
			m.o.Progress(Event{Stage: Replays, Done: done, Total: len(layers) * len(m.o.Windows)})
		}
	}
	say()
	add := func(layer int, part []Loss) {
		for i, j := range layers[layer] {
			for k := range levels {
				all[j].Error[k] += part[i].Error[k] / float64(len(m.o.Windows))
				if mass {
					all[j].Mass[k] += part[i].Mass[k] / float64(len(m.o.Windows))
				}
			}
		}
		say()
	}
	var r *replayer
	for _, tokens := range m.o.Windows {
		key := func(layer int) string {
			return pieces.Key("replay", workFormat, m.sums, tokens, m.o.Policy, m.o.Ubatch, m.first(), levels, mass, m.heads[layers[layer][0]].Layer)
		}
		var todo []int
		for i, heads := range layers {
			var part []Loss
			if m.store.Load(key(i), &part) && len(part) == len(heads) {
				add(i, part)
			} else {
				todo = append(todo, i)
			}
		}
		if len(todo) > 0 && r == nil {
			var err error
			if r, err = m.replayer(ctx, levels, mass); err != nil {
				return nil, err
			}
			defer r.runtime.Close()
		}
		for len(todo) > 0 {
			n, bytes := 0, 0
			for n < len(todo) && (n == 0 || bytes+r.families[todo[n]].bytes(m.context) <= recordBytes) {
				bytes += r.families[todo[n]].bytes(m.context)
				n++
			}
			if err := r.record(tokens, todo[:n]); err != nil {
				return nil, err
			}
			for _, i := range todo[:n] {
				part, err := r.losses(ctx, r.families[i])
				if err != nil {
					return nil, err
				}
				if err := m.store.Save(key(i), part); err != nil {
					return nil, err
				}
				add(i, part)
			}
			todo = todo[n:]
		}
	}
	return all, nil
}

// replayer opens the model anew, with a cache that evicts nothing.
func (m *meter) replayer(ctx context.Context, levels []int, mass bool) (_ *replayer, err error) {
	r := &replayer{meter: m, levels: levels, mass: mass}
	if r.model, err = weights.ReadModel(m.o.Model); err != nil {
		return nil, err
	}
	if m.o.Adapter != "" {
		if r.adapter, err = weights.Read(m.o.Adapter); err != nil {
			return nil, err
		}
		if _, err := weights.Check(r.adapter, r.model); err != nil {
			return nil, err
		}
	}
	if r.runtime, err = activations.Open(ctx, m.o.Worker, m.o.Model, m.context, worker.Share(m.bytes, m.o.Threads, 1)); err != nil {
		return nil, err
	}
	if r.families, err = familiesOf(r.runtime, r.model, m.heads); err != nil {
		r.runtime.Close()
		return nil, err
	}
	return r, nil
}

// familiesOf returns the family of each layer that has heads with a budget.
func familiesOf(r train.Runtime, model *weights.Model, heads []worker.HeadInfo) (all []family, err error) {
	layers, err := r.Layers()
	if err != nil {
		return nil, err
	}
	for _, of := range byLayer(heads) {
		owner := heads[of[0]].Layer
		i := slices.IndexFunc(layers, func(l train.Layer) bool { return l.Index == owner })
		if i < 0 || model.Layer(owner).HeadsKV != len(of) {
			return nil, fmt.Errorf("layer %d: the runtime has %d KV heads in it, the file %d: %w", owner, len(of), model.Layer(owner).HeadsKV, train.ErrModel)
		}
		var f family
		for layer := range model.Layers {
			if model.Owner(layer) != owner {
				continue
			}
			m := &member{Layer: layers[i], Shape: model.Layer(owner)}
			m.Index, m.Heads = layer, model.Layer(layer).Heads
			if m.sinks, err = train.Sinks(r, model, layer); err != nil {
				return nil, err
			}
			f = append(f, m) // the owner comes before those that share its cache
		}
		all = append(all, f)
	}
	return all, nil
}

// record runs the model over a window and keeps what the layers of some families see, each KV head by itself. What was recorded before
// goes.
func (r *replayer) record(tokens []int32, which []int) error {
	for _, f := range r.families {
		for _, m := range f {
			m.windows = nil
		}
	}
	members := map[int]*member{}
	var layers []int
	for _, i := range which {
		for _, m := range r.families[i] {
			members[m.Index] = m
			layers = append(layers, m.Index)
			g := m.Heads / m.HeadsKV
			for range m.HeadsKV {
				m.windows = append(m.windows, kernels.TrainWindow{
					Tokens: len(tokens), Ubatch: r.o.Ubatch,
					Q: make([]uint16, 0, len(tokens)*g*m.KeyLength), K: make([]uint16, 0, len(tokens)*m.KeyLength),
					V: make([]uint16, 0, len(tokens)*m.ValueLength), Full: make([]uint16, 0, len(tokens)*g*m.ValueLength),
				})
			}
		}
	}
	return r.runtime.Record(tokens, layers, func(a train.Attention) error {
		m := members[a.Layer]
		if m == nil {
			return fmt.Errorf("the runtime recorded layer %d, which nobody asked for: %w", a.Layer, train.ErrModel)
		}
		scale := m.Scale * float32(math.Sqrt(float64(m.KeyLength))) // qn in algorithm.md
		for _, part := range []struct {
			x     []float32
			scale float32
			of    func(*kernels.TrainWindow) *[]uint16
		}{
			{a.Q, scale, func(w *kernels.TrainWindow) *[]uint16 { return &w.Q }}, {a.K, 1, func(w *kernels.TrainWindow) *[]uint16 { return &w.K }},
			{a.V, 1, func(w *kernels.TrainWindow) *[]uint16 { return &w.V }}, {a.Out, 1, func(w *kernels.TrainWindow) *[]uint16 { return &w.Full }},
		} {
			half := train.AppendHalf(nil, part.x, part.scale) // [T][Hkv][size]
			size := len(half) / max(1, a.Tokens*m.HeadsKV)
			if size*a.Tokens*m.HeadsKV != len(half) {
				return fmt.Errorf("layer %d: %d numbers of %d tokens and %d heads: %w", a.Layer, len(half), a.Tokens, m.HeadsKV, train.ErrModel)
			}
			for at, i := 0, 0; at < len(half); at, i = at+size, i+1 {
				to := part.of(&m.windows[i%m.HeadsKV])
				*to = append(*to, half[at:at+size]...)
			}
		}
		return nil
	})
}

// losses replays the recorded window of a family, each KV head as a layer of its own: they are independent.
func (r *replayer) losses(ctx context.Context, f family) ([]Loss, error) {
	projections := make([]projection, len(f))
	for i, m := range f {
		var err error
		if projections[i].values, projections[i].out, err = train.Projection(r.runtime, r.model, m.Index); err != nil {
			return nil, err
		}
	}
	all := make([]Loss, f[0].HeadsKV)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, r.o.Threads))
	for j := range all {
		g.Go(func() (err error) {
			all[j], err = r.loss(ctx, f, projections, j)
			return err
		})
	}
	return all, g.Wait()
}

// A projection is that of a layer's output, [out][Hq Dv].
type projection struct {
	values []float32
	out    int
}

// columns returns what it does with the j-th of some equal parts of its input.
func (p projection) columns(j, parts int) []float32 {
	in := len(p.values) / p.out
	size := in / parts
	some := make([]float32, 0, p.out*size)
	for ; len(p.values) > 0; p.values = p.values[in:] {
		some = append(some, p.values[j*size:(j+1)*size]...)
	}
	return some
}

// A reader is the query heads of one layer that read a KV head.
type reader struct {
	w       kernels.TrainWindow
	shape   kernels.TrainShape
	gram    []float32
	weights []float32 // phi and psi; nil: none
	sinks   []float32
	scratch []byte
}

// reader makes one of a family's.
func (r *replayer) reader(f family, i, j int, p projection) (*reader, error) {
	m := f[i]
	g := m.Heads / m.HeadsKV
	w := m.windows[j]
	w.Sparse, w.LSE, w.Evicted = make([]uint16, len(w.Full)), make([]float32, w.Tokens*g), make([]int32, w.Tokens)
	x := &reader{w: w, shape: kernels.TrainShape{
		Shape: kernels.Shape{Heads: g, HeadsKV: 1, KeySize: m.KeyLength, Rank: 1, Hidden: 1}, ValueSize: m.ValueLength,
	}}
	if m.sinks != nil {
		x.sinks = m.sinks[j*g : (j+1)*g]
	}
	if r.adapter != nil {
		if x.weights = phiPsi(r.adapter, f, i, j); x.weights != nil {
			x.shape.Rank, x.shape.Hidden = size(r.adapter, f, i)
		}
	}
	x.scratch = make([]byte, x.shape.Scratch(w.Tokens, w.Ubatch))
	var err error
	x.gram, err = kernels.TrainGram(p.columns(j, m.HeadsKV), p.out, g*m.ValueLength)
	return x, err
}

// size returns rank and hidden size of phi of the i-th layer of a family, with psi of the cache: of their hidden sizes the larger.
func size(a *weights.Adapter, f family, i int) (rank, hidden int) {
	k, cache := &a.Kernels[f[i].Index], &a.Kernels[f[0].Index]
	return k.Rank, max(k.Hidden, cache.Hidden)
}

// phiPsi returns phi of the query heads that read a KV head in the i-th layer of a family, with psi of the cache and phi's scales, in the
// order of kernels.TrainShape; nil where that layer has no phi. The one with the smaller hidden size is padded with zeros, which change nothing: gelu(0) is 0.
func phiPsi(a *weights.Adapter, f family, i, j int) (all []float32) {
	k, cache := &a.Kernels[f[i].Index], &a.Kernels[f[0].Index]
	if !k.HasPhi() {
		return nil
	}
	_, hidden := size(a, f, i)
	of := func(m weights.Matrix) []float32 {
		n := len(m.Values) / f[0].HeadsKV
		return m.Values[j*n : (j+1)*n]
	}
	add := func(k *weights.Kernels, first, second weights.Matrix) {
		d, more := f[0].KeyLength, hidden-k.Hidden
		all = append(all, padded(of(first), k.Hidden*d, more*d)...)
		all = append(all, padded(of(second), k.Hidden, more)...)
	}
	add(k, k.Phi[0], k.Phi[1])
	add(cache, cache.Psi[0], cache.Psi[1])
	all = append(all, of(cache.Psi[2])...)
	all = append(all, of(k.Scale)...)
	if len(k.Scale.Values) == 0 {
		all = append(all, make([]float32, f[i].Heads/f[i].HeadsKV)...)
	}
	return all
}

// padded puts so many zeros behind each n numbers.
func padded(x []float32, n, more int) (all []float32) {
	for part := range slices.Chunk(x, n) {
		all = append(append(all, part...), make([]float32, more)...)
	}
	return all
}

// loss replays the recorded window of a family's KV head.
func (r *replayer) loss(ctx context.Context, f family, projections []projection, j int) (Loss, error) {
	var readers []*reader
	var sharers []kernels.TrainSharer
	for i := range f {
		x, err := r.reader(f, i, j, projections[i])
		if err != nil {
			return Loss{}, err
		}
		readers = append(readers, x)
		if i > 0 {
			sharers = append(sharers, kernels.TrainSharer{Heads: x.shape.Heads, Window: &x.w, Sinks: x.sinks})
		}
	}
	replay := func(n int) error {
		heavy, err := kernels.HeadHeavy(r.o.Policy, n, n, -1, 1)
		if err != nil {
			return err
		}
		return readers[0].w.Replay(kernels.Layer{
			Heads: readers[0].shape.Heads, HeadsKV: 1, KeySize: f[0].KeyLength, ValueSize: f[0].ValueLength, KeyType: kernels.F16, ValueType: kernels.F16,
			Policy: r.o.Policy, Budget: n, Heavy: heavy, Pinned: 1,
		}, f[0].SoftCap, readers[0].sinks, sharers...)
	}
	loss := Loss{Error: make([]float64, len(r.levels))}
	var whole [][]float32 // the log of the softmax denominator with nothing evicted
	if r.mass {
		if err := replay(r.context); err != nil {
			return loss, err
		}
		for _, x := range readers {
			whole = append(whole, slices.Clone(x.w.LSE))
		}
		loss.Mass = make([]float64, len(r.levels))
	}
	for k, n := range r.levels {
		if err := ctx.Err(); err != nil {
			return loss, err
		}
		if err := replay(n); err != nil {
			return loss, err
		}
		for i, x := range readers {
			if r.mass {
				loss.Mass[k] += x.missed(whole[i], r.first()) / float64(len(readers))
			}
			sum, err := x.error(r.first())
			if err != nil {
				return loss, err
			}
			loss.Error[k] += sum
		}
		if e := loss.Error[k]; math.IsNaN(e) || math.IsInf(e, 0) {
			return loss, fmt.Errorf("layer %d, head %d: the error of a replay with %d slots is %v: %w", f[0].Index, j, n, e, train.ErrModel)
		}
	}
	return loss, nil
}

// missed returns the mean share of the attention that goes to evicted pairs, from a position on.
func (x *reader) missed(whole []float32, first int) (share float64) {
	heads := x.shape.Heads
	for i := first * heads; i < len(whole); i++ {
		share += 1 - math.Exp(min(0, float64(x.w.LSE[i]-whole[i])))
	}
	return share / float64(len(whole)-first*heads)
}

// error returns the mean squared error behind the output projection, from a position on: what comes before it is made equal.
func (x *reader) error(first int) (float64, error) {
	w := &x.w
	n := first * x.shape.Heads
	copy(w.Sparse[:n*x.shape.ValueSize], w.Full)
	for i := range w.LSE[:n] {
		w.LSE[i] = float32(math.Inf(1)) // the state has no part in the output then
	}
	e, err := w.Error(x.shape, x.weights, x.gram, x.scratch, nil)
	return e.Sum / float64(w.Tokens-first), err
}
