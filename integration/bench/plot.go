package bench

import (
	"fmt"
	"image/color"
	"io"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/lesskv/lesskv/weights/outfile"
)

var colours = map[string]color.Color{
	"f16":            color.RGBA{0x50, 0x50, 0x50, 0xff},
	"f16-fa":         color.RGBA{0xa0, 0xa0, 0xa0, 0xff},
	"q8_0-fa":        color.RGBA{0xc0, 0x70, 0x30, 0xff},
	"q4_0-fa":        color.RGBA{0xe0, 0xa0, 0x50, 0xff},
	"sparse-unequal": color.RGBA{0x40, 0x80, 0x40, 0xff},
	"sparse":         color.RGBA{0x70, 0xb0, 0x60, 0xff},
	"less":           color.RGBA{0x20, 0x70, 0xb0, 0xff},
}

// Plot draws decoding speed, prompt speed and the cache's bytes against the context, all axes logarithmic, one line of
// pictures for each result, as a PNG.
func Plot(path string, results ...*Result) error {
	const width, height = 12 * vg.Centimeter, 9 * vg.Centimeter
	img := vgimg.NewWith(vgimg.UseWH(3*width, vg.Length(len(results))*height), vgimg.UseDPI(90))
	tiles := draw.Tiles{Rows: len(results), Cols: 3, PadX: vg.Points(12), PadY: vg.Points(12), PadTop: vg.Points(6), PadBottom: vg.Points(6), PadLeft: vg.Points(6), PadRight: vg.Points(6)}
	canvas := draw.New(img)
	for row, r := range results {
		speed := func(p Phase) func(string, int) float64 {
			return func(m string, c int) float64 { return r.Speed(Cell{m, c, p}).Median }
		}
		for column, s := range []struct {
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
			p.Draw(tiles.At(canvas, column, row))
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return outfile.Write(path, func(w io.Writer) error {
		_, err := vgimg.PngCanvas{Canvas: img}.WriteTo(w)
		return err
	})
}

// lines is one picture; values of 0 are not there.
func (r *Result) lines(title, unit string, rising bool, value func(method string, context int) float64) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, "context, tokens", unit
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	p.Add(plotter.NewGrid())
	var ticks []plot.Tick
	for _, c := range r.Contexts() {
		if c > 0 {
			label := fmt.Sprint(c)
			if c%1024 == 0 {
				label = fmt.Sprintf("%dk", c/1024)
			}
			ticks = append(ticks, plot.Tick{Value: float64(c), Label: label})
		}
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	found := false
	for _, m := range r.Methods() {
		var xy plotter.XYs
		for _, c := range r.Contexts() {
			if v := value(m, c); c > 0 && v > 0 {
				xy = append(xy, plotter.XY{X: float64(c), Y: v})
			}
		}
		if len(xy) == 0 {
			continue
		}
		found = true
		line, points, err := plotter.NewLinePoints(xy)
		if err != nil {
			return nil, err
		}
		line.Color, points.Color = colours[m], colours[m]
		line.Width, points.Shape = vg.Points(1.5), draw.CircleGlyph{}
		p.Add(line, points)
		p.Legend.Add(m, line, points)
	}
	if !found { // a logarithm needs a range
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 1, 10, 1, 10
	}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		if axis.Min == axis.Max { // and one point has none
			axis.Min, axis.Max = axis.Min/2, axis.Max*2
		}
	}
	p.Legend.Left, p.Legend.Top = true, rising // where no line is
	return p, nil
}
