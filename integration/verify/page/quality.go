package page

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg/draw"

	"github.com/lesskv/lesskv/integration/picture"
	"github.com/lesskv/lesskv/integration/verify"
)

// depth is how far the axis of KL reaches below the greatest: what is closer to the full cache is drawn at its lower edge.
const depth = 100

// quality is KL against bytes, both axes logarithmic: a column of panels for each policy, and a row for each context and micro-batch. All points
// of a row count the same positions, and all panels have the same axis of KL.
func quality(r *verify.Report) ([]*Picture, error) {
	policies := policiesOf(r)
	pic := &Picture{Name: "quality", Title: "Distance from the full cache against bytes", columns: len(policies),
		Caption: "KL divergence from the full f16 cache, with 95 % intervals, over the positions that all budgets share, a panel for each policy; both axes are logarithmic. Bytes are those of one sequence; LESS's include its kernels. Lower and further left is better. Points that lie on those of another method have their method's name; those below the axis lie at its lower edge, with their number."}
	top := 0.0
	for _, row := range r.Measured() {
		if plotted(row) {
			top = math.Max(top, row.Common.KL.High)
		}
	}
	if top == 0 {
		top = 1 // nothing is above zero
	}
	for _, s := range settings(r) {
		for _, policy := range policies {
			p, err := qualityPanel(r, s, policy, top)
			if err != nil {
				return nil, err
			}
			if len(p.marks) > 0 {
				pic.panels = append(pic.panels, p)
			}
		}
	}
	if len(pic.panels) == 0 {
		return nil, nil
	}
	return []*Picture{pic}, nil
}

// policiesOf lists the policies of a report, or none's name.
func policiesOf(r *verify.Report) (all []string) {
	for _, row := range r.Measured() {
		if row.Policy != "" && !slices.Contains(all, row.Policy) {
			all = append(all, row.Policy)
		}
	}
	if all == nil {
		return []string{""}
	}
	return all
}

// plotted tells whether a row has a point: full is zero, and f32 is rounding.
func plotted(row *verify.Row) bool {
	_, ok := methodColours[row.Method]
	return ok && row.Common != nil && row.Bytes.Total > 0
}

// qualityPanel is one setting and policy, beside the caches that have none.
func qualityPanel(r *verify.Report, s setting, policy string, top float64) (*panel, error) {
	title := fmt.Sprintf("context %d, micro-batches of %d", s.context, s.ubatch)
	if policy != "" {
		title = policy + ", " + title
	}
	p := newPanel(title, "KiB of one sequence", "KL to the full cache, nats")
	bottom := top / depth
	drawn := func(y float64) float64 { return math.Max(y, bottom) }
	p.plot.Add(plotter.NewGrid())
	var crowd overlaps
	for _, method := range verify.Methods() {
		colour := methodColours[method]
		var e errorPoints
		seen := map[int64]bool{}
		for _, row := range r.Measured() {
			if row.Context != s.context || row.Ubatch != s.ubatch || row.Method != method || row.Policy != policy && row.Policy != "" || !plotted(row) || seen[row.Bytes.Total] {
				continue
			}
			seen[row.Bytes.Total] = true
			kib, kl := float64(row.Bytes.Total)/1024, row.Common.KL
			e.add(kib, verify.Estimate{Value: drawn(kl.Value), Low: drawn(kl.Low), High: drawn(kl.High)})
			label := overlap{plotter.XY{X: kib, Y: drawn(kl.Value)}, method, method, colour, kl.Value < bottom}
			if label.always {
				label.text = fmt.Sprintf("%s: %.2g", method, kl.Value)
			}
			crowd = append(crowd, label)
			p.marks = append(p.marks, mark{kib, drawn(kl.Value), fmt.Sprintf("%s, %d slots, %.0f KiB: KL %s", row.Name(), row.Slots, kib, interval(kl, 4)), map[string]string{
				"context": strconv.Itoa(row.Context), "ubatch": strconv.Itoa(row.Ubatch), "budget": strconv.Itoa(row.Budget), "panel": policy, "policy": row.Policy, "method": method,
				"bytes": strconv.FormatInt(row.Bytes.Total, 10), "kl": number(kl.Value)}})
		}
		if len(e.XYs) == 0 {
			continue
		}
		if err := e.plot(p, colour, draw.CircleGlyph{}, nil, method); err != nil {
			return nil, err
		}
	}
	p.plot.Add(crowd)
	p.plot.X.Scale, p.plot.X.Tick.Marker = plot.LogScale{}, powers{}
	p.plot.Y.Scale, p.plot.Y.Tick.Marker = plot.LogScale{}, picture.LogTicks{}
	p.plot.Y.Min, p.plot.Y.Max = bottom, 1.5*top
	if p.plot.X.Min == p.plot.X.Max {
		p.plot.X.Min, p.plot.X.Max = p.plot.X.Min/2, p.plot.X.Max*2
	}
	p.plot.Legend.Top = true
	return p, nil
}

// powers are ticks at powers of two.
type powers struct{}

func (powers) Ticks(lo, hi float64) []plot.Tick {
	var all []plot.Tick
	for x := math.Exp2(math.Floor(math.Log2(lo))); x <= hi*2; x *= 2 {
		if x >= lo && x <= hi {
			all = append(all, plot.Tick{Value: x, Label: number(x)})
		}
	}
	return all
}
