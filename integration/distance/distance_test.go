package distance

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/worker"
)

func rows(all ...[]float32) *worker.Output {
	o := &worker.Output{Width: len(all[0])}
	for _, row := range all {

		o.Values = append(o.Values, row...)
	}
	return o
}

// Two rows worked by hand: probabilities 1/2 and 1/2 beside 1/4 and 3/4, then the same on both sides.
func TestPoints(t *testing.T) {
	ln := func(x float64) float32 { return float32(math.Log(x)) }
	full, other := rows([]float32{ln(.5), ln(.5)}, []float32{3, 1}), rows([]float32{ln(.25) + 7, ln(.75) + 7}, []float32{3, 1})
	p := Points{}
	require.NoError(t, p.Add(Expect(full), other, []int32{1}))
	assert.Empty(t, p.Fault+p.FullFault)
	assert.InDeltaSlice(t, []float64{.5*math.Log(2) + .5*math.Log(2./3), 0}, p.KL, 1e-6)
	assert.InDeltaSlice(t, []float64{-math.Log(.75), 0}, p.NLL, 1e-6)
	assert.InDeltaSlice(t, []float64{math.Log(2), 0}, p.Full, 1e-6)
	assert.Equal(t, []bool{false, true}, p.Agree)
	assert.Error(t, p.Add(Expect(full), rows([]float32{1, 2}), nil), "one row beside two")
}

// Two sequences of two tokens, by hand: over all positions, and over the last ones alone, which have no next token.
func TestMean(t *testing.T) {
	ln := func(x float64) float32 { return float32(math.Log(x)) }
	full := []float32{ln(.5), ln(.5), ln(.9), ln(.1)}
	other, err := Compare(full, []float32{ln(.25), ln(.75), ln(.9), ln(.1)}, []int32{0, 1})
	require.NoError(t, err)
	same, err := Compare(full, full, []int32{0, 0})
	require.NoError(t, err)
	m := Mean(0, other, same)
	assert.InDelta(t, (.5*math.Log(2)+.5*math.Log(2./3))/4, m.KL, 1e-6)
	assert.InDelta(t, 2, m.FullPerplexity, 1e-6)
	assert.InDelta(t, math.Sqrt(2/.75), m.Perplexity, 1e-6)
	assert.InDelta(t, .75, m.Top1, 1e-9)
	last := Mean(1, other, same)
	assert.InDelta(t, 0, last.KL, 1e-9)
	assert.Equal(t, 1., last.Top1)
	_, err = Compare(full, full[:2], []int32{0, 1})
	assert.Error(t, err)
}

// Logits that are not finite are a fault, whosever they are and wherever they stand; a token that cannot come, of -Inf, is none.
func TestFaults(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	good := []float32{1, 2, 3}
	for name, c := range map[string]struct {
		full, other []float32
		next        int32
		of          string // whose fault; "" none
	}{
		"none":                         {good, good, 0, ""},
		"a token that cannot come":     {[]float32{1, -inf, 3}, []float32{1, -inf, 3}, 0, ""},
		"that one side alone excludes": {[]float32{1, -inf, 3}, good, 0, ""},
		"NaN":                          {good, []float32{1, nan, 3}, 0, "method"},
		"NaN first":                    {good, []float32{nan, 2, 3}, 0, "method"},
		"all NaN":                      {good, []float32{nan, nan, nan}, 0, "method"},
		"Inf":                          {good, []float32{1, inf, 3}, 0, "method"},
		"a token that comes excluded":  {good, []float32{1, -inf, 3}, 0, "method"},
		"all excluded":                 {good, []float32{-inf, -inf, -inf}, 0, "method"},
		"full, NaN":                    {[]float32{1, nan, 3}, good, 0, "full"},
		"full, NaN first":              {[]float32{nan, 2, 3}, good, 0, "full"},
		"full, all NaN":                {[]float32{nan, nan, nan}, []float32{nan, nan, nan}, 0, "full"},
		"full, Inf":                    {[]float32{1, inf, 3}, good, 0, "full"},
		"full, all excluded":           {[]float32{-inf, -inf, -inf}, good, 0, "full"},
		"full, the next excluded":      {[]float32{1, -inf, 3}, []float32{1, -inf, 3}, 1, "full"},
	} {
		p := Points{}
		require.NoError(t, p.Add(Expect(rows(good, c.full)), rows(good, c.other), []int32{0, c.next}))
		switch c.of {
		case "":
			assert.Empty(t, p.Fault+p.FullFault, name)
		case "method":
			assert.Equal(t, "position 1: logits that are not finite", p.Fault, name)
			assert.Empty(t, p.FullFault, name)
		case "full":
			assert.Equal(t, "position 1: logits of the full cache that are not finite", p.FullFault, name)
			assert.Equal(t, p.FullFault, p.Fault, name)
		}
	}
}

// Positions that are left out count as equal, and those behind them are where they belong.
func TestSkip(t *testing.T) {
	full, other := &worker.Output{Width: 2, Values: []float32{1, 0}}, &worker.Output{Width: 2, Values: []float32{0, 1}}
	var p Points
	p.Skip(2)
	require.NoError(t, p.Add(Expect(full), other, nil))
	assert.Equal(t, []bool{true, true, false}, p.Agree)
	assert.Equal(t, []float64{0, 0}, p.KL[:2])
	assert.Greater(t, p.KL[2], 0.)
	assert.Len(t, p.NLL, 3)
	assert.Len(t, p.Full, 3)
}
