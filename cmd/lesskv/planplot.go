package main

import (
	"image/color"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/lesskv/lesskv/integration/picture"
)

var (
	fullShades = []color.Color{color.RGBA{0x50, 0x50, 0x50, 0xff}, color.RGBA{0xc0, 0x70, 0x30, 0xff}, color.RGBA{0xe0, 0xa0, 0x50, 0xff}}
	lessShades = []color.Color{color.RGBA{0x20, 0x70, 0xb0, 0xff}, color.RGBA{0x70, 0xb0, 0x60, 0xff}, color.RGBA{0x70, 0x50, 0xa0, 0xff}, color.RGBA{0x40, 0xa0, 0xa0, 0xff}}
)

// draw draws the memory of the process against the context, a line for each cache, and the bound where it is near. Both axes are logarithmic.
func (p *plan) draw(path string) error {
	pic := picture.New("memory of a process with "+p.name(), "context, tokens", "MiB")
	pic.X.Scale, pic.Y.Scale = plot.LogScale{}, plot.LogScale{}
	pic.Y.Tick.Marker = picture.LogTicks{}
	pic.Add(plotter.NewGrid())
	pic.X.Tick.Marker = picture.ContextTicks(p.contexts)
	lowest, highest := math.Inf(1), 0.0
	full, less := 0, 0
	var names []string
	lines := map[string]plotter.XYs{}
	for _, r := range p.Rows {
		name := p.cacheOf(r)
		if lines[name] == nil {
			names = append(names, name)
		}
		mib := float64(r.Process.Total()) / (1 << 20)
		lowest, highest = math.Min(lowest, mib), math.Max(highest, mib)
		lines[name] = append(lines[name], plotter.XY{X: float64(r.Context), Y: mib})
	}
	for _, name := range names {
		shade := lessShades[less%len(lessShades)]
		if strings.HasPrefix(name, "full ") {
			shade = fullShades[full%len(fullShades)]
			full++
		} else {
			less++
		}
		line, points, err := picture.Line(lines[name], shade, 1.5)
		if err != nil {
			return err
		}
		pic.Add(line, points)
		pic.Legend.Add(name, line, points)
	}
	first, last := float64(p.contexts[0]), float64(p.contexts[len(p.contexts)-1])
	if first == last { // one point has no range
		first, last = first/2, last*2
	}
	if bound := float64(p.Bound) / (1 << 20); bound > lowest/4 && bound < 4*highest { // else it would leave the lines no room
		limit, err := plotter.NewLine(plotter.XYs{{X: first, Y: bound}, {X: last, Y: bound}})
		if err != nil {
			return err
		}
		limit.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
		pic.Add(limit)
		pic.Legend.Add("bound", limit)
		lowest, highest = math.Min(lowest, bound), math.Max(highest, bound)
	}
	pic.X.Min, pic.X.Max, pic.Y.Min, pic.Y.Max = first, last, lowest/1.5, highest*3
	pic.Legend.Left, pic.Legend.Top = true, true
	return picture.Row(path, 16*vg.Centimeter, 11*vg.Centimeter, pic)
}
