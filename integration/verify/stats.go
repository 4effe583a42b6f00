package verify

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/stat"

	"github.com/lesskv/lesskv/integration/distance"
)

// sums are a block's, or a whole row's.
type sums struct{ n, targets, nll, full, kl, agree float64 }

func (s *sums) add(t sums, weight float64) {
	s.n += weight * t.n
	s.targets += weight * t.targets
	s.nll += weight * t.nll
	s.full += weight * t.full
	s.kl += weight * t.kl
	s.agree += weight * t.agree
}

func (s sums) meanKL() float64         { return s.kl / s.n }
func (s sums) perplexity() float64     { return exp(s.nll / s.targets) }
func (s sums) fullPerplexity() float64 { return exp(s.full / s.targets) }
func (s sums) increase() float64       { return s.perplexity() - s.fullPerplexity() }
func (s sums) top1() float64           { return s.agree / s.n }

// exp stays a number, as JSON has no infinity.
func exp(x float64) float64 { return min(math.Exp(x), math.MaxFloat64) }

// blocks cuts positions [from, to) of every window into blocks of so many.
func blocks(windows []*distance.Points, from, to, size int) []sums {
	var all []sums
	for _, p := range windows {
		for at := from; at < min(to, len(p.KL)); at += size {
			var s sums
			for i := at; i < min(at+size, to, len(p.KL)); i++ {
				s.n++
				s.kl += p.KL[i]
				if p.Agree[i] {
					s.agree++
				}
				if i+1 < len(p.KL) {
					s.targets++
					s.nll += p.NLL[i]
					s.full += p.Full[i]
				}
			}
			all = append(all, s)
		}
	}
	return all
}

// A sampler draws blocks, the same for every row that has as many.
type sampler struct {
	samples int
	seed    uint64
	drawn   map[int][][]float64
}

// weights returns, for n blocks, how often each is drawn: [samples][n].
func (s *sampler) weights(n int) [][]float64 {
	if w, ok := s.drawn[n]; ok {
		return w
	}
	r := rand.New(rand.NewPCG(s.seed, uint64(n)))
	w := make([][]float64, s.samples)
	for i := range w {
		w[i] = make([]float64, n)
		for range n {
			w[i][r.IntN(n)]++
		}
	}
	s.drawn[n] = w
	return w
}

// estimate is a statistic of n blocks that are weighted, and its interval.
func (s *sampler) estimate(n int, of func(weights []float64) float64) Estimate {
	one := make([]float64, n)
	for i := range one {
		one[i] = 1
	}
	e := Estimate{Value: of(one)}
	drawn := s.weights(n)
	values := make([]float64, 0, len(drawn))
	for _, w := range drawn {
		if x := of(w); !math.IsNaN(x) && !math.IsInf(x, 0) { // a draw without any target
			values = append(values, x)
		}
	}
	if len(values) == 0 {
		e.Low, e.High = e.Value, e.Value
		return e
	}
	slices.Sort(values)
	if values[0] == values[len(values)-1] { // a mean would round
		e.Low, e.High = values[0], values[0]
		return e
	}
	e.SE = stat.StdDev(values, nil)
	e.Low = stat.Quantile(0.025, stat.LinInterp, values, nil)
	e.High = stat.Quantile(0.975, stat.LinInterp, values, nil)
	return e
}

// of is an estimate of a statistic of the blocks' sums.
func (s *sampler) of(b []sums, f func(sums) float64) Estimate {
	return s.estimate(len(b), func(w []float64) float64 { return f(weigh(b, w)) })
}

// pair is an estimate of a statistic of two rows with the same blocks.
func (s *sampler) pair(a, b []sums, f func(a, b sums) float64) Estimate {
	return s.estimate(len(a), func(w []float64) float64 { return f(weigh(a, w), weigh(b, w)) })
}

// mean is an estimate of a mean of few values, each drawn for itself.
func (s *sampler) mean(values []float64) Estimate {
	return s.estimate(len(values), func(w []float64) float64 { return stat.Mean(values, w) })
}

func weigh(b []sums, w []float64) sums {
	var total sums
	for i, s := range b {
		if w[i] != 0 {
			total.add(s, w[i])
		}
	}
	return total
}

// measure is every measure over positions [from, …).
func (s *sampler) measure(windows []*distance.Points, from, block int) Measures {
	b := blocks(windows, from, math.MaxInt, block)
	m := Measures{
		Blocks:     len(b),
		Perplexity: s.of(b, sums.perplexity),
		Increase:   s.of(b, sums.increase),
		KL:         s.of(b, sums.meanKL),
		Top1:       s.of(b, sums.top1),
	}
	// The percentile: positions in order of their KL, each with the weight of its block.
	type point struct {
		kl    float64
		block int
	}
	var all []point
	first := 0
	for _, p := range windows {
		for i := from; i < len(p.KL); i++ {
			all = append(all, point{p.KL[i], first + (i-from)/block})
		}
		first += (max(len(p.KL)-from, 0) + block - 1) / block
	}
	slices.SortFunc(all, func(a, b point) int { return cmp.Or(cmp.Compare(a.kl, b.kl), a.block-b.block) })
	sorted, weights := make([]float64, len(all)), make([]float64, len(all))
	for i, p := range all {
		sorted[i] = p.kl
	}
	m.Positions = len(all)
	m.KLMax = sorted[len(sorted)-1]
	m.KLP99 = s.estimate(len(b), func(w []float64) float64 {
		for i, p := range all {
			weights[i] = w[p.block]
		}
		return stat.Quantile(0.99, stat.Empirical, sorted, weights)
	})
	return m
}

// buckets follows a row along the sequence.
func (s *sampler) buckets(windows []*distance.Points, length, n, block int) []Bucket {
	n = min(n, length)
	var all []Bucket
	for i := range n {
		from, to := i*length/n, (i+1)*length/n
		b := blocks(windows, from, to, block)
		total := sums{}
		for _, x := range b {
			total.add(x, 1)
		}
		bucket := Bucket{From: from, To: to, KL: s.of(b, sums.meanKL), Top1: total.top1()}
		if total.targets > 0 {
			bucket.Perplexity, bucket.FullPerplexity = total.perplexity(), total.fullPerplexity()
		}
		all = append(all, bucket)
	}
	return all
}
