package page

import (
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// overlaps labels, once the axes are known, the points that lie on those of another curve: there the colours do not tell which is which.
type overlaps []overlap

// An overlap is a point of a curve that may have a label.
type overlap struct {
	at     plotter.XY
	curve  string
	text   string
	colour color.Color
	always bool // labelled even if it lies alone
}

const (
	pointRadius = vg.Length(3)
	near        = 3 * pointRadius // points so near lie on each other
)

// Plot draws the labels, each in the nearest free place round its point, with a line from there. Where there is none the point has no label.
func (o overlaps) Plot(c draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&c)
	at := make([]vg.Point, len(o))
	var taken []vg.Rectangle
	for i, x := range o {
		at[i] = vg.Point{X: toX(x.at.X), Y: toY(x.at.Y)}
		taken = append(taken, around(at[i], pointRadius, pointRadius))
	}
	style := p.Legend.TextStyle
	style.Font.Size = 7
	for i, x := range o {
		if !x.always && !o.covered(i, at) {
			continue
		}
		style.Color = x.colour
		half := vg.Point{X: style.Width(x.text)/2 + 1, Y: style.Height(x.text)/2 + 1}
		box, ok := free(at[i], half, c.Rectangle, taken)
		if !ok {
			continue
		}
		taken = append(taken, box)
		centre := vg.Point{X: (box.Min.X + box.Max.X) / 2, Y: (box.Min.Y + box.Max.Y) / 2}
		end := vg.Point{X: min(max(at[i].X, box.Min.X), box.Max.X), Y: min(max(at[i].Y, box.Min.Y), box.Max.Y)}
		c.StrokeLine2(draw.LineStyle{Color: x.colour, Width: vg.Length(0.5)}, at[i].X, at[i].Y, end.X, end.Y)
		style.XAlign, style.YAlign = draw.XCenter, draw.YCenter
		c.FillText(style, centre, x.text)
	}
}

// covered tells whether a point lies on one of another curve.
func (o overlaps) covered(i int, at []vg.Point) bool {
	for j := range o {
		if o[j].curve != o[i].curve && distance(at[i], at[j]) < near {
			return true
		}
	}
	return false
}

// free finds a place for a label of so much to each side of its middle: the nearest to a point that lies in the canvas and on nothing.
func free(p, half vg.Point, canvas vg.Rectangle, taken []vg.Rectangle) (vg.Rectangle, bool) {
	const directions = 16
	for away := pointRadius + 2; away < 80; away += 4 {
		for d := range directions {
			turn := 2 * math.Pi * float64(d) / directions
			box := around(vg.Point{X: p.X + (away+half.X)*vg.Length(math.Cos(turn)), Y: p.Y + (away+half.Y)*vg.Length(math.Sin(turn))}, half.X, half.Y)
			if box.Min.X < canvas.Min.X || box.Min.Y < canvas.Min.Y || box.Max.X > canvas.Max.X || box.Max.Y > canvas.Max.Y {
				continue
			}
			empty := true
			for _, t := range taken {
				empty = empty && (box.Max.X < t.Min.X || box.Min.X > t.Max.X || box.Max.Y < t.Min.Y || box.Min.Y > t.Max.Y)
			}
			if empty {
				return box, true
			}
		}
	}
	return vg.Rectangle{}, false
}

func around(p vg.Point, x, y vg.Length) vg.Rectangle {
	return vg.Rectangle{Min: vg.Point{X: p.X - x, Y: p.Y - y}, Max: vg.Point{X: p.X + x, Y: p.Y + y}}
}

func distance(a, b vg.Point) vg.Length {
	return vg.Length(math.Hypot(float64(a.X-b.X), float64(a.Y-b.Y)))
}
