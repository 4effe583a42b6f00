package page

import (
	"bytes"
	"fmt"
	"html"
	"maps"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/lesskv/lesskv/integration/picture"
)

// A Picture is some plots beside each other.
type Picture struct {
	Name    string // of its file
	Title   string
	Caption string
	panels  []*panel
	columns int // panels of a row; 0: all
}

// Single reports whether the picture is one plot alone.
func (p *Picture) Single() bool { return len(p.panels) == 1 }

// Marked reports whether any of its points says its numbers.
func (p *Picture) Marked() bool {
	return slices.ContainsFunc(p.panels, func(x *panel) bool { return len(x.marks) > 0 })
}

// A panel is a plot, and what can be asked of its points.
type panel struct {
	plot  *plot.Plot
	marks []mark
}

// A mark lies over a point of the drawing, in the page: it says which number of the report the point is.
type mark struct {
	x, y  float64
	title string
	data  map[string]string
}

const (
	panelWidth  = 13 * vg.Centimeter
	panelHeight = 11 * vg.Centimeter
)

// newPanel returns an empty plot in the fonts of the page.
func newPanel(title, x, y string) *panel { return &panel{plot: picture.New(title, x, y)} }

// grid is how many panels lie beside and below each other.
func (p *Picture) grid() (columns, rows int) {
	columns = len(p.panels)
	if p.columns > 0 {
		columns = min(columns, p.columns)
	}
	return columns, (len(p.panels) + columns - 1) / columns
}

func (p *Picture) size() (width, height vg.Length) {
	columns, rows := p.grid()
	return panelWidth * vg.Length(columns), panelHeight * vg.Length(rows)
}

// draw puts the panels side by side, row by row, and returns the part of the canvas that each has.
func (p *Picture) draw(c draw.Canvas) [][]draw.Canvas {
	columns, _ := p.grid()
	var rows [][]*plot.Plot
	for row := range slices.Chunk(p.panels, columns) {
		var plots []*plot.Plot
		for _, x := range row {
			plots = append(plots, x.plot)
		}
		rows = append(rows, plots)
	}
	return picture.Place(c, rows...)
}

// PNG returns the picture for a README.
func (p *Picture) PNG() ([]byte, error) {
	width, height := p.size()
	var b bytes.Buffer
	_, err := picture.PNG(width, height, func(c draw.Canvas) { p.draw(c) }).WriteTo(&b)
	return b.Bytes(), err
}

// SVG returns the picture for a page, with its marks over it.
func (p *Picture) SVG() (string, error) {
	_, height := p.size()
	c := vgsvg.NewWith(vgsvg.UseWH(p.size()))
	parts := p.draw(draw.New(c))
	columns, _ := p.grid()
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return "", err
	}
	var marks strings.Builder
	fmt.Fprintf(&marks, "<g class=\"marks\" data-picture=%q>\n", p.Name)
	for i, x := range p.panels {
		inner := x.plot.DataCanvas(parts[i/columns][i%columns])
		toX, toY := x.plot.Transforms(&inner)
		for _, m := range x.marks {
			fmt.Fprintf(&marks, `<circle cx="%.3f" cy="%.3f" r="5" fill="transparent"`, float64(toX(m.x)), float64(height-toY(m.y)))
			for _, k := range slices.Sorted(maps.Keys(m.data)) {
				fmt.Fprintf(&marks, ` data-%s="%s"`, k, html.EscapeString(m.data[k]))
			}
			fmt.Fprintf(&marks, "><title>%s</title></circle>\n", html.EscapeString(m.title))
		}
	}
	marks.WriteString("</g>\n</svg>")
	svg := b.String()
	svg = svg[strings.Index(svg, "<svg"):] // without the XML declaration, which HTML does not know
	at := strings.LastIndex(svg, "</svg>")
	return svg[:at] + marks.String(), nil
}
