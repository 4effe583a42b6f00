package tune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

// A Doubling is a layer that was fitted with twice the rank and hidden size that it had, in as many bytes. Distances are those on the windows
// that are tuned on.
type Doubling struct {
	Layer         int
	Rank, Hidden  int     // with which it was fitted
	Before, After float64 // the distance without and with it
	Kept          bool
}

// patience is how many layers in a row may want no larger phi and psi before no other is tried.
const patience = 2

// grow doubles rank and hidden size of a layer as long as that lowers the distance, beside as many slots fewer as it takes bytes; then those of
// the next layer. The first is the one whose phi and psi gain most.
func (f *fitter) grow(ctx context.Context, r *Trained, x *fit, from *prediction) (*fit, *prediction, error) {
	exact, err := f.beside(x.adapter, from)
	if errors.Is(err, memory.ErrBudget) {
		return x, from, nil // the runtime says so
	}
	if err != nil {
		return nil, nil, err
	}
	from = exact
	before, err := f.distance(ctx, x.path, from)
	if err != nil {
		return nil, nil, err
	}
	failed := 0 // layers in a row
	for _, layer := range f.byGain(r.Layers, from) {
		failed++
		for {
			larger, own, err := f.double(ctx, layer, x, from)
			if err != nil {
				return nil, nil, err
			}
			if own == nil {
				break
			}
			next, err := f.join(x, own, layer)
			if err != nil {
				return nil, nil, err
			}
			p, err := f.beside(next.adapter, from)
			if errors.Is(err, memory.ErrBudget) {
				break
			}
			if err != nil {
				return nil, nil, err
			}
			after, err := f.distance(ctx, next.path, p)
			if err != nil {
				return nil, nil, err
			}
			rank, hidden := larger.t.Size(layer)
			r.Sizes = append(r.Sizes, Doubling{layer, rank, hidden, before, after, after < before})
			if after >= before {
				break
			}
			all, err := larger.fitted(own)
			if err != nil {
				return nil, nil, err
			}
			was, is := f.left(r.Layers)[layer], f.left(all)[layer]
			for j, h := range p.Heads {
				if h.Layer == layer && was > 0 {
					p.Heads[j].Distance = scaled(h.Distance, is/was)
				}
			}
			r.replace(all)
			*f, x, from, before, failed = *larger, next, p, after, 0
		}
		if failed == patience {
			break
		}
	}
	return x, from, nil
}

// byGain lists the layers that have phi and psi, those first that would cost most more without them.
func (f *fitter) byGain(fitted []Fitted, from *prediction) []int {
	left, gain := f.left(fitted), map[int]float64{}
	for _, h := range from.Heads {
		if x := left[h.Layer]; x > 0 { // what is left of the cost is what the curve says
			gain[h.Layer] += curve(from.Levels, h.Distance, f.context, h.Slots) * (1/x - 1)
		}
	}
	layers := slices.Clone(from.layers)
	slices.SortStableFunc(layers, func(a, b int) int { return cmp.Compare(gain[b], gain[a]) })
	return layers
}

// double fits a layer with twice its rank and hidden size, under the slots that are left then, spread as before. It returns a fitter that
// counts with that size, and the fit, which has that layer alone; nil if there is no room for it or nothing comes of it.
func (f *fitter) double(ctx context.Context, layer int, x *fit, from *prediction) (*fitter, *fit, error) {
	rank, hidden := f.t.Size(layer)
	if rank, hidden = 2*rank, 2*hidden; max(rank, hidden) > weights.MaxSize {
		return f, nil, nil
	}
	larger, one := *f, *f
	larger.t.Ranks, larger.t.Hiddens = with(f.t.Ranks, layer, rank), with(f.t.Hiddens, layer, hidden)
	c, err := larger.cache([]int{layer})
	if err != nil {
		return nil, nil, err
	}
	p, err := f.beside(f.replaced(x.adapter, c.Adapter, layer), from)
	if errors.Is(err, memory.ErrBudget) {
		return f, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	one.t.Rank, one.t.Hidden, one.t.Ranks, one.t.Hiddens = rank, hidden, nil, nil
	own, err := one.fit(ctx, []int{layer}, p.Result, p.Budget)
	if errors.Is(err, train.ErrMemory) || err == nil && own.adapter.Kernels[layer].Empty() {
		return f, nil, nil
	}
	return &larger, own, err
}

// with returns sizes with another one.
func with(sizes map[int]int, layer, size int) map[int]int {
	all := map[int]int{layer: size}
	for other, n := range sizes {
		if other != layer {
			all[other] = n
		}
	}
	return all
}

// beside has as many slots as there are beside the phi and psi of an adapter, spread by the weights of an allocation. It fails with
// memory.ErrBudget if there are none.
func (f *fitter) beside(a *weights.Adapter, from *prediction) (*prediction, error) {
	allocated := *a
	allocated.Budget = from.Weights(f.t.Model)
	c, err := f.cacheWith(&allocated)
	if err != nil {
		return nil, err
	}
	c.Budget = f.o.Budget
	r := *from.Result
	if r.Budget, err = memory.Slots(f.t.Model, c); err != nil {
		return nil, err
	}
	r.Heads = slices.Clone(r.Heads)
	var weights []float32
	for _, h := range r.Heads {
		weights = append(weights, h.Weight)
	}
	slots, err := kernels.Allocate(weights, r.Budget, least(r.Budget), f.context)
	for j := range slots {
		r.Heads[j].Slots = slots[j]
	}
	return &prediction{Result: &r, layers: from.layers}, err
}

// replaced is an adapter with another one's phi and psi of a layer and of those that share its cache.
func (f *fitter) replaced(a, by *weights.Adapter, layer int) *weights.Adapter {
	b := *a
	b.SHA256, b.Kernels = "", slices.Clone(a.Kernels)
	for i := range b.Kernels {
		if f.t.Model.Owner(i) == layer {
			b.Kernels[i] = by.Kernels[i]
		}
	}
	return &b
}

// join puts the fit of a layer into the place of what a fit had of it, and writes that where the former lies.
func (f *fitter) join(x, own *fit, layer int) (*fit, error) {
	a := f.replaced(x.adapter, own.adapter, layer)
	for _, l := range own.layers {
		k := &a.Kernels[l.Layer]
		a.Description = withLine(a.Description, fmt.Sprintf("layer %d: validation error ", l.Layer), fmt.Sprintf("%.3f of sparse only's", l.Valid))
		a.Description = withLine(a.Description, fmt.Sprintf("layer %d: rank ", l.Layer), fmt.Sprintf("%d, hidden size %d, as lesskv tune found them", k.Rank, k.Hidden))
	}
	return &fit{x.layers, a, own.path}, a.Write(own.path)
}

// withLine returns a description with a line that begins and ends so: in the place of the one that begins so, else as the last.
func withLine(description, begins, ends string) string {
	lines := strings.Split(description, "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, begins) })
	if at < 0 {
		at, lines = len(lines), append(lines, "")
	}
	lines[at] = begins + ends
	return strings.Join(lines, "\n")
}

// distance measures an allocation beside the phi and psi of a file, on the windows that are tuned on.
func (f *fitter) distance(ctx context.Context, adapter string, p *prediction) (float64, error) {
	o := *f.o
	o.From, o.Adapter = p.Result, adapter
	m, err := open(ctx, &o)
	if err != nil {
		return 0, err
	}
	defer m.close()
	var slots []int
	for _, h := range p.Heads {
		slots = append(slots, h.Slots)
	}
	d, err := m.distances(ctx, Sizes, o.Windows, [][]int{slots})
	if err != nil {
		return 0, err
	}
	return d[0], nil
}
