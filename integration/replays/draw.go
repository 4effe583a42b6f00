package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/lesskv/lesskv/integration/picture"
)

// drawLimits draws what was measured of layers and heads over what replays say, a panel for each thing that they say.
func drawLimits(path string, levels []int, all []limit) error {
	const none = 1e-6 // nats: below that is noise
	var panels []*plot.Plot
	for i, of := range []struct {
		title, unit string
		value       func(limit) float64
	}{
		{"As tune predicts it", "KL, nats", func(l limit) float64 { return l.predicted }},
		{"Error of the layer's output", "squared error", func(l limit) float64 { return l.error }},
		{"Attention lost", "share", func(l limit) float64 { return l.mass }},
	} {
		p := picture.New(of.title, of.unit, "measured KL, nats")
		p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
		p.X.Tick.Marker, p.Y.Tick.Marker = picture.LogTicks{}, picture.LogTicks{}
		if i == 0 {
			equal, err := plotter.NewLine(plotter.XYs{{X: 1e-4, Y: 1e-4}, {X: .1, Y: .1}})
			if err != nil {
				return err
			}
			equal.Color = color.Gray{0xa0}
			p.Add(equal)
		}
		p.Add(plotter.NewGrid())
		for _, kind := range []struct {
			name  string
			layer bool
			level int
			color color.Color
			shape draw.GlyphDrawer
		}{
			{fmt.Sprintf("a head, %d slots", levels[0]), false, levels[0], picture.Orange, draw.CircleGlyph{}},
			{fmt.Sprintf("a head, %d slots", levels[1]), false, levels[1], picture.Blue, draw.CircleGlyph{}},
			{fmt.Sprintf("a layer, %d slots", levels[0]), true, levels[0], picture.Orange, draw.PyramidGlyph{}},
			{fmt.Sprintf("a layer, %d slots", levels[1]), true, levels[1], picture.Blue, draw.PyramidGlyph{}},
		} {
			var xy plotter.XYs
			for _, l := range all {
				if l.slots == kind.level && (l.head < 0) == kind.layer && of.value(l) > 0 {
					xy = append(xy, plotter.XY{X: of.value(l), Y: max(none, l.kl)})
				}
			}
			dots, err := plotter.NewScatter(xy)
			if err != nil {
				return err
			}
			dots.Color, dots.Shape, dots.Radius = kind.color, kind.shape, vg.Points(3)
			p.Add(dots)
			if i == 0 {
				p.Legend.Add(kind.name, dots)
			}
		}
		panels = append(panels, p)
	}
	return picture.Row(path, 28*vg.Centimeter, 9*vg.Centimeter, panels...)
}
