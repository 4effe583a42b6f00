//go:build cgo

package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/lesskv/lesskv/integration/picture"
	"github.com/lesskv/lesskv/weights/train"
)

// drawTraining draws the validation error of each layer beside that of Baseline+.
func drawTraining(r *train.Report, path string) error {
	p := picture.New("error of the layer's output, sparse-only being 1", "layer", "")
	p.Y.Min = 0
	top := 1.
	for _, series := range []struct {
		name  string
		value func(train.LayerReport) float64
		color color.Color
	}{
		{"LESS", func(l train.LayerReport) float64 { return l.Valid }, picture.Blue},
		{"Baseline+", func(l train.LayerReport) float64 { return l.Plus }, picture.Orange},
	} {
		var points plotter.XYs
		for _, l := range r.Layers {
			points = append(points, plotter.XY{X: float64(l.Layer), Y: series.value(l)})
			top = max(top, series.value(l))
		}
		line, dots, err := picture.Line(points, series.color, 1)
		if err != nil {
			return fmt.Errorf("the picture: %w", err)
		}
		p.Add(line, dots)
		p.Legend.Add(series.name, line, dots)
	}
	p.Y.Max = 1.05 * top
	p.Add(plotter.NewGrid())
	return picture.Row(path, 6*vg.Inch, 4*vg.Inch, p)
}
