package main

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/lesskv/lesskv/integration/heldout"
)

var colours = map[string]color.Color{
	"full":        color.RGBA{0x9a, 0x9a, 0x9a, 0xff},
	"sparse only": color.RGBA{0xe0, 0xa0, 0x50, 0xff},
	"Baseline+":   color.RGBA{0xc0, 0x70, 0x30, 0xff},
	"Baseline++":  color.RGBA{0x80, 0x40, 0x20, 0xff},
	"LESS":        color.RGBA{0x20, 0x70, 0xb0, 0xff},
}

// drawFigures draws memory against context on the left, and KL of every method on the right.
func drawFigures(path string, quality []method, memory []occupied) error {
	left, err := memoryPlot(memory)
	if err != nil {
		return err
	}
	right, err := qualityPlot(quality)
	if err != nil {
		return err
	}

	img := vgimg.NewWith(vgimg.UseWH(30*vg.Centimeter, 11*vg.Centimeter), vgimg.UseDPI(110))
	all := draw.New(img)
	middle := all.Min.X + 0.4*(all.Max.X-all.Min.X)
	pad := vg.Points(8)
	left.Draw(draw.Crop(all, pad, middle-all.Max.X-pad, pad, -pad))
	right.Draw(draw.Crop(all, middle-all.Min.X+pad, -pad, pad, -pad))

	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := (vgimg.PngCanvas{Canvas: img}).WriteTo(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "drawn:", path)
	return nil
}

func memoryPlot(memory []occupied) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Peak memory of the process, gopher-5m"
	p.X.Label.Text = "context, tokens"
	p.Y.Label.Text = "MiB"
	p.Y.Min = 0
	p.Add(plotter.NewGrid())
	var ticks []plot.Tick
	for _, s := range []struct {
		name, colour string
		value        func(occupied) int64
	}{
		{"unmodified, f16 cache", "full", func(o occupied) int64 { return o.full }},
		{"LESS, 41 slots a head", "LESS", func(o occupied) int64 { return o.less }},
	} {
		var xy plotter.XYs
		for _, o := range memory {
			xy = append(xy, plotter.XY{X: float64(o.context), Y: mib(s.value(o))})
		}
		line, points, err := plotter.NewLinePoints(xy)
		if err != nil {
			return nil, err
		}
		line.Color, points.Color = colours[s.colour], colours[s.colour]
		line.Width, points.Shape = vg.Points(2), draw.CircleGlyph{}
		p.Add(line, points)
		p.Legend.Add(s.name, line, points)
	}
	for _, o := range memory {
		if o.context >= 32768 || o.context == heldout.Tokens {
			ticks = append(ticks, plot.Tick{Value: float64(o.context), Label: fmt.Sprintf("%dk", o.context/1024)})
		}
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	p.Legend.Top, p.Legend.Left = true, true
	return p, nil
}

func qualityPlot(quality []method) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Distance from the full cache (lower is better)"
	p.Y.Label.Text = "KL divergence, nats"
	p.Y.Min = 0

	var groups []string
	index := map[string]int{}
	for _, m := range quality {
		g := m.policy + "\n" + m.setting
		if _, ok := index[g]; !ok {
			index[g] = len(groups)
			groups = append(groups, g)
		}
	}
	names := []string{"sparse only", "Baseline+", "Baseline++", "LESS"}
	width := vg.Points(12)
	for i, name := range names {
		values := make(plotter.Values, len(groups))
		for _, m := range quality {
			if m.name == name {
				values[index[m.policy+"\n"+m.setting]] = m.KL()
			}
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return nil, err
		}
		bars.Color, bars.LineStyle.Width = colours[name], 0
		bars.Offset = (vg.Length(i) - 1.5) * (width + 1)
		p.Add(bars)
		p.Legend.Add(name, bars)
	}
	p.NominalX(groups...)
	p.Legend.Top = true
	return p, nil
}
