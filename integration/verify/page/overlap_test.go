package page

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/recorder"
)

// Points that lie on those of another curve are labelled, others are not, and no label lies on a point or on another label.
func TestOverlaps(t *testing.T) {
	point := func(x, y float64, curve string) overlap {
		return overlap{at: plotter.XY{X: x, Y: y}, curve: curve, text: curve, colour: methodColours[curve]}
	}
	all := overlaps{
		point(10, 10, "sparse"), point(10.1, 10, "LESS"), // on each other
		point(50, 50, "sparse"), point(50, 50.2, "sparse"), // of one curve
		point(90, 20, "LESS"), // alone
		{at: plotter.XY{X: 60, Y: 0}, curve: "q8_0", text: "q8_0: 1e-05", always: true},
	}
	p := plot.New()
	p.X.Max, p.Y.Max = 100, 100
	p.HideAxes()
	p.Add(all)
	var c recorder.Canvas
	p.Draw(draw.NewCanvas(&c, 10*vg.Centimeter, 10*vg.Centimeter))
	said := map[string]int{}
	for _, a := range c.Actions {
		if text, ok := a.(*recorder.FillString); ok {
			said[text.String]++
		}
	}
	assert.Equal(t, map[string]int{"sparse": 1, "LESS": 1, "q8_0: 1e-05": 1}, said)

	canvas, taken := around(vg.Point{}, 100, 100), []vg.Rectangle{around(vg.Point{}, pointRadius, pointRadius)}
	for range 20 {
		box, ok := free(vg.Point{}, vg.Point{X: 15, Y: 5}, canvas, taken)
		require.True(t, ok)
		for _, other := range taken {
			assert.True(t, box.Max.X < other.Min.X || box.Min.X > other.Max.X || box.Max.Y < other.Min.Y || box.Min.Y > other.Max.Y)
		}
		taken = append(taken, box)
	}
	_, ok := free(vg.Point{}, vg.Point{X: 15, Y: 5}, canvas, []vg.Rectangle{canvas})
	assert.False(t, ok)
}
