package verify

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lesskv/lesskv/integration/distance"
)

func newSampler() *sampler { return &sampler{samples: 400, seed: 1, drawn: map[int][][]float64{}} }

// Two windows of four positions, worked by hand.
func TestMeasure(t *testing.T) {
	windows := []*distance.Points{
		{KL: []float64{0, 1, 2, 3}, NLL: []float64{9, math.Log(2), math.Log(4), 0}, Full: []float64{9, math.Log(2), math.Log(2), 0}, Agree: []bool{true, true, false, true}},
		{KL: []float64{0, 4, 5, 6}, NLL: []float64{9, math.Log(8), math.Log(4), 0}, Full: []float64{9, math.Log(2), math.Log(2), 0}, Agree: []bool{true, false, false, false}},
	}
	m := newSampler().measure(windows, 1, 2)
	assert.Equal(t, 6, m.Positions)
	assert.Equal(t, 4, m.Blocks, "two a window, the last of one position")
	assert.InDelta(t, 21.0/6, m.KL.Value, 1e-12)
	assert.InDelta(t, 4, m.Perplexity.Value, 1e-12, "2, 4, 8, 4; the last position has no next token")
	assert.InDelta(t, 2, m.Increase.Value, 1e-12)
	assert.InDelta(t, 2.0/6, m.Top1.Value, 1e-12)
	assert.Equal(t, 6.0, m.KLMax)
	assert.Equal(t, 6.0, m.KLP99.Value)
	assert.LessOrEqual(t, m.KL.Low, m.KL.Value)
	assert.GreaterOrEqual(t, m.KL.High, m.KL.Value)
	b := newSampler().buckets(windows, 4, 2, 2)
	assert.Len(t, b, 2)
	assert.InDelta(t, 2.5/2, b[0].KL.Value, 1e-12)
	assert.InDelta(t, 4, b[1].KL.Value, 1e-12)
	assert.Equal(t, [4]int{0, 2, 2, 4}, [4]int{b[0].From, b[0].To, b[1].From, b[1].To})
}

// An interval of 95 % holds the truth 95 times of a hundred: for blocks of independent values, and for a difference that is
// far smaller than what both sides vary by.
func TestIntervals(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	held, pairs := 0, 0
	const trials, n = 200, 60
	for range trials {
		a, b := make([]sums, n), make([]sums, n)
		for i := range a {
			x := r.NormFloat64()
			a[i], b[i] = sums{n: 1, kl: 1 + x}, sums{n: 1, kl: 0.95 + x + 0.05*r.NormFloat64()}
		}
		s := newSampler()
		if e := s.of(a, sums.meanKL); e.Low <= 1 && 1 <= e.High {
			held++
		}
		d := s.pair(a, b, func(a, b sums) float64 { return a.meanKL() - b.meanKL() })
		if d.Low <= 0.05 && 0.05 <= d.High {
			pairs++
		}
		assert.Less(t, d.High-d.Low, 0.05)
	}
	assert.InDelta(t, 0.95, float64(held)/trials, 0.05)
	assert.InDelta(t, 0.95, float64(pairs)/trials, 0.05)
}
