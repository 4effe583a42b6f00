package verify

import (
	"context"
	"fmt"

	"github.com/lesskv/lesskv/integration/worker"
)

// peaks measures what the processes of both runtimes take with growing contexts, after one window of the first context.
func (v *verifier) peaks(ctx context.Context, groups []*group) ([]Peak, error) {
	g := groups[0]
	var less *row
	for _, r := range g.rows {
		if r.Method == LESS || r.Method == Sparse && less == nil {
			if less == nil || less.Method != LESS {
				less = r
			}
		}
	}
	if len(v.plan.Peaks) > 0 && less == nil {
		v.note("no peak memory: neither sparse nor LESS is among the methods")
		return nil, nil
	}
	peak := func(r *run, context int) (int64, error) {
		c := *r
		c.config.Context = context
		w, err := v.open(ctx, &c, v.chunk(g.ubatch), v.threads(1), v.plan.RPC)
		if err != nil {
			return 0, err
		}
		defer w.Close()
		if _, err := w.Feed(0, 0, g.windows[0][:min(len(g.windows[0]), context)], worker.None); err != nil {
			return 0, fmt.Errorf("verify: %w", err)
		}
		m, err := w.Memory()
		return m.Peak, err
	}
	var all []Peak
	for _, context := range v.plan.Peaks {
		v.say(fmt.Sprintf("peak memory at a context of %d", context), 0)
		p, err := cached(v, v.key("peak", g.full, less.run, context), func() (p Peak, err error) {
			p = Peak{Context: context, Slots: less.Slots}
			if p.Unmodified, err = peak(g.full, context); err != nil {
				return p, err
			}
			p.LESS, err = peak(less.run, context)
			return p, err
		})
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}
