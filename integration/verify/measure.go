package verify

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/worker"
)

// spent is the units of computing that tokens take: small micro-batches take longer.
func spent(tokens, ubatch int) int64 {
	return int64(tokens) + int64(tokens/max(ubatch, 1))
}

// threads returns how many each of some workers gets.
func (v *verifier) threads(workers int) int {
	return worker.Share(v.info.Bytes, v.plan.Threads, workers)
}

// opened is a run whose worker is up.
type opened struct {
	*run
	w *worker.Worker
}

// open starts a run's worker, with its layers on these servers' devices first.
func (v *verifier) open(ctx context.Context, r *run, batch, threads int, servers string) (*worker.Worker, error) {
	w, err := worker.Start(ctx, v.paths[r.tree])
	if err != nil {
		return nil, err
	}
	c := r.config
	c.Model, c.Batch, c.Threads, c.RPC = v.plan.Model, batch, threads, servers
	if c.LESS != nil && v.plan.Force {
		l := *c.LESS
		l.ForceAdapter, c.LESS = true, &l
	}
	if _, err := w.Open(c); err != nil {
		w.Close()
		return nil, fmt.Errorf("verify: %s: %w", r.describe(), err)
	}
	if r.adapter == nil {
		return w, nil
	}
	// A long run opens its files again and again: they must be those that it began with.
	info, err := w.LESS()
	if err == nil && info.AdapterSHA256 != r.adapter.SHA256 {
		err = fmt.Errorf("%s is another file than when the run began: SHA-256 %s, and it was %s", r.adapter.path, info.AdapterSHA256, r.adapter.SHA256)
	}
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("verify: %w", err)
	}
	return w, nil
}

// Keys of a run's pieces.

func (v *verifier) pointsKey(g *group, r *run, window int) string {
	return v.key("points", g, r, hashTokens(g.windows[window]))
}

func (v *verifier) bytesKey(g *group, r *run) string { return v.key("bytes", g, r) }

func (v *verifier) faultKey(g *group, r *run) string { return v.key("fault", g, r) }

// windowsOf is how many windows a run reads.
func (g *group) windowsOf(r *run) int {
	if r.few {
		return 1
	}
	return len(g.windows)
}

// missing reports whether a run has anything left to do.
func (v *verifier) missing(g *group, r *run) bool {
	if v.store.Has(v.faultKey(g, r)) {
		return false
	}
	if !v.store.Has(v.bytesKey(g, r)) {
		return true
	}
	for i := range g.windowsOf(r) {
		if !v.store.Has(v.pointsKey(g, r, i)) {
			return true
		}
	}
	if r.few {
		return false
	}
	for _, r := range []*run{g.full, r} { // the full cache is measured beside others
		if !v.generated(g, r) || !v.recalled(g, r) {
			return true
		}
	}
	return false
}

// pending lists a group's runs with something left to do.
func (v *verifier) pending(g *group) []*run {
	var out []*run
	for _, r := range g.runs {
		if v.missing(g, r) {
			out = append(out, r)
		}
	}
	return out
}

// count adds up what is to be done.
func (v *verifier) count(groups []*group) {
	for _, g := range groups {
		runs := v.pending(g)
		each := spent(g.context, g.ubatch)
		for _, r := range runs {
			v.total += int64(g.windowsOf(r)) * each
		}
		for ; len(runs) > 0; runs = runs[v.batch(g, runs):] {
			v.total += int64(len(g.windows)) * each
		}
	}
}

// measure does what is left to do in a group: as many runs at a time as the memory allows, beside the full cache.
func (v *verifier) measure(ctx context.Context, g *group) error {
	runs := v.pending(g)
	for done := 0; done < len(runs); {
		n := v.batch(g, runs[done:])
		v.say(fmt.Sprintf("context %d, micro-batches of %d: %d of %d ways", g.context, g.ubatch, done, len(runs)), 0)
		if err := v.together(ctx, g, runs[done:done+n]); err != nil {
			return err
		}
		done += n
	}
	return nil
}

// together measures some runs beside the full cache.
func (v *verifier) together(ctx context.Context, g *group, runs []*run) error {
	chunk := v.chunk(g.ubatch)
	parallel := min(v.plan.Threads, len(runs)+1)
	threads := v.threads(parallel)
	servers, err := worker.Servers(v.plan.RPC, len(runs)+1)
	if err != nil {
		return err
	}
	var workers []*worker.Worker
	defer func() {
		for _, w := range workers {
			w.Close()
		}
	}()
	start := func(r *run) (*opened, error) {
		w, err := v.open(ctx, r, chunk, threads, servers[len(workers)])
		if err != nil {
			return nil, err
		}
		workers = append(workers, w)
		return &opened{run: r, w: w}, nil
	}
	full, err := start(g.full)
	if err != nil {
		return err
	}
	var methods []*opened
	for _, r := range runs {
		o, err := start(r)
		var refused *worker.Error
		if r.optional && errors.As(err, &refused) {
			if err := v.store.Save(v.faultKey(g, r), refused.Message); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		methods = append(methods, o)
	}
	if err := v.check(workers); err != nil {
		return err
	}
	for i, window := range g.windows {
		var todo []*opened
		for _, o := range methods {
			if i < g.windowsOf(o.run) && !v.store.Has(v.pointsKey(g, o.run, i)) {
				todo = append(todo, o)
			}
		}
		if len(todo) > 0 {
			if err := v.read(g, full, todo, i, chunk, parallel); err != nil {
				return err
			}
		}
		v.say("", spent(len(window), g.ubatch))
		if err := v.check(workers); err != nil {
			return err
		}
	}
	for _, o := range methods {
		if err := v.weigh(g, o); err != nil {
			return err
		}
	}
	if err := v.generate(g, full); err != nil {
		return err
	}
	if err := v.recall(g, full); err != nil {
		return err
	}
	var each errgroup.Group
	each.SetLimit(parallel)
	for _, o := range methods {
		if o.few {
			continue
		}
		each.Go(func() error { return errors.Join(v.generate(g, o), v.recall(g, o)) })
	}
	if err := each.Wait(); err != nil {
		return err
	}
	return v.check(workers)
}

// read takes one window through all of them, chunk by chunk. While the methods read one, the full cache reads the next.
func (v *verifier) read(g *group, full *opened, methods []*opened, window, chunk, parallel int) error {
	tokens := g.windows[window]
	all := make([]*distance.Points, len(methods))
	for i, o := range append([]*opened{full}, methods...) {
		if err := o.w.Clear(); err != nil {
			return fmt.Errorf("verify: %s: %w", o.describe(), err)
		}
		if i > 0 {
			all[i-1] = &distance.Points{}
		}
	}
	ahead := func(at int) (*distance.Expected, error) {
		out, err := full.w.Decode(0, at, tokens[at:min(at+chunk, len(tokens))], worker.All)
		if err != nil {
			return nil, fmt.Errorf("verify: %s: %w", full.describe(), err)
		}
		return distance.Expect(out), nil
	}
	now, err := ahead(0)
	if err != nil {
		return err
	}
	for at := 0; at < len(tokens); at += chunk {
		end := min(at+chunk, len(tokens))
		var next *distance.Expected
		var step errgroup.Group
		step.SetLimit(parallel)
		if end < len(tokens) {
			step.Go(func() (err error) {
				next, err = ahead(end)
				return err
			})
		}
		for i, o := range methods {
			step.Go(func() error {
				out, err := o.w.Decode(0, at, tokens[at:end], worker.All)
				if err == nil {
					err = all[i].Add(now, out, tokens[at+1:])
				}
				if err != nil {
					return fmt.Errorf("verify: %s: %w", o.describe(), err)
				}
				v.say("", spent(end-at, g.ubatch))
				return nil
			})
		}
		if err := step.Wait(); err != nil {
			return err
		}
		now = next
	}
	for i, o := range methods {
		if err := v.store.Save(v.pointsKey(g, o.run, window), all[i]); err != nil {
			return err
		}
	}
	return nil
}

// weigh keeps what a run's cache occupies, as its worker says.
func (v *verifier) weigh(g *group, o *opened) error {
	key := v.bytesKey(g, o.run)
	if v.store.Has(key) {
		return nil
	}
	b := Bytes{Slots: o.run.bytes, Total: o.run.bytes}
	if o.config.LESS != nil {
		// Empty sequences hold nothing: a window may have been read by the run before.
		if err := o.w.Clear(); err != nil {
			return err
		}
		if _, err := o.w.Decode(0, 0, g.windows[0][:1], worker.None); err != nil {
			return err
		}
		info, err := o.w.LESS()
		if err != nil {
			return err
		}
		b = bytesOf(info)
	}
	return v.store.Save(key, b)
}

// cached returns a piece of work, from the store or done now.
func cached[T any](v *verifier, key string, work func() (T, error)) (T, error) {
	var piece T
	if v.store.Load(key, &piece) {
		return piece, nil
	}
	piece, err := work()
	if err == nil {
		err = v.store.Save(key, piece)
	}
	return piece, err
}
