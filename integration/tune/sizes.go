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

// A Sizing is a layer that was fitted with twice or half the rank and hidden size that it had, in as many bytes. Distances are those on the windows
// that are tuned on.
type Sizing struct {
	Layer         int
	Rank, Hidden  int     // with which it was fitted
	Before, After float64 // the distance without and with it
	Kept          bool
}

// patience is how many layers in a row may stay as they are before no other is tried.
const patience = 2

// A sizeSearch looks for the rank and hidden size of each layer.
type sizeSearch struct {
	*fitter
	r        *Trained
	x        *fit        // with the sizes that were found
	from     *prediction // the allocation beside that
	measured float64     // their distance
}

// resize doubles rank and hidden size of a layer as long as that lowers the distance, beside as many slots fewer as it takes bytes; then those of
// the next layer. The first is the one whose phi and psi gain most. Then it halves those of layers that were not doubled, as long as the slots
// that this leaves room for make up for it. The first is the one whose phi and psi gain least.
func (f *fitter) resize(ctx context.Context, r *Trained, x *fit, from *prediction) (*fit, *prediction, error) {
	exact, err := f.beside(x.adapter, from)
	if errors.Is(err, memory.ErrBudget) {
		return x, from, nil // the runtime says so
	}
	if err != nil {
		return nil, nil, err
	}
	s := &sizeSearch{fitter: f, r: r, x: x, from: exact}
	if s.measured, err = f.distance(ctx, x.path, exact); err != nil {
		return nil, nil, err
	}
	layers := f.byGain(r.Layers, exact)
	if err := s.each(ctx, layers, true); err != nil {
		return nil, nil, err
	}
	layers = slices.DeleteFunc(layers, func(layer int) bool {
		return slices.ContainsFunc(r.Sizes, func(d Sizing) bool { return d.Layer == layer && d.Kept })
	})
	slices.Reverse(layers)
	if err := s.each(ctx, layers, false); err != nil {
		return nil, nil, err
	}
	return s.x, s.from, nil
}

// each makes layers larger or smaller, one after the other, as long as that pays.
func (s *sizeSearch) each(ctx context.Context, layers []int, larger bool) error {
	failed := 0 // layers in a row
	for _, layer := range layers {
		failed++
		for {
			kept, err := s.try(ctx, layer, larger)
			if err != nil {
				return err
			}
			if !kept {
				break
			}
			failed = 0
		}
		if failed == patience {
			break
		}
	}
	return nil
}

// try fits a layer with twice its rank and hidden size, or with half of them, and keeps that if it is closer; half of them also if it is as close.
func (s *sizeSearch) try(ctx context.Context, layer int, larger bool) (kept bool, err error) {
	rank, hidden := s.t.Size(layer)
	was := max(rank, hidden)
	if larger {
		rank, hidden = 2*rank, 2*hidden
	} else {
		rank, hidden = max(1, rank/2), max(1, hidden/2)
	}
	if n := max(rank, hidden); n == was || n > weights.MaxSize {
		return false, nil
	}
	f, own, err := s.refit(ctx, layer, rank, hidden, s.x, s.from)
	if err != nil || own == nil {
		return false, err
	}
	next, err := f.join(s.x, own, layer)
	if err != nil {
		return false, err
	}
	p, err := f.beside(next.adapter, s.from)
	if errors.Is(err, memory.ErrBudget) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	after, err := f.distance(ctx, next.path, p)
	if err != nil {
		return false, err
	}
	kept = after < s.measured || !larger && after == s.measured
	s.r.Sizes = append(s.r.Sizes, Sizing{layer, rank, hidden, s.measured, after, kept})
	if !kept {
		return false, nil
	}
	all, err := f.fitted(own)
	if err != nil {
		return false, err
	}
	left, leaves := f.left(s.r.Layers)[layer], f.left(all)[layer]
	for j, h := range p.Heads {
		if h.Layer == layer && left > 0 {
			p.Heads[j].Distance = scaled(h.Distance, leaves/left)
		}
	}
	s.r.replace(all)
	*s.fitter, s.x, s.from, s.measured = *f, next, p, after
	return true, nil
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

// refit fits a layer with a rank and hidden size, under the slots that are left then, spread as before. It returns a fitter that counts with
// that size, and the fit, which has that layer alone; nil if there is no room for it or nothing comes of it.
func (f *fitter) refit(ctx context.Context, layer, rank, hidden int, x *fit, from *prediction) (*fitter, *fit, error) {
	other, one := *f, *f
	other.t.Ranks, other.t.Hiddens = with(f.t.Ranks, layer, rank), with(f.t.Hiddens, layer, hidden)
	c, err := other.cache([]int{layer})
	if errors.Is(err, train.ErrMemory) {
		return f, nil, nil
	}
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
	return &other, own, err
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
