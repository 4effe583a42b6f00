// Package picture draws the pictures of commands that measure.
package picture

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/lesskv/lesskv/weights/outfile"
)

// Colours that are told apart in print too.
var (
	Blue   = color.RGBA{0x20, 0x70, 0xb0, 0xff}
	Orange = color.RGBA{0xe0, 0xa0, 0x50, 0xff}
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

// Row draws plots beside each other, their axes in line, as a PNG in a folder that need not be there, and says so on standard error.
func Row(path string, width, height vg.Length, plots []*plot.Plot) error {
	img := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(96))
	tiles := draw.Tiles{Rows: 1, Cols: len(plots), PadX: vg.Points(14), PadTop: vg.Points(8), PadBottom: vg.Points(8), PadLeft: vg.Points(8), PadRight: vg.Points(14)}
	for i, c := range plot.Align([][]*plot.Plot{plots}, tiles, draw.New(img))[0] {
		plots[i].Draw(c)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := outfile.WriteFrom(path, vgimg.PngCanvas{Canvas: img}); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "drawn:", path)
	return nil
}
