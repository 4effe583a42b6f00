package greedy

import (
	"errors"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A tie is followed, a token that is worse is not, and what follows is judged behind the token that was written.
func TestFollow(t *testing.T) {
	v := &Vocabulary{Pieces: []string{"", "a", "b", "c", "a"}, Ends: 3}
	behind := map[int32][]float32{ // a token
		1: {0, 1, 5, 9, 1},
		2: {0, 5, 5 - Tie/2, 9, 4},
		4: {5, 0, 0, 0, 0},
	}
	nan, none := float32(math.NaN()), float32(math.Inf(-1))
	first := []float32{0, 1, 2, 3, 2 - Tie/4}
	for name, c := range map[string]struct {
		text  []string
		first []float32
		ties  int
		says  string
	}{
		"the best":               {[]string{"b", "a", "b"}, first, 0, ""},
		"a tie":                  {[]string{"b", "b", "b"}, first, 2, ""},
		"another token of bytes": {[]string{"a", ""}, first, 1, ""},
		"a worse one":            {[]string{"b", "a", "a"}, first, 0, `token 2 is "a" with a logit of 1: want "b", with 5`},
		"the end":                {[]string{"c"}, first, 0, `token 0 is "c", which is none`},
		"no such token":          {[]string{"b", "ab"}, first, 0, `token 1 is "ab", which is none`},
		"left out":               {[]string{"b"}, []float32{0, 1, none, 0, 0}, 0, `token 0 is "b", which is none`},
		"no number":              {[]string{"b"}, []float32{0, nan, 2, 0, 0}, 0, "token 0: the logit of token 1 is no number"},
		"nothing":                {nil, first, 0, ""},
	} {
		ties, err := v.Follow(c.text, c.first, func(token int32) ([]float32, error) { return behind[token], nil })
		if c.says == "" {
			require.NoError(t, err, name)
		} else {
			require.ErrorContains(t, err, c.says, name)
		}
		assert.Equal(t, c.ties, ties, name)
	}
	broken := errors.New("broken")
	_, err := v.Follow([]string{"b", "a"}, first, func(int32) ([]float32, error) { return nil, broken })
	require.ErrorIs(t, err, broken)
}
