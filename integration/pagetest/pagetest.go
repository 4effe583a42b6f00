// Package pagetest compares what pages show, pictures and numbers, with what was measured.
package pagetest

import (
	"bytes"
	"image/png"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// few is the share of the pixels that may differ: processors round the last bit of a curve otherwise.
const few = 0.001

// Same fails unless two PNGs show the same. help says how to make the one that is shown anew.
func Same(t *testing.T, made, shown []byte, help string) {
	t.Helper()
	a, err := png.Decode(bytes.NewReader(made))
	require.NoError(t, err)
	b, err := png.Decode(bytes.NewReader(shown))
	require.NoError(t, err)
	require.Equal(t, a.Bounds(), b.Bounds(), help)
	size, differ := a.Bounds().Size(), 0
	for y := range size.Y {
		for x := range size.X {
			ar, ag, ab, _ := a.At(x, y).RGBA()
			br, bg, bb, _ := b.At(x, y).RGBA()
			if ar>>12 != br>>12 || ag>>12 != bg>>12 || ab>>12 != bb>>12 {
				differ++
			}
		}
	}
	require.Less(t, float64(differ), few*float64(size.X*size.Y), help)
}

// Rounded compares a number with what a page says of it, to as many digits as that has. where tells the place if they differ.
func Rounded(t *testing.T, want float64, said, where string) {
	t.Helper()
	said = strings.ReplaceAll(said, ",", "")
	_, decimals, _ := strings.Cut(said, ".")
	assert.Equal(t, strconv.FormatFloat(want, 'f', len(decimals), 64), said, where)
}
