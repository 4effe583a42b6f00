package train

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/lesskv/lesskv/weights/outfile"
)

// Plot draws the validation error of each layer beside that of Baseline+, to a .png or .svg.
func Plot(r *Report, path string) error {
	p := plot.New()
	p.Title.Text = "error of the layer's output, sparse-only being 1"
	p.X.Label.Text = "layer"
	p.Y.Min = 0
	var top float64 = 1
	for _, series := range []struct {
		name  string
		value func(LayerReport) float64
		color color.Color
	}{
		{"LESS", func(l LayerReport) float64 { return l.Valid }, color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}},
		{"Baseline+", func(l LayerReport) float64 { return l.Plus }, color.RGBA{R: 0xff, G: 0x7f, B: 0x0e, A: 0xff}},
	} {
		var points plotter.XYs
		for _, l := range r.Layers {
			points = append(points, plotter.XY{X: float64(l.Layer), Y: series.value(l)})
			top = math.Max(top, series.value(l))
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("train: plot: %w", err)
		}
		line.Color, dots.Color = series.color, series.color
		p.Add(line, dots)
		p.Legend.Add(series.name, line, dots)
	}
	p.Y.Max = 1.05 * top
	p.Add(plotter.NewGrid())
	picture, err := p.WriterTo(6*vg.Inch, 4*vg.Inch, strings.TrimPrefix(filepath.Ext(path), "."))
	if err == nil {
		err = outfile.WriteFrom(path, picture)
	}
	if err != nil {
		return fmt.Errorf("train: plot: %w", err)
	}
	return nil
}
