package reference

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
)

// What earlier queries looked at is of no account: the pairs that stay are those that the micro-batch's last one looks at.
func TestTOVA(t *testing.T) {
	l := Layer{Heads: 2, HeadsKV: 1, KeyLength: 4, ValueLength: 1, Scale: 1, Policy: TOVA, Budget: 2, Heavy: 2}
	ln := func(x float64) float32 { return float32(math.Log(x)) }
	// Keys are unit vectors: a query has the logit of each of the four.
	s := sequence{k: []float32{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, v: make([]float32, 4)}
	for range 6 { // three queries of two heads: all for the first
		s.q = append(s.q, 9, 0, 0, 0)
	}
	s.q = append(s.q, ln(1), ln(4), ln(2), ln(3), ln(2), ln(1), ln(6), ln(1)) // sums of .2, .5, .8, .4
	c, _ := s.run(t, l, 4)
	assert.Equal(t, []int32{1, 2}, c.Kept(0))
	assert.InDeltaSlice(t, []float64{0.5, 0.8}, []float64{c.heads[0].slots[0].score, c.heads[0].slots[1].score}, 1e-6)
	l.Policy = H2O
	c, _ = s.run(t, l, 4)
	assert.Equal(t, []int32{0, 2}, c.Kept(0), "the sum over all queries")
}
