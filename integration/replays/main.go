// Command replays compares the two ways in which lesskv tune tells the heads of a layer apart, on gopher-5m: it measures what limiting each
// layer and each head costs, and prints how replays rank them; then it tunes in both ways and measures what they find on held-out windows.
// It prints the tables of docs/tuning.md and draws their picture.
//
//	go run ./integration/replays [-b 363KiB] [-types q8_0] [-work DIR] [-o docs/tuning-replays.png]
//
// The work folder keeps what is finished: the same command goes on where it was interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat"

	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/heldout"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

func main() {
	c := &comparison{}
	budget := flag.String("b", "363KiB", "budget, as lesskv tune takes it")
	types := flag.String("types", "q8_0", "types of the slots")
	windows := flag.Int("windows", 2, "windows of 2,048 tokens to tune on")
	flag.StringVar(&c.work, "work", usage.WorkFolder("replays"), "folder for finished work")
	threads := flag.Int("t", limits.CPUs(), "threads")
	out := flag.String("o", filepath.Join("docs", "tuning-replays.png"), "where the picture goes")
	usage.Main("replays", func(ctx context.Context) error {
		c.ctx = ctx
		return c.run(*budget, *types, *windows, *threads, *out)
	})
}

type comparison struct {
	ctx  context.Context
	work string
}

func (c *comparison) run(budget, types string, windows, threads int, out string) error {
	o, held, err := c.options(budget, types, windows)
	if err != nil {
		return err
	}
	o.Threads = threads
	stage := tune.Stage("")
	o.Progress = func(e tune.Event) {
		if e.Stage != stage {
			stage = e.Stage
			fmt.Fprintln(os.Stderr, stage)
		}
	}

	results := map[tune.Method]*tune.Result{}
	for _, by := range []tune.Method{tune.ReplayHeads, tune.MeasureHeads} {
		o.Heads = by
		began := time.Now()
		if results[by], err = tune.Run(c.ctx, o); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: %v\n", by, time.Since(began).Round(time.Second))
	}
	r := results[tune.ReplayHeads]
	all, err := c.limits(o, r)
	if err != nil {
		return err
	}
	fmt.Printf("gopher-5m, policy %s, %d slots a head (%s, %s): rank correlation (Spearman) with the KL that was measured\n\n", o.Policy, r.Budget, budget, types)
	fmt.Println("| limited | to slots | KL, least to most | by replays, as tune predicts it | squared error of the layer's output | attention lost |\n|---|---|---|---|---|---|")
	for _, what := range []string{"one layer", "one head"} {
		for _, n := range append(slices.Clone(shown(r)), 0) {
			some := slices.DeleteFunc(slices.Clone(all), func(l limit) bool { return (l.head < 0) != (what == "one layer") || n != 0 && l.slots != n })
			low, high := math.Inf(1), 0.
			for _, l := range some {
				low, high = min(low, l.kl), max(high, l.kl)
			}
			at := fmt.Sprint(n)
			if n == 0 {
				at = "all of these"
			}
			fmt.Printf("| %s | %s | %.5f to %.4f | %.3f | %.3f | %.3f |\n", what, at, low, high, rank(some, func(l limit) float64 { return l.predicted }),
				rank(some, func(l limit) float64 { return l.error }), rank(some, func(l limit) float64 { return l.mass }))
		}
	}
	low, high := math.Inf(1), 0.
	for _, l := range all {
		if l.head < 0 {
			low, high = min(low, l.predicted/l.error), max(high, l.predicted/l.error)
		}
	}
	fmt.Printf("\nA unit of error costs %.2g nats in one layer and %.2g in another.\n", low, high)
	if err := c.ends(o, held, results); err != nil {
		return err
	}
	if err := drawLimits(out, shown(r), all); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "drawn:", out)
	return nil
}

// options are those of tuning on the training text, and the held-out windows.
func (c *comparison) options(budget, types string, windows int) (o tune.Options, held [][]int32, err error) {
	if err := os.MkdirAll(c.work, 0o755); err != nil {
		return o, nil, err
	}
	model := filepath.Join(c.work, "model")
	h, err := heldout.New(c.ctx, model, heldout.Windows)
	if err != nil {
		return o, nil, err
	}
	b, err := memory.ParseBudget(budget)
	if err != nil {
		return o, nil, usage.Errorf("-b %s: %w", budget, err)
	}
	o = tune.Options{Model: filepath.Join(model, testdata.Model), Policy: "peak", Ubatch: heldout.Ubatch, Budget: b, Work: filepath.Join(c.work, "tune")}
	if o.TypeK, o.TypeV, err = worker.SlotTypes(types); err != nil {
		return o, nil, usage.Errorf("-types: %w", err)
	}
	if o.Worker, err = worker.Path(worker.Patched); err != nil {
		return o, nil, err
	}
	r, err := activations.Open(c.ctx, o.Worker, o.Model, heldout.Tokens, 1)
	if err != nil {
		return o, nil, err
	}
	defer r.Close()
	text, err := os.ReadFile(filepath.Join("integration", "testdata", testdata.TrainSample))
	if err != nil {
		return o, nil, err
	}
	tokens, err := r.Tokenize(string(text))
	if err != nil {
		return o, nil, err
	}
	w, err := train.CutInto(tokens, heldout.Tokens, windows, 1, r.Start())
	if err != nil {
		return o, nil, err
	}
	o.Windows, o.Valid = w.Train, w.Valid
	return o, h.Windows, nil
}

// A limit is a head or, with head -1, a layer that alone is limited: what that costs, and what replays say of it.
type limit struct {
	layer, head, slots     int
	kl                     float64 // measured
	predicted, error, mass float64
}

// shown are the levels that are compared: a quarter of the budget, and the budget.
func shown(r *tune.Result) []int {
	i := slices.Index(r.Levels, r.Budget)
	return []int{r.Levels[i-2], r.Levels[i]}
}

// limits measures every layer and every head at two levels.
func (c *comparison) limits(o tune.Options, r *tune.Result) ([]limit, error) {
	levels, losses, err := tune.Replay(c.ctx, o)
	if err != nil {
		return nil, err
	}
	var all []limit
	var caches [][]int
	add := func(heads []int, head int) {
		for _, n := range shown(r) {
			x := limit{layer: r.Heads[heads[0]].Layer, head: head, slots: n}
			slots := slices.Repeat([]int{len(o.Windows[0])}, len(r.Heads))
			l := slices.Index(levels, n)
			for _, j := range heads {
				slots[j] = n
				x.predicted += r.Heads[j].Distance[l]
				x.error += losses[j].Error[l]
				x.mass += losses[j].Mass[l] / float64(len(heads))
			}
			all, caches = append(all, x), append(caches, slots)
		}
	}
	for j := 0; j < len(r.Heads); {
		var layer []int
		for from := j; j < len(r.Heads) && r.Heads[j].Layer == r.Heads[from].Layer; j++ {
			layer = append(layer, j)
			add([]int{j}, r.Heads[j].Head)
		}
		add(layer, -1)
	}
	d, err := tune.Measure(c.ctx, o, append(caches, slices.Repeat([]int{len(o.Windows[0])}, len(r.Heads))))
	if err != nil {
		return nil, err
	}
	full := d[len(d)-1] // what the slots' types alone cost
	for i := range all {
		all[i].kl = d[i] - full
	}
	return all, nil
}

// rank is Spearman's correlation of a number with the KL.
func rank(all []limit, of func(limit) float64) float64 {
	var x, y []float64
	for _, l := range all {
		x, y = append(x, of(l)), append(y, l.kl)
	}
	return stat.Correlation(ranks(x), ranks(y), nil)
}

// ranks returns each number's place in their order; equal ones share the mean of theirs.
func ranks(x []float64) []float64 {
	all := make([]float64, len(x))
	for i, a := range x {
		for _, b := range x {
			switch {
			case b < a:
				all[i]++
			case b == a:
				all[i] += .5
			}
		}
	}
	return all
}

// ends measures what the two ways find, on windows that neither has seen.
func (c *comparison) ends(o tune.Options, held [][]int32, results map[tune.Method]*tune.Result) error {
	measured, replayed := results[tune.MeasureHeads], results[tune.ReplayHeads]
	slots := func(r *tune.Result) (all []int) {
		for _, h := range r.Heads {
			all = append(all, h.Slots)
		}
		return all
	}
	equal := slices.Repeat([]int{measured.Budget}, len(measured.Heads))
	o.Windows = held
	d, err := tune.Measure(c.ctx, o, [][]int{equal, slots(measured), slots(replayed)})
	if err != nil {
		return err
	}
	fmt.Println("\n| heads | KL on what they were tuned on | on the validation window | on the held-out windows | slots |\n|---|---|---|---|---|")
	fmt.Printf("| equal budgets | %.4f | %.4f | %.4f | %d each |\n", measured.Equal, measured.EqualValid, d[0], measured.Budget)
	fmt.Printf("| measured | %.4f | %.4f | %.4f | %v |\n", measured.Tuned, measured.TunedValid, d[1], slots(measured))
	fmt.Printf("| replayed | %.4f | %.4f | %.4f | %v |\n", replayed.Tuned, replayed.TunedValid, d[2], slots(replayed))
	return nil
}
