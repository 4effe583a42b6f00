package page

import (
	"fmt"
	"image/color"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/palette/moreland"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/lesskv/lesskv/integration/picture"
	"github.com/lesskv/lesskv/integration/verify"
)

var methodColours = map[string]color.RGBA{
	verify.Q8:       {0x9a, 0x9a, 0x9a, 0xff},
	verify.Q4:       {0x50, 0x50, 0x50, 0xff},
	verify.Window:   {0xb0, 0x60, 0xb0, 0xff},
	verify.Sparse:   {0xe0, 0xa0, 0x50, 0xff},
	verify.Plus:     {0xc0, 0x70, 0x30, 0xff},
	verify.PlusPlus: {0x80, 0x40, 0x20, 0xff},
	verify.LESS:     {0x20, 0x70, 0xb0, 0xff},
}

// looks are those of the policies, in their order; with more policies than looks they begin anew.
var looks = []struct {
	colour color.RGBA
	glyph  draw.GlyphDrawer
}{
	{color.RGBA{0xc0, 0x50, 0x30, 0xff}, draw.CircleGlyph{}},
	{color.RGBA{0x60, 0x90, 0x30, 0xff}, draw.BoxGlyph{}},
	{color.RGBA{0x20, 0x70, 0xb0, 0xff}, draw.PyramidGlyph{}},
	{color.RGBA{0xa0, 0x40, 0xa0, 0xff}, draw.CrossGlyph{}},
	{color.RGBA{0xc0, 0x90, 0x10, 0xff}, draw.TriangleGlyph{}},
	{color.RGBA{0x10, 0x90, 0x90, 0xff}, draw.SquareGlyph{}},
}

// look returns the colour and shape of a policy; "" is none.
func look(policy string) (color.RGBA, draw.GlyphDrawer) {
	i := slices.Index(verify.Policies(), policy)
	if i < 0 {
		return color.RGBA{0x50, 0x50, 0x50, 0xff}, draw.RingGlyph{}
	}
	l := looks[i%len(looks)]
	return l.colour, l.glyph
}

// Pictures draws what the report has.
func Pictures(r *verify.Report) ([]*Picture, error) {
	var all []*Picture
	for _, draw := range []func(*verify.Report) ([]*Picture, error){quality, positions, layers, held, peaks} {
		p, err := draw(r)
		if err != nil {
			return nil, fmt.Errorf("page: %w", err)
		}
		all = append(all, p...)
	}
	return all, nil
}

// setting is a context and micro-batch.
type setting struct{ context, ubatch int }

func settings(r *verify.Report) []setting {
	var all []setting
	for _, row := range r.Rows {
		if s := (setting{row.Context, row.Ubatch}); !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// errorPoints are points with intervals.
type errorPoints struct {
	plotter.XYs
	plotter.YErrors
}

func (e *errorPoints) add(x float64, y verify.Estimate) {
	e.XYs = append(e.XYs, plotter.XY{X: x, Y: y.Value})
	e.YErrors = append(e.YErrors, struct{ Low, High float64 }{y.Value - y.Low, y.High - y.Value})
}

// plot draws a line with points and their intervals.
func (e *errorPoints) plot(p *panel, c color.Color, glyph draw.GlyphDrawer, dashes []vg.Length, names ...string) error {
	line, points, err := picture.Line(e.XYs, c, 1)
	if err != nil {
		return err
	}
	line.Dashes = dashes
	points.Shape, points.Radius = glyph, vg.Points(3)
	bars, err := plotter.NewYErrorBars(e)
	if err != nil {
		return err
	}
	bars.Color, bars.CapWidth = c, vg.Points(3)
	p.plot.Add(line, bars, points)
	for _, n := range names {
		p.plot.Legend.Add(n, line, points)
	}
	return nil
}

func number(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }

// positions is KL along the sequence, a panel for each budget of the first context and micro-batch.
func positions(r *verify.Report) ([]*Picture, error) {
	all := settings(r)
	if len(all) == 0 {
		return nil, nil
	}
	pic := &Picture{Name: "position", Title: "Distance along the sequence",
		Caption: fmt.Sprintf("KL divergence by position, with 95 %% intervals: context %d, micro-batches of %d. Dashed: sparse only. Until the first eviction it is zero.", all[0].context, all[0].ubatch)}
	top := 0.0
	for _, g := range groups(r) {
		if g.Context != all[0].context || g.Ubatch != all[0].ubatch {
			continue
		}
		p := newPanel(fmt.Sprintf("budget %d", g.Budget), "position", "KL to the full cache, nats")
		p.plot.Y.Min = 0
		p.plot.Add(plotter.NewGrid())
		for _, row := range g.Rows {
			if row.Fault != "" || row.Method != verify.Sparse && row.Method != verify.LESS && row.Method != verify.Q4 {
				continue
			}
			var e errorPoints
			for _, b := range row.Buckets {
				x := float64(b.From+b.To) / 2
				e.add(x, b.KL)
				top = math.Max(top, b.KL.High)
				p.marks = append(p.marks, mark{x, b.KL.Value, fmt.Sprintf("%s, positions %d to %d: KL %s", row.Name(), b.From, b.To-1, interval(b.KL, 4)), map[string]string{
					"budget": strconv.Itoa(row.Budget), "policy": row.Policy, "method": row.Method, "from": strconv.Itoa(b.From), "kl": number(b.KL.Value)}})
			}
			var dashes []vg.Length
			if row.Method == verify.Sparse {
				dashes = []vg.Length{vg.Points(4), vg.Points(3)}
			}
			colour, shape := look(row.Policy)
			if err := e.plot(p, colour, shape, dashes, row.Name()); err != nil {
				return nil, err
			}
		}
		p.plot.X.Tick.Marker = picture.IntegerTicks{}
		p.plot.Legend.Top, p.plot.Legend.Left = true, true
		if len(p.marks) > 0 {
			pic.panels = append(pic.panels, p)
		}
	}
	if len(pic.panels) == 0 {
		return nil, nil
	}
	for _, p := range pic.panels {
		p.plot.Y.Max = 1.3*top + 1e-9 // room for the legend
	}
	return []*Picture{pic}, nil
}

// layers is what each layer retains, a panel for each budget.
func layers(r *verify.Report) ([]*Picture, error) {
	if len(r.Profiles) == 0 {
		return nil, nil
	}
	pic := &Picture{Name: "layers", Title: "What each layer retains",
		Caption: "Share of the full cache's attention that goes to what a sparse policy has kept, at the end of the first window: mean over heads and the last queries. Dotted: the share of the tokens that is kept. The rest is what LESS's state stands for."}
	panels := map[int]*panel{}
	for _, x := range r.Profiles {
		p := panels[x.Budget]
		if p == nil {
			p = newPanel(fmt.Sprintf("budget %d of %d tokens", x.Budget, x.Seen), "layer", "share of the attention")
			p.plot.Y.Min, p.plot.Y.Max = 0, 1.25
			p.plot.Add(plotter.NewGrid())
			p.plot.X.Tick.Marker = picture.IntegerTicks{}
			p.plot.Legend.Top = true
			panels[x.Budget] = p
			pic.panels = append(pic.panels, p)
		}
		var attention, kept plotter.XYs
		for _, l := range x.Layers {
			attention = append(attention, plotter.XY{X: float64(l.Layer), Y: l.Attention})
			kept = append(kept, plotter.XY{X: float64(l.Layer), Y: l.Kept})
			p.marks = append(p.marks, mark{float64(l.Layer), l.Attention, fmt.Sprintf("%s, layer %d: %.1f %% of the attention, %.1f %% of the tokens", x.Policy, l.Layer, 100*l.Attention, 100*l.Kept), map[string]string{
				"budget": strconv.Itoa(x.Budget), "policy": x.Policy, "layer": strconv.Itoa(l.Layer), "attention": number(l.Attention)}})
		}
		colour, shape := look(x.Policy)
		line, points, err := picture.Line(attention, colour, 1)
		if err != nil {
			return nil, err
		}
		points.Shape = shape
		dotted, err := plotter.NewLine(kept)
		if err != nil {
			return nil, err
		}
		dotted.Color, dotted.Dashes = colour, []vg.Length{vg.Points(1), vg.Points(2)}
		p.plot.Add(line, points, dotted)
		p.plot.Legend.Add(x.Policy, line, points)
	}
	return []*Picture{pic}, nil
}

// heldGrid is a profile's positions, a row for each layer and KV head.
type heldGrid struct {
	rows [][]float64
	seen int
}

func (h heldGrid) Dims() (c, r int)   { return len(h.rows[0]), len(h.rows) }
func (h heldGrid) Z(c, r int) float64 { return h.rows[r][c] }
func (h heldGrid) X(c int) float64 {
	return (float64(c) + 0.5) * float64(h.seen) / float64(len(h.rows[0]))
}
func (h heldGrid) Y(r int) float64 { return float64(r) }
func (h heldGrid) Min() float64    { return 0 }
func (h heldGrid) Max() float64    { return 1 }

// held is where in the sequence the kept tokens are, a picture for each budget and a panel for each policy.
func held(r *verify.Report) ([]*Picture, error) {
	var all []*Picture
	index := map[int]*Picture{}
	colours := moreland.ExtendedBlackBody()
	colours.SetMin(0)
	colours.SetMax(1)
	shades := colours.Palette(64)
	slices.Reverse(shades.Colors()) // white is nothing
	for _, x := range r.Profiles {
		grid := heldGrid{seen: x.Seen}
		for _, l := range x.Layers {
			grid.rows = append(grid.rows, l.Held...)
		}
		if len(grid.rows) == 0 || len(grid.rows[0]) < 2 || len(grid.rows) < 2 {
			continue
		}
		pic := index[x.Budget]
		if pic == nil {
			pic = &Picture{Name: fmt.Sprintf("held-%d", x.Budget), Title: fmt.Sprintf("Which positions are kept, budget %d", x.Budget),
				Caption: "How much of each part of the first window the sparse cache still holds at its end, for each layer and KV head, from none (white) to all of it (black). Dark columns are heavy hitters."}
			index[x.Budget] = pic
			all = append(all, pic)
		}
		p := newPanel(x.Policy, "position", "layer")
		p.plot.Add(plotter.NewHeatMap(grid, shades))
		heads := len(x.Layers[0].Held)
		var ticks []plot.Tick
		for i, l := range x.Layers {
			ticks = append(ticks, plot.Tick{Value: float64(i*heads) + float64(heads-1)/2, Label: strconv.Itoa(l.Layer)})
		}
		p.plot.Y.Tick.Marker = plot.ConstantTicks(ticks)
		pic.panels = append(pic.panels, p)
	}
	return all, nil
}

// peaks is the memory of the processes against the context.
func peaks(r *verify.Report) ([]*Picture, error) {
	if len(r.Peaks) < 2 {
		return nil, nil
	}
	p := newPanel("Peak memory of the process", "context, tokens", "MiB")
	p.plot.Y.Min = 0
	p.plot.Add(plotter.NewGrid())
	p.plot.X.Tick.Marker = kilo{}
	for _, s := range []struct {
		name   string
		colour color.Color
		value  func(verify.Peak) int64
	}{
		{"unmodified, f16 cache", methodColours[verify.Q8], func(p verify.Peak) int64 { return p.Unmodified }},
		{fmt.Sprintf("LESS, %d slots a head", r.Peaks[0].Slots), methodColours[verify.LESS], func(p verify.Peak) int64 { return p.LESS }},
	} {
		var xy plotter.XYs
		for _, x := range r.Peaks {
			y := float64(s.value(x)) / (1 << 20)
			xy = append(xy, plotter.XY{X: float64(x.Context), Y: y})
			p.marks = append(p.marks, mark{float64(x.Context), y, fmt.Sprintf("%s, context %d: %.1f MiB", s.name, x.Context, y), map[string]string{
				"context": strconv.Itoa(x.Context), "peak": strconv.FormatInt(s.value(x), 10)}})
		}
		line, points, err := picture.Line(xy, s.colour, 2)
		if err != nil {
			return nil, err
		}
		p.plot.Add(line, points)
		p.plot.Legend.Add(s.name, line, points)
	}
	p.plot.Legend.Top, p.plot.Legend.Left = true, true
	return []*Picture{{Name: "memory", Title: "Memory against context", Caption: "The most memory that a process had, after one window.", panels: []*panel{p}}}, nil
}

// kilo are ticks in thousands of tokens.
type kilo struct{}

func (kilo) Ticks(lo, hi float64) []plot.Tick {
	all := plot.DefaultTicks{}.Ticks(lo, hi)
	for i, t := range all {
		if t.Label != "" && hi >= 4000 {
			all[i].Label = fmt.Sprintf("%gk", t.Value/1000)
		}
	}
	return all
}
