package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/lesskv/lesskv/integration/picture"
)

var (
	grey = color.RGBA{0x80, 0x80, 0x80, 0xff}
	dark = color.RGBA{0x40, 0x40, 0x40, 0xff}

	lightBlue = color.RGBA{0x80, 0xb8, 0xe0, 0xff}
)

// draw draws KL against bytes, and beside it recall by depth.
func (r *Report) draw(path string) error {
	closeness, err := r.closeness()
	if err != nil {
		return err
	}
	recall, err := r.recallByDepth()
	if err != nil {
		return err
	}
	return picture.Row(path, 30*vg.Centimeter, 11*vg.Centimeter, closeness, recall)
}

// closeness is a panel of KL against bytes, both axes logarithmic.
func (r *Report) closeness() (*plot.Plot, error) {
	p := picture.New("Distance from the full cache (6,144 KiB)", "KiB of one sequence", "KL, nats")
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Add(plotter.NewGrid())
	var tuned, alone, equals, before, runtime plotter.XYs
	var xs []float64
	for _, s := range r.Sizes {
		x := float64(s.KiB)
		xs = append(xs, x)
		tuned = append(tuned, plotter.XY{X: x, Y: s.Rows[0].KL.Value})
		alone = append(alone, plotter.XY{X: x, Y: s.alone().KL.Value})
		equals = append(equals, plotter.XY{X: x, Y: s.Rows[0].Equal.Value})
		if s.KiB == q4KiB {
			runtime = append(runtime, plotter.XY{X: x, Y: s.Before})
		} else {
			before = append(before, plotter.XY{X: x, Y: s.Before})
		}
	}
	err := lines(p, true,
		series{"unmodified q4_0 cache", dark, runtime},
		series{"f16 slots, one budget, LESS", grey, before},
		series{"fewer bits, one budget", picture.Orange, equals},
		series{"tune: budgets by head", lightBlue, alone},
		series{"tune --train: phi and psi too", picture.Blue, tuned})
	p.X.Tick.Marker, p.Y.Tick.Marker = at(xs...), picture.LogTicks{}
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 150, 2100, .001, .3
	p.Legend.Top = true
	return p, err
}

// recallByDepth is a panel of the answers to all recall tasks of the longest texts.
func (r *Report) recallByDepth() (*plot.Plot, error) {
	lengths := r.lengths()
	p := picture.New("", "where the number stands: 0 is the beginning, 1 the end", "")
	p.Add(plotter.NewGrid())
	var shown []series
	show := func(name string, color color.Color, of recallSum) {
		s := series{name: name, color: color}
		for _, d := range of.lengths[len(lengths)-1].depth {
			s.xy = append(s.xy, plotter.XY{X: d.Depth, Y: float64(d.Right)})
			p.Y.Label.Text = fmt.Sprintf("answered, of %d questions", d.Tasks)
			p.Y.Max = 1.5 * float64(d.Tasks) // room for the legend
			p.Y.Tick.Marker = at(0, float64(d.Tasks)/4, float64(d.Tasks)/2, float64(d.Tasks)*3/4, float64(d.Tasks))
		}
		shown = append(shown, s)
	}
	if len(lengths) > 0 {
		p.Title.Text = fmt.Sprintf("Recall in texts of %d tokens", lengths[len(lengths)-1])
		show("full cache", grey, r.full())
	}
	for _, s := range []struct {
		share, budgets, name string
		color                color.Color
	}{
		{"1/20", "tuned with look-ups", "tuned on text with look-ups", picture.Blue}, {"1/20", "tuned", "tuned on Go text", lightBlue},
		{"1/20", equal, "one budget, peak", picture.Orange}, {"1/20", equal + ", h2o", "one budget, h2o", picture.Brown},
	} {
		for _, x := range r.recallSums() {
			if x.share == s.share && x.types == "q4_0" && x.budgets == s.budgets {
				show(s.share+" of its bytes, q4_0, "+s.name, s.color, x)
			}
		}
	}
	p.X.Tick.Marker = at(0, .25, .5, .75, 1)
	p.Y.Min = 0
	most := p.Y.Max
	err := lines(p, false, shown...)
	p.Y.Max = most
	p.Legend.Top, p.Legend.Left = true, true
	return p, err
}

// q4KiB is the size at which the best before was the runtime's own q4_0 cache.
const q4KiB = 1728

// A series is a line of a picture.
type series struct {
	name  string
	color color.Color
	xy    plotter.XYs
}

// lines adds lines with their points. labelled: each point says its value.
func lines(p *plot.Plot, labelled bool, all ...series) error {
	for _, s := range all {
		if len(s.xy) == 0 {
			continue
		}
		l, dots, err := picture.Line(s.xy, s.color, 2)
		if err != nil {
			return err
		}
		dots.Radius = vg.Points(3)
		p.Add(l, dots)
		p.Legend.Add(s.name, l, dots)
		if !labelled {
			continue
		}
		var texts []string
		for _, x := range s.xy {
			texts = append(texts, fmt.Sprintf("%.2g", x.Y))
		}
		labels, err := plotter.NewLabels(plotter.XYLabels{XYs: s.xy, Labels: texts})
		if err != nil {
			return err
		}
		for i := range labels.TextStyle {
			labels.TextStyle[i].Color = s.color
			labels.TextStyle[i].Font.Size, labels.TextStyle[i].Font.Variant = 8, "Sans"
		}
		labels.Offset = vg.Point{X: 3, Y: 4}
		p.Add(labels)
	}
	return nil
}

// at are ticks at these values alone.
func at(values ...float64) plot.Ticker {
	var all []plot.Tick
	for _, v := range values {
		all = append(all, plot.Tick{Value: v, Label: fmt.Sprint(v)})
	}
	return plot.ConstantTicks(all)
}
