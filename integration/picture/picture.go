// Package picture draws the pictures of commands that measure.
package picture

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/lesskv/lesskv/weights/outfile"
)

// Colours that are told apart in print too.
var (
	Blue   = color.RGBA{0x20, 0x70, 0xb0, 0xff}
	Orange = color.RGBA{0xe0, 0xa0, 0x50, 0xff}
	Brown  = color.RGBA{0x80, 0x40, 0x20, 0xff}
)

// New returns an empty plot in the fonts of the pages.
func New(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = 4
	p.Legend.Padding = 1
	for _, s := range []*text.Style{&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle} {
		s.Font.Variant = "Sans"
	}
	p.Legend.TextStyle.Font.Size = 9
	return p
}

// Line returns a line of so many points' width and the points on it, of one colour.
func Line(xy plotter.XYs, c color.Color, width float64) (*plotter.Line, *plotter.Scatter, error) {
	line, points, err := plotter.NewLinePoints(xy)
	if err != nil {
		return nil, nil, err
	}
	line.Color, points.Color = c, c
	line.Width, points.Shape = vg.Points(width), draw.CircleGlyph{}
	return line, points, nil
}

// dpi are the pixels of an inch of a PNG.
const dpi = 90

// Draw makes a picture: a PNG or, where its name ends in .svg, an SVG.
func Draw(path string, width, height vg.Length, on func(draw.Canvas)) error {
	if filepath.Ext(path) == ".svg" {
		c := vgsvg.New(width, height)
		on(draw.New(c))
		return outfile.WriteFrom(path, c)
	}
	return outfile.WriteFrom(path, PNG(width, height, on))
}

// Row draws plots beside each other, their axes in line.
func Row(path string, width, height vg.Length, plots ...*plot.Plot) error {
	return Rows(path, width, height, plots)
}

// Rows draws rows of plots below each other, which may be of different lengths.
func Rows(path string, width, height vg.Length, rows ...[]*plot.Plot) error {
	return Draw(path, width, height, func(c draw.Canvas) { Place(c, rows...) })
}

// Place draws rows of plots on a canvas, and returns the part of it that each has.
func Place(c draw.Canvas, rows ...[]*plot.Plot) [][]draw.Canvas {
	columns := 0
	for _, r := range rows {
		columns = max(columns, len(r))
	}
	full := make([][]*plot.Plot, len(rows))
	for i, r := range rows {
		full[i] = append(slices.Clone(r), make([]*plot.Plot, columns-len(r))...)
	}
	tiles := draw.Tiles{Rows: len(rows), Cols: columns, PadX: vg.Points(14), PadY: vg.Points(12),
		PadTop: vg.Points(8), PadBottom: vg.Points(8), PadLeft: vg.Points(8), PadRight: vg.Points(14)}
	parts := plot.Align(full, tiles, c)
	for i, r := range rows {
		for j, p := range r {
			p.Draw(parts[i][j])
		}
	}
	return parts
}

// PNG returns what is drawn on a canvas as a picture of this size.
func PNG(width, height vg.Length, on func(draw.Canvas)) vgimg.PngCanvas {
	c := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))}
	on(draw.New(c))
	return c
}

// ContextTicks are an axis's ticks at contexts, those above 0, with labels in units of 1,024 tokens where they are whole.
func ContextTicks(contexts []int) plot.ConstantTicks {
	var ticks []plot.Tick
	for _, c := range contexts {
		if c > 0 {
			label := fmt.Sprint(c)
			if c%1024 == 0 {
				label = fmt.Sprintf("%dk", c/1024)
			}
			ticks = append(ticks, plot.Tick{Value: float64(c), Label: label})
		}
	}
	return ticks
}

// LogTicks has labels at 1, 2 and 5 times the powers of ten: three of them at least, however short the axis.
type LogTicks struct{}

// Ticks implements plot.Ticker.
func (LogTicks) Ticks(lo, hi float64) []plot.Tick {
	tick := func(x float64, digits int) plot.Tick {
		rounded, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'g', digits, 64), 64)
		return plot.Tick{Value: x, Label: fmt.Sprint(rounded)}
	}
	for _, steps := range [][]float64{{1, 2, 5}, {1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9}} {
		var ticks []plot.Tick
		for power := math.Floor(math.Log10(lo)); power <= math.Log10(hi); power++ {
			for _, s := range steps {
				if x := s * math.Pow(10, power); x >= lo && x <= hi {
					ticks = append(ticks, tick(x, 2))
				}
			}
		}
		if len(ticks) >= 3 {
			return ticks
		}
	}
	return []plot.Tick{tick(lo, 3), tick(math.Sqrt(lo*hi), 3), tick(hi, 3)}
}

// IntegerTicks has labels at multiples of 1, 2 or 5 times a power of ten: nine at most.
type IntegerTicks struct{}

// Ticks implements plot.Ticker.
func (IntegerTicks) Ticks(lo, hi float64) (ticks []plot.Tick) {
	step := 1.0
	for i := 0; (hi-lo)/step > 8; i++ {
		step *= []float64{2, 2.5, 2}[i%3]
	}
	for x := math.Ceil(lo/step) * step; x <= hi; x += step {
		ticks = append(ticks, plot.Tick{Value: x, Label: fmt.Sprint(x)})
	}
	return ticks
}
