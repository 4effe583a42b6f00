// Package picture draws the pictures of commands that measure.
package picture

import (
	"fmt"
	"image/color"
	"path/filepath"

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
	var c vg.CanvasWriterTo = vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))}
	if filepath.Ext(path) == ".svg" {
		c = vgsvg.New(width, height)
	}
	on(draw.New(c))
	return outfile.WriteFrom(path, c)
}

// Row draws plots beside each other, their axes in line.
func Row(path string, width, height vg.Length, plots ...*plot.Plot) error {
	return Draw(path, width, height, func(c draw.Canvas) {
		tiles := draw.Tiles{Rows: 1, Cols: len(plots), PadX: vg.Points(14), PadTop: vg.Points(8), PadBottom: vg.Points(8), PadLeft: vg.Points(8), PadRight: vg.Points(14)}
		for i, c := range plot.Align([][]*plot.Plot{plots}, tiles, c)[0] {
			plots[i].Draw(c)
		}
	})
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
