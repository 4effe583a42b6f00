package main

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/lesskv/lesskv/integration/picture"
)

// drawSweeps draws a panel for each series: KL of LESS, of sparse-only, and of sparse-only with the same bytes.
func drawSweeps(path string, sparse float64, all [][]result) error {
	top := sparse
	for _, series := range all {
		for _, r := range series {
			top = math.Max(top, r.kl)
		}
	}
	var panels []*plot.Plot
	for i, results := range all {
		p := picture.New(sweeps[i].title, sweeps[i].unit, "")
		p.X.Scale = plot.LogScale{}
		p.Y.Min, p.Y.Max = 0, 1.1*top
		if i == 0 {
			p.Y.Label.Text = "KL(full || method), nats"
		}
		p.Add(plotter.NewGrid())
		var ticks []plot.Tick
		for _, r := range results {
			label := fmt.Sprint(r.x)
			if r.x >= 1_000_000 {
				label = fmt.Sprintf("%dM", r.x/1_000_000)
			} else if r.x >= 1000 {
				label = fmt.Sprintf("%dk", r.x/1000)
			}
			ticks = append(ticks, plot.Tick{Value: float64(r.x), Label: label})
		}
		p.X.Tick.Marker = plot.ConstantTicks(ticks)
		for _, line := range []struct {
			name  string
			color color.Color
			value func(result) float64
		}{
			{"sparse only", picture.Orange, func(result) float64 { return sparse }},
			{"Baseline++: the same bytes in slots", picture.Brown, func(r result) float64 { return r.same }},
			{"LESS", picture.Blue, func(r result) float64 { return r.kl }},
		} {
			var xy plotter.XYs
			for _, r := range results {
				xy = append(xy, plotter.XY{X: float64(r.x), Y: line.value(r)})
			}
			l, dots, err := picture.Line(xy, line.color, 2)
			if err != nil {
				return err
			}
			p.Add(l, dots)
			if i == 0 {
				p.Legend.Add(line.name, l, dots)
			}
		}
		panels = append(panels, p)
	}
	return picture.Row(path, 32*vg.Centimeter, 10*vg.Centimeter, panels...)
}
