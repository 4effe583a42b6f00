package tune

import (
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/lesskv/lesskv/integration/picture"
)

// grid is a number for each layer and KV head, on a logarithmic scale: a plotter.GridXYZ.
type grid struct {
	layers []int       // of the model, those with a budget
	values [][]float64 // [layer][head]; NaN: a layer with fewer heads
	heads  int
}

func newGrid(r *Result, value func(h *Head) float64) *grid {
	g := &grid{}
	for i := range r.Heads {
		h := &r.Heads[i]
		if len(g.layers) == 0 || g.layers[len(g.layers)-1] != h.Layer {
			g.layers, g.values = append(g.layers, h.Layer), append(g.values, nil)
		}
		last := len(g.values) - 1
		g.values[last] = append(g.values[last], value(h))
		g.heads = max(g.heads, len(g.values[last]))
	}
	return g
}

func (g *grid) Dims() (c, r int) { return len(g.layers), g.heads }
func (g *grid) X(c int) float64  { return float64(c) }
func (g *grid) Y(r int) float64  { return float64(r) }
func (g *grid) Z(c, r int) float64 {
	if r >= len(g.values[c]) {
		return math.NaN()
	}
	return math.Log10(g.values[c][r])
}

// labels writes the values into their cells.
func (g *grid) labels(format func(float64) string) (*plotter.Labels, error) {
	var l plotter.XYLabels
	for c, heads := range g.values {
		for r, v := range heads {
			l.XYs = append(l.XYs, plotter.XY{X: float64(c), Y: float64(r)})
			l.Labels = append(l.Labels, format(v))
		}
	}
	labels, err := plotter.NewLabels(l)
	if err != nil {
		return nil, err
	}
	for i := range labels.TextStyle {
		labels.TextStyle[i].Font.Size, labels.TextStyle[i].Font.Variant = font.Length(7), "Sans"
		labels.TextStyle[i].XAlign, labels.TextStyle[i].YAlign = draw.XCenter, draw.YCenter
	}
	return labels, nil
}

// shades are a palette on which black numbers can be read: from white to orange.
type shades int

func (n shades) Colors() []color.Color {
	all := make([]color.Color, n)
	for i := range all {
		x := float64(i) / float64(n-1)
		all[i] = color.RGBA{R: uint8(255 - 5*x), G: uint8(255 - 135*x), B: uint8(255 - 215*x), A: 255}
	}
	return all
}

// heatmap draws a grid.
func (g *grid) heatmap(title string, format func(float64) string) (*plot.Plot, error) {
	p := picture.New(title, "layer", "KV head")
	var x, y []plot.Tick
	for c, il := range g.layers {
		x = append(x, plot.Tick{Value: float64(c), Label: strconv.Itoa(il)})
	}
	for r := range g.heads {
		y = append(y, plot.Tick{Value: float64(r), Label: strconv.Itoa(r)})
	}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.ConstantTicks(x), plot.ConstantTicks(y)

	h := plotter.NewHeatMap(g, shades(200))
	if !(h.Max > h.Min) {
		h.Max = h.Min + 1
	}
	p.Add(h)
	if len(g.layers)*g.heads <= 400 {
		labels, err := g.labels(format)
		if err != nil {
			return nil, err
		}
		p.Add(labels)
	}
	return p, nil
}

// Plot draws sensitivity and allocation by layer and head, to a .png or .svg.
func Plot(r *Result, path string) error {
	err := func() error {
		level := r.Level()
		const none = 1e-5 // nats: below that is noise
		sensitivity := newGrid(r, func(h *Head) float64 { return max(h.Distance[level], none) })
		slots := newGrid(r, func(h *Head) float64 { return float64(h.Slots) })
		left, err := sensitivity.heatmap(fmt.Sprintf("KL that %d slots cost (nats)", r.Levels[level]), func(v float64) string {
			if v <= none {
				return ""
			}
			return strconv.FormatFloat(v, 'g', 2, 64)
		})
		if err != nil {
			return err
		}
		right, err := slots.heatmap(fmt.Sprintf("slots, %d on average", r.Slots()), func(v float64) string { return strconv.Itoa(int(v)) })
		if err != nil {
			return err
		}
		width := max(4, .45*float64(len(sensitivity.layers)))
		height := max(2.2, 1+.35*float64(sensitivity.heads))
		return picture.Row(path, vg.Length(2*width)*vg.Inch, vg.Length(height)*vg.Inch, left, right)
	}()
	if err != nil {
		return fmt.Errorf("tune: plot: %w", err)
	}
	return nil
}
