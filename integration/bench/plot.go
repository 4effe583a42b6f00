package bench

import (
	"fmt"
	"image/color"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/lesskv/lesskv/integration/picture"
)

// A look tells a method's line from those that lie on it.
type look struct {
	colour color.Color
	dashes []vg.Length
	glyph  draw.GlyphDrawer
}

var (
	dashed = []vg.Length{vg.Points(6), vg.Points(4)}
	looks  = map[string]look{
		"f16":            {color.RGBA{0x50, 0x50, 0x50, 0xff}, nil, draw.CircleGlyph{}},
		"f16-fa":         {color.RGBA{0xa0, 0xa0, 0xa0, 0xff}, dashed, draw.SquareGlyph{}},
		"q8_0-fa":        {color.RGBA{0xc0, 0x70, 0x30, 0xff}, nil, draw.CircleGlyph{}},
		"q4_0-fa":        {color.RGBA{0xe0, 0xa0, 0x50, 0xff}, dashed, draw.SquareGlyph{}},
		"sparse-unequal": {color.RGBA{0x40, 0x80, 0x40, 0xff}, dashed, draw.TriangleGlyph{}},
		"sparse":         {color.RGBA{0x70, 0xb0, 0x60, 0xff}, nil, draw.PyramidGlyph{}},
		"less":           {color.RGBA{0x20, 0x70, 0xb0, 0xff}, dashed, draw.CircleGlyph{}},
	}
)

// lookOf returns the look of a method; on the other runtime it is dotted.
func lookOf(method string) look {
	base, other := strings.CutSuffix(method, otherSuffix)
	l := looks[base]
	if other {
		l.dashes, l.glyph = []vg.Length{vg.Points(1), vg.Points(3)}, draw.CrossGlyph{}
	}
	return l
}

const (
	panelWidth  = 12 * vg.Centimeter
	panelHeight = 9 * vg.Centimeter
)

// write draws rows of panels.
func write(path string, rows ...[]*plot.Plot) error {
	columns := 0
	for _, r := range rows {
		columns = max(columns, len(r))
	}
	return picture.Rows(path, vg.Length(columns)*panelWidth, vg.Length(len(rows))*panelHeight, rows...)
}

// Plot draws decoding speed, prompt speed and the cache's bytes against the context, all axes logarithmic, one line of
// pictures for each result. What was measured at one of them alone is no line and has no picture.
func Plot(path string, results ...*Result) error {
	rows := make([][]*plot.Plot, len(results))
	for i, r := range results {
		speed := func(p Phase) func(string, int) float64 {
			return func(m string, c int) float64 { return r.Speed(Cell{m, c, p}).Median }
		}
		for _, s := range []struct {
			title, unit string
			rising      bool // with the context
			value       func(method string, context int) float64
		}{
			{"decoding", "tokens/s", false, speed(Decode)},
			{"prompt, last micro-batch", "tokens/s", false, speed(Prompt)},
			{"cache", "MiB", true, func(m string, c int) float64 {
				memory, _ := r.memory(m, c)
				return mib(memory.Cache)
			}},
		} {
			p, err := r.lines(fmt.Sprintf("%s: %s", r.Model, s.title), s.unit, s.rising, s.value)
			if err != nil {
				return err
			}
			if p != nil {
				rows[i] = append(rows[i], p)
			}
		}
	}
	return write(path, rows...)
}

// PlotContext draws what an app sees as its context grows, with a full cache and with LESS: the memory of the process
// and the speed of decoding, from 0 on.
func PlotContext(path string, speed, memory *Result) error {
	var row []*plot.Plot
	for _, s := range []struct {
		title, unit string
		rising      bool
		full        string
		contexts    []int
		value       func(method string, context int) float64
	}{
		{"memory of the process", "MiB", true, "full cache, f16", memory.Contexts(), func(m string, c int) float64 { return mib(memory.process(m, c)) }},
		{"decoding", "tokens/s", false, "full cache, the fastest type", speed.Contexts(), func(m string, c int) float64 {
			if m == "f16" {
				return speed.Speed(speed.Best(c, Decode)).Median
			}
			return speed.Speed(Cell{m, c, Decode}).Median
		}},
	} {
		p := picture.New(fmt.Sprintf("%s: %s", speed.Model, s.title), "context, tokens", s.unit)
		p.X.Scale, p.Y.Min = plot.LogScale{}, 0
		p.X.Tick.Marker = picture.ContextTicks(s.contexts)
		p.Add(plotter.NewGrid())
		for _, m := range []struct{ method, label string }{{"f16", s.full}, {"less", "lesskv"}} {
			if err := addLine(p, m.label, looks[m.method], s.contexts, func(c int) float64 { return s.value(m.method, c) }); err != nil {
				return err
			}
		}
		p.Y.Max *= 1.1
		p.Legend.Left, p.Legend.Top = true, s.rising
		row = append(row, p)
	}
	return write(path, row)
}

// addLine draws the values that are there: those above 0.
func addLine(p *plot.Plot, label string, l look, contexts []int, value func(context int) float64) error {
	var xy plotter.XYs
	for _, c := range contexts {
		if v := value(c); c > 0 && v > 0 {
			xy = append(xy, plotter.XY{X: float64(c), Y: v})
		}
	}
	if len(xy) == 0 {
		return nil
	}
	line, points, err := picture.Line(xy, l.colour, 1.5)
	if err != nil {
		return err
	}
	line.Dashes, points.Shape = l.dashes, l.glyph
	p.Add(line, points)
	p.Legend.Add(label, line, points)
	return nil
}

// lines is one picture; values of 0 are not there. It is nil if a result of several contexts has them at one alone.
func (r *Result) lines(title, unit string, rising bool, value func(method string, context int) float64) (*plot.Plot, error) {
	p := picture.New(title, "context, tokens", unit)
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = picture.ContextTicks(r.Contexts()), picture.LogTicks{}
	p.Add(plotter.NewGrid())
	for _, m := range r.Methods() {
		if err := addLine(p, m, lookOf(m), r.Contexts(), func(c int) float64 { return value(m, c) }); err != nil {
			return nil, err
		}
	}
	if p.X.Min >= p.X.Max && len(r.Contexts()) > 1 {
		return nil, nil
	}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} { // a logarithm needs a range
		switch {
		case axis.Min > axis.Max:
			axis.Min, axis.Max = 1, 10
		case axis.Min == axis.Max:
			axis.Min, axis.Max = axis.Min/2, axis.Max*2
		}
	}
	p.Legend.Left, p.Legend.Top = true, rising // where no line is
	return p, nil
}
