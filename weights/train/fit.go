package train

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/weights"
)

// A LayerReport is how the fit of a layer went. Errors are those of the layer's output on the validation windows, relative
// to sparse-only's at the same budget.
type LayerReport struct {
	Layer int
	Steps int     // of the optimiser, until the best weights
	Start float64 // before the first step
	Train float64 // on the training windows, over the last steps
	Valid float64
	Plus  float64 // Baseline+: sparse-only with the state's bytes as more slots
	Times Times

	// Sparse is why the layer has no phi and psi and runs sparse only, its errors being 1 then: what they would have to be is beyond
	// single precision. "": it has them.
	Sparse string `json:",omitempty"`
}

// maxSpread is the log of the ratio of the largest and the smallest normal number of single precision.
const maxSpread = 254 * math.Ln2

// errRange is a fit that leaves the numbers that single precision has.
var errRange = errors.New("beyond single precision")

// Times are what the fit of a layer took, by the clock.
type Times struct {
	Replay   time.Duration // of all windows, and sparse-only's and Baseline+'s errors
	Steps    time.Duration // of the optimiser
	Validate time.Duration
	Taken    int // steps, those after the best weights included
	Looks    int // at the validation windows
}

// Total is all of it.
func (t Times) Total() time.Duration { return t.Replay + t.Steps + t.Validate }

// Looks is how often a fit looks at the validation windows, evenly over its steps.
const Looks = 25

const (
	patience = 8    // looks without a better one, and the fit ends
	warmup   = 0.05 // share of the steps over which the rate rises
	beta1    = 0.9  // of Adam (Kingma and Ba, arXiv 1412.6980)
	beta2    = 0.99
	epsilon  = 1e-8
	part     = 4   // a step looks at one of so many blocks of 64 queries
	averaged = 0.1 // share of the steps so far that the mean of the weights looks back over
)

// fitter fits one layer.
type fitter struct {
	o       *Options
	layer   Layer
	shape   kernels.TrainShape
	psi     []float32 // of a sharer: that of the cache, its three matrices one after the other; nil: to be fitted
	data    *samples
	train   int // windows, before those of validation
	valid   int
	gram    []float32
	scratch []byte
	weights []float32
	pace    []float32 // how far a step moves each weight, at a rate of 1
	sparse  []float64 // sparse-only's error, by sample; 0 where nothing is evicted
	tokens  []int     // that it is the sum over
}

// fitted is what came of a layer: its phi and psi in F32, none if it is to run sparse only.
type fitted struct {
	kernels weights.Kernels
	report  LayerReport
}

// fit fits a layer, and then phi of those that share its cache to its psi; the layer itself comes first. One goroutine, and the same
// seed gives the same bits.
func (s *store) fit(ctx context.Context, r Runtime, l Layer, train, valid int) ([]fitted, error) {
	began := time.Now()
	family, err := s.family(r, l)
	if err != nil {
		return nil, err
	}
	defer family.close()
	if err := s.replayAll(ctx, family); err != nil {
		return nil, err
	}
	replay := time.Since(began)
	var all []fitted
	for i, m := range family {
		var psi []float32
		if i > 0 {
			if all[0].kernels.Empty() {
				why := fmt.Sprintf("layer %d, whose cache it shares, has no psi", l.Index)
				all = append(all, fitted{report: LayerReport{Layer: m.layer.Index, Start: 1, Train: 1, Valid: 1, Plus: 1, Sparse: why}})
				continue
			}
			for _, m := range all[0].kernels.Psi {
				psi = append(psi, m.Values...)
			}
		}
		k, report, err := s.tryFit(ctx, r, family, i, psi, train, valid)
		report.Times.Replay += replay
		replay = 0 // the layer's own
		switch {
		case errors.Is(err, errRange):
			k, report = weights.Kernels{}, LayerReport{Layer: m.layer.Index, Start: 1, Train: 1, Valid: 1, Plus: 1, Times: report.Times, Sparse: err.Error()}
		case err != nil:
			return nil, err
		case report.Valid >= 1: // they would be bytes for nothing
			k, report.Sparse = weights.Kernels{}, fmt.Sprintf("with them the error of its output is %.3f of sparse-only's on the validation windows", report.Valid)
		}
		all = append(all, fitted{k, report})
	}
	return all, nil
}

// tryFit fits the i-th of a family. psi: the first one's, which stays as it is; nil: its own.
func (s *store) tryFit(ctx context.Context, r Runtime, family family, i int, psi []float32, train, valid int) (weights.Kernels, LayerReport, error) {
	o, l := family[i].o, family[i].layer
	report := LayerReport{Layer: l.Index}
	began := time.Now()
	wo, out, err := Projection(r, o.Model, l.Index)
	if err != nil {
		return weights.Kernels{}, report, err
	}
	f := &fitter{o: o, layer: l, shape: o.shape(), psi: psi, train: train, valid: valid}
	if f.gram, err = kernels.TrainGram(wo, out, o.Model.Heads*o.Model.ValueLength); err != nil {
		return weights.Kernels{}, report, err
	}
	if f.data, err = s.open(l.Index); err != nil {
		return weights.Kernels{}, report, err
	}
	defer f.data.close()
	f.scratch = make([]byte, f.shape.Scratch(o.Context, o.Ubatch))
	if err := f.measureSparse(ctx); err != nil {
		return weights.Kernels{}, report, err
	}
	if report.Plus, err = f.plus(ctx, family, i); err != nil {
		return weights.Kernels{}, report, err
	}
	report.Times.Replay = time.Since(began)
	random := rand.New(rand.NewPCG(o.Seed, uint64(l.Index)))
	if err := f.start(random); err != nil {
		return weights.Kernels{}, report, err
	}
	if err := f.run(ctx, random, &report); err != nil {
		return weights.Kernels{}, report, err
	}
	k, err := f.kernels()
	return k, report, err
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// sample numbers a window and a budget: windows of training first, all budgets of a window together.
func (f *fitter) sample(i int) (window, budget int) {
	return i / len(f.o.Budgets), i % len(f.o.Budgets)
}

func (f *fitter) samples() (train, all int) {
	n := len(f.o.Budgets)
	return f.train * n, (f.train + f.valid) * n
}

// error returns a sample's error, with weights or without.
func (f *fitter) error(i int, w []float32, grad []float32) (kernels.TrainError, error) {
	return f.errorOfPart(i, w, grad, 1, 0)
}

func (f *fitter) errorOfPart(i int, w []float32, grad []float32, every, from int) (kernels.TrainError, error) {
	window, budget := f.sample(i)
	data, err := f.data.read(window, budget)
	if err != nil {
		return kernels.TrainError{}, err
	}
	return data.ErrorOfPart(f.shape, w, f.gram, f.scratch, grad, every, from)
}

// step is error of one of `part` parts of the sample's queries, with its gradient, as it would be for all of them.
func (f *fitter) step(i, from int, w []float32, grad []float32) (float64, error) {
	e, err := f.errorOfPart(i, w, grad, part, from)
	if err != nil || e.Tokens == 0 {
		return 0, err
	}
	all := float64(f.tokens[i]) / float64(e.Tokens)
	for j := range grad {
		grad[j] *= float32(all)
	}
	return all * e.Sum, nil
}

func (f *fitter) measureSparse(ctx context.Context) error {
	train, all := f.samples()
	f.sparse, f.tokens = make([]float64, all), make([]int, all)
	var sum, valid float64
	for i := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := f.error(i, nil, nil)
		if err != nil {
			return err
		}
		f.sparse[i], f.tokens[i] = e.Sum, e.Tokens
		if i < train {
			sum += e.Sum
		} else {
			valid += e.Sum
		}
	}
	if !finite(sum + valid) {
		return fmt.Errorf("sparse-only's error is %v: %w", sum+valid, errRange)
	}
	if f.o.Allocation != nil && (sum == 0 || valid == 0) {
		return fmt.Errorf("under the allocation nothing is lost in it: %w", errRange)
	}
	if sum == 0 || valid == 0 {
		return fmt.Errorf("train: layer %d: sparse-only's error is %v over the training windows, %v over those of validation: nothing to learn from windows of %d tokens with a budget of %d: %w",
			f.layer.Index, sum, valid, f.o.Context, f.o.Budgets[0], ErrOption)
	}
	return nil
}

// plus measures Baseline+ on the validation windows: of the layer that the fitter is about, the i-th of a family.
func (f *fitter) plus(ctx context.Context, family family, i int) (float64, error) {
	var sum, sparse float64
	train, all := f.samples()
	for at := train; at < all; at++ {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		window, budget := f.sample(at)
		if err := family.replay(window, family[0].o.plus(f.o.Budgets[budget])); err != nil {
			return 0, err
		}
		e, err := family[i].w.Error(f.shape, nil, f.gram, f.scratch, nil)
		if err != nil {
			return 0, err
		}
		sum += e.Sum
		sparse += f.sparse[at]
	}
	if !finite(sum) {
		return 0, fmt.Errorf("the error of Baseline+ is %v: %w", sum, errRange)
	}
	return sum / sparse, nil
}

// start draws weights that keep the variance of what goes through them, and gives each query head the scale at which the logit of the
// low-rank part is, in the mean over its queries, the log of the softmax mass that the sparse part misses. phi z, which is f32, must
// follow that mass: where it spreads over more than f32 holds, there is nothing to fit.
func (f *fitter) start(random *rand.Rand) error {
	s := f.shape
	f.weights = make([]float32, s.Weights())
	w, err := f.data.read(0, 0)
	if err != nil {
		return err
	}
	const gelu = 0.65 // root mean square of gelu(x) for normal x
	matrices := [5]struct {
		spread float64
		inputs []unit // [heads][D]; nil: all 1
	}{
		{1 / math.Sqrt(float64(s.KeySize)), units(w.Q, s.Heads, s.KeySize)}, {1 / (gelu * math.Sqrt(float64(s.Hidden))), nil},
		{1 / math.Sqrt(float64(s.KeySize)), units(w.K, s.HeadsKV, s.KeySize)}, {1 / (gelu * math.Sqrt(float64(s.Hidden))), nil},
		{1 / (gelu * math.Sqrt(float64(s.Rank))), nil},
	}
	at := 0
	f.pace = slices.Repeat([]float32{1}, len(f.weights))
	for i, m := range matrices {
		n := s.Sizes()[i]
		for j := range n {
			u := unit{1, 1}
			if m.inputs != nil {
				u = m.inputs[j/(s.Hidden*s.KeySize)*s.KeySize+j%s.KeySize]
			}
			f.weights[at+j] = float32(u.start * m.spread * random.NormFloat64())
			f.pace[at+j] = float32(u.step)
		}
		at += n
	}
	scale := f.weights[at:]
	if f.psi != nil {
		from := at - len(f.psi)
		copy(f.weights[from:], f.psi)
		clear(f.pace[from:at])
	}

	train, _ := f.samples()
	const looks = 6 // samples, evenly over the training windows
	sum, count := make([]float64, s.Heads), make([]float64, s.Heads)
	least, most := slices.Repeat([]float64{math.Inf(1)}, s.Heads), slices.Repeat([]float64{math.Inf(-1)}, s.Heads)
	for i := range min(looks, train) {
		e, err := f.error(i*train/min(looks, train), f.weights, nil)
		if err != nil {
			return err
		}
		_, budget := f.sample(i * train / min(looks, train))
		missing, err := f.data.w.Missing(f.o.layer(f.o.Budgets[budget]), f.layer.SoftCap, 1+f.o.Context/128)
		if err != nil {
			return err
		}
		for h, m := range missing {
			if math.IsNaN(m.Mean) || math.IsNaN(e.LogMass[h]) {
				continue // nothing is evicted; or phi z is 0, as where a head's queries are all 0, and no scale changes that
			}
			sum[h] += m.Mean - e.LogMass[h]
			count[h]++
			least[h], most[h] = min(least[h], m.Least), max(most[h], m.Most)
		}
	}
	for h := range scale {
		if count[h] == 0 {
			continue
		}
		scale[h] = float32(sum[h] / count[h])
		if spread := most[h] - least[h]; !(spread <= maxSpread) {
			return fmt.Errorf("what query head %d misses, from e^%.1f to e^%.1f, is a spread %w", h, least[h], most[h], errRange)
		}
		if !finite(float64(scale[h])) {
			return fmt.Errorf("the scale of query head %d begins with %v, which is %w", h, scale[h], errRange)
		}
	}
	group(scale, s.Heads/s.HeadsKV)
	return nil
}

// group lets the g query heads of a KV head begin with the mean of their scales, unless they are far apart: fits have ended better so.
// A head whose scale is 0 has none, and keeps that.
func group(scale []float32, g int) {
	const far = 16
	for ; len(scale) > 0; scale = scale[g:] {
		var all []*float32
		for h := range scale[:g] {
			if scale[h] != 0 {
				all = append(all, &scale[h])
			}
		}
		var mean float32
		least, most := float32(math.Inf(1)), float32(math.Inf(-1))
		for _, x := range all {
			mean += *x / float32(len(all))
			least, most = min(least, *x), max(most, *x)
		}
		if most-least > far {
			continue
		}
		for _, x := range all {
			*x = mean
		}
	}
}

// unit is how large the weights of a number of a query or key are, and how far one step moves them.
type unit struct{ start, step float64 }

// units returns those of each number of a head's vectors, [heads][size]. They begin as one over the usual root mean square. Keys with a
// constant have numbers that are a hundred times as large as the others: their weights are smaller, and so are the steps of these.
func units(h []uint16, heads, size int) []unit {
	square := make([]float64, heads*size)
	for i, x := range kernels.F16.ToF32(raw(h), len(h)) {
		square[i%len(square)] += float64(x) * float64(x) * float64(len(square)) / float64(len(h))
	}
	const large = 4 // times the usual
	all := make([]unit, len(square))
	for at := 0; at < len(all); at += size {
		usual := cmp.Or(median(square[at:at+size]), median(square), 1) // of the head, or of all where it is dead
		for i := at; i < at+size; i++ {
			step := 1.
			if rms := math.Sqrt(square[i]); rms > large*usual {
				step = large * usual / rms
			}
			all[i] = unit{step / usual, step}
		}
	}
	return all
}

// median returns that of root mean squares, which are given as squares. Numbers that are nothing beside the largest, as padding is, don't count; 0:
// there is no other.
func median(square []float64) float64 {
	const (
		nothing = 0x1p-28 // of the largest square
		least   = 0x1p-10 // else weights would begin beyond F16
	)
	live := slices.Sorted(slices.Values(square))
	for len(live) > 0 && live[0] <= nothing*live[len(live)-1] {
		live = live[1:]
	}
	if len(live) == 0 {
		return 0
	}
	return max(math.Sqrt(live[len(live)/2]), least)
}

// validate returns the error of weights on the validation windows.
func (f *fitter) validate(ctx context.Context, weights []float32) (float64, error) {
	var sum, sparse float64
	train, all := f.samples()
	for i := train; i < all; i++ {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		e, err := f.error(i, weights, nil)
		if err != nil {
			return 0, err
		}
		sum += e.Sum
		sparse += f.sparse[i]
	}
	return sum / sparse, nil
}

// adam is the state of the optimiser: moments of the gradient, and the steps that it has taken.
type adam struct {
	first, second []float64
	taken         float64
}

func newAdam(n int) *adam { return &adam{first: make([]float64, n), second: make([]float64, n)} }

// step moves weights, each at its pace, by a gradient in units of norm. One that is beyond single precision, as it may be where phi z is
// next to 0, moves none.
func (a *adam) step(weights, pace, grad []float32, norm, rate float64) {
	if slices.ContainsFunc(grad, func(g float32) bool { return !finite(float64(g)) }) {
		return
	}
	a.taken++
	fix1, fix2 := 1-math.Pow(beta1, a.taken), 1-math.Pow(beta2, a.taken)
	for j, g32 := range grad {
		g := float64(g32) / norm
		a.first[j] += (1 - beta1) * (g - a.first[j])
		a.second[j] += (1 - beta2) * (g*g - a.second[j])
		weights[j] -= pace[j] * float32(rate*a.first[j]/fix1/(math.Sqrt(a.second[j]/fix2)+epsilon))
	}
}

// run is Adam with a rate that rises and then falls as a cosine. What is looked at is a running mean of the weights, which is
// ahead of them while the rate is large; the mean that did best on the validation windows wins.
func (f *fitter) run(ctx context.Context, random *rand.Rand, report *LayerReport) error {
	train, _ := f.samples()
	var norm float64
	for _, e := range f.sparse[:train] {
		norm += e / float64(train)
	}
	n := len(f.weights)
	grad, adam := make([]float32, n), newAdam(n)
	mean, best := slices.Clone(f.weights), slices.Clone(f.weights)
	times := &report.Times
	look := func() (float64, error) {
		began := time.Now()
		valid, err := f.validate(ctx, mean)
		times.Validate += time.Since(began)
		times.Looks++
		return valid, err
	}
	valid, err := look()
	if err != nil {
		return err
	}
	report.Start, report.Valid = valid, valid
	if !finite(valid) {
		return fmt.Errorf("the error before the first step is %v: %w", valid, errRange)
	}
	every := max(1, f.o.Steps/Looks)
	since, bad := 0.0, 0
	var sinceSparse float64
	var order []int
	began := time.Now()
	for step := 1; step <= f.o.Steps; step++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(order) == 0 {
			order = random.Perm(train)
		}
		i := order[0]
		order = order[1:]
		clear(grad)
		sum, err := f.step(i, random.IntN(part), f.weights, grad)
		if err != nil {
			return err
		}
		if !finite(sum) {
			if report.Valid >= 1 {
				return fmt.Errorf("the error after %d steps is %v: %w", step-1, sum, errRange)
			}
			break // what was best before stays
		}
		since += sum
		sinceSparse += f.sparse[i]

		progress := float64(step) / float64(f.o.Steps)
		rate := f.o.Rate * min(1, progress/warmup) * (1 + math.Cos(math.Pi*progress)) / 2
		adam.step(f.weights, f.pace, grad, norm, rate)
		back := float32(max(1, averaged*float64(step)))
		for j, x := range f.weights {
			mean[j] += (x - mean[j]) / back
		}

		if step%every == 0 || step == f.o.Steps {
			times.Steps += time.Since(began)
			if valid, err = look(); err != nil {
				return err
			}
			times.Taken, began = step, time.Now()
			if sinceSparse > 0 { // else nothing was evicted in these samples
				report.Train = since / sinceSparse
			}
			since, sinceSparse = 0, 0
			f.o.Progress(Event{Stage: Fitting, Layer: f.layer.Index, Done: step, Total: f.o.Steps, Train: report.Train, Valid: valid, Plus: report.Plus})
			bad++
			if valid < report.Valid {
				report.Valid, report.Steps, bad = valid, step, 0
				copy(best, mean)
			}
			if bad >= patience {
				break
			}
		}
	}
	f.weights = best
	return nil
}

// kernels returns the weights as the adapter holds them.
func (f *fitter) kernels() (weights.Kernels, error) {
	k := weights.Kernels{Rank: f.shape.Rank, Hidden: f.shape.Hidden}
	into := [6]*weights.Matrix{&k.Phi[0], &k.Phi[1], &k.Psi[0], &k.Psi[1], &k.Psi[2], &k.Scale}
	at := 0
	for i, n := range f.shape.Sizes() {
		values := f.weights[at : at+n : at+n]
		at += n
		most := 65504.0 // the largest number of F16
		if i >= 4 {     // always F32
			most = math.MaxFloat32
		}
		for _, x := range values {
			if !(math.Abs(float64(x)) <= most) {
				return k, fmt.Errorf("a weight is %v: %w", x, errRange)
			}
		}
		into[i].Values = values
	}
	if f.psi != nil {
		k.Psi = [3]weights.Matrix{} // it is in the layer whose cache this one shares
	}
	return k, nil
}
