package bench

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// The interval leaves out as many rounds at each end as still leave the median inside with the probability, counted here one by one.
func TestInterval(t *testing.T) {
	for n := 1; n <= 30; n++ {
		x := make([]float64, n)
		for i := range x {
			x[i] = float64(i)
		}
		outside := func(out int) (ways int) { // of 2^n: that at most so many values are on one side of the median
			for k, choose := 0, 1; k <= out; k++ {
				ways += 2 * choose
				choose = choose * (n - k) / (k + 1)
			}
			return ways
		}
		out := 0
		for 8*outside(out+1) <= 1<<n {
			out++
		}
		low, high := interval(x)
		assert.Equal(t, []float64{float64(out), float64(n - 1 - out)}, []float64{low, high}, "%d values", n)
	}
	s := spread([]float64{5, 1, 7, 3, 6, 2, 4})
	assert.Equal(t, Spread{Median: 4, Min: 1, Max: 7, Low: 2, High: 6, N: 7}, s)
}

// A target of 1x is missed where the interval is below it, another one by the median; a count needs no rounds.
func TestVerdict(t *testing.T) {
	s := func(low, median, high float64) Spread { return Spread{Median: median, Low: low, High: high, N: 7} }
	same, twice, time := atLeast(1, "", "", nil), atLeast(2, "", "", nil), atMost(1.05, "", "", nil)
	for _, c := range []struct {
		target
		Spread
		want string
	}{
		{same, s(1.01, 1.02, 1.03), "met"},
		{same, s(0.98, 1, 1.02), "met"},
		{same, s(0.97, 0.99, 1.01), "met: 1x is in the interval"},
		{same, s(0.97, 0.98, 0.99), "**missed**"},
		{same, Spread{Median: 0.9, Low: 0.8, High: 0.9, N: 6}, "**missed**, in too few rounds"},
		{twice, s(1.9, 2, 2.1), "met"},
		{twice, s(1.9, 1.99, 2.1), "**missed**"},
		{twice, Spread{Median: 3, Low: 3, High: 3, N: 1}, "met, in too few rounds"},
		{time, s(1, 1.05, 1.1), "met"},
		{time, s(1, 1.06, 1.1), "**missed**"},
		{target{want: 2, most: true, counted: true}, Spread{Median: 1, Low: 1, High: 1, N: 1}, "met"},
	} {
		assert.Equal(t, c.want, c.verdict(c.Spread), "%v of %v", c.Spread, c.target.want)
	}
}
