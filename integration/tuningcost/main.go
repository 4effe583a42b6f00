// Command tuningcost measures what lesskv tune takes for a model of a billion parameters: random weights in the shape of Llama-3.2-1B. It
// makes one pass over a window, records and replays one, and works out a whole tuning from these.
//
//	go run ./integration/tuningcost [-shape llama-3.2-1b] [-type Q4_0] [-t 2]
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights"
)

func main() {
	c := &cost{}
	flag.StringVar(&c.shape, "shape", "llama-3.2-1b", "shape of the model, as lesskv bench knows them")
	flag.StringVar(&c.kind, "type", "Q4_0", "type of its weights")
	flag.IntVar(&c.context, "c", 2048, "tokens of a window")
	flag.IntVar(&c.budget, "b", 1024, "slots a head: the default in windows of 2,048 tokens")
	flag.IntVar(&c.windows, "windows", 2, "windows of the whole tuning")
	flag.IntVar(&c.rounds, "rounds", 1, "rounds of the whole tuning")
	flag.IntVar(&c.threads, "t", limits.CPUs(), "threads")
	flag.StringVar(&c.work, "work", usage.WorkFolder("tuningcost"), "folder for the model, which stays")
	usage.Main("tuningcost", func(ctx context.Context) error {
		c.ctx = ctx
		return c.run()
	})
}

type cost struct {
	ctx             context.Context
	shape, kind     string
	context, budget int
	windows, rounds int
	threads         int
	work            string
}

// beside is how many caches a pass of tune measures beside the full one.
const beside = 4

func (c *cost) run() error {
	shape, err := bench.FindShape(c.shape)
	if err != nil {
		return err
	}
	path, err := worker.Path(worker.Patched)
	if err != nil {
		return err
	}
	file, err := shape.Build(c.ctx, c.work, c.kind, path, c.threads)
	if err != nil {
		return err
	}
	model, err := weights.ReadModel(file)
	if err != nil {
		return err
	}
	layers := 0
	for i := range model.Layers {
		if model.HasBudget(i) {
			layers++
		}
	}
	window := [][]int32{c.tokens(model.Vocab)}
	o := tune.Options{Model: file, Worker: path, Windows: window, Valid: window, Budget: worker.Budget{Tokens: c.budget}, Threads: c.threads}
	if o.TypeK, o.TypeV, err = worker.SlotTypes(worker.DefaultSlots(model, nil)); err != nil {
		return err
	}

	began := time.Now()
	levels, losses, err := tune.Replay(c.ctx, o)
	if err != nil {
		return err
	}
	replay := time.Since(began).Seconds()
	caches := make([][]int, beside)
	for i := range caches {
		caches[i] = slices.Repeat([]int{c.budget - i}, len(losses))
	}
	began = time.Now()
	if _, err := tune.Measure(c.ctx, o, caches); err != nil {
		return err
	}
	pass := time.Since(began).Seconds()

	// of n measurements, on one window
	passes := func(n int) float64 {
		groups := (n + beside - 1) / beside
		return pass * float64(groups+n) / (1 + beside)
	}
	w := float64(c.windows)
	byLayer := w * passes(layers+1)
	round := w * (passes(layers) + passes(2))
	rest := w*passes(2) + passes(2) // the allocations before the rounds, and those that are validated
	total := w*replay + byLayer + float64(c.rounds)*round + rest
	fmt.Printf("%s in %s, %d heads in %d layers, %d slots of %s a head, windows of %d tokens, %d threads\n", c.shape, c.kind, len(losses), layers, c.budget, o.TypeK, c.context, c.threads)
	fmt.Printf("measured, of one window, opening the model included:\n")
	fmt.Printf("  recording and replays, %d levels  %7.1f s\n", len(levels)+1, replay) // and the context
	fmt.Printf("  a pass of %d caches              %7.1f s\n", 1+beside, pass)
	fmt.Printf("worked out for %d windows and %d rounds at most:\n", c.windows, c.rounds)
	fmt.Printf("  replays                          %7.1f min\n", w*replay/60)
	fmt.Printf("  layers                           %7.1f min\n", byLayer/60)
	fmt.Printf("  rounds                           %7.1f min\n", float64(c.rounds)*round/60)
	fmt.Printf("  allocations and validation       %7.1f min\n", rest/60)
	fmt.Printf("  in all                           %7.1f min\n", total/60)
	return nil
}

// tokens is a window of random ones: speed does not depend on them.
func (c *cost) tokens(vocab int) []int32 {
	random := rand.New(rand.NewPCG(1, 2))
	tokens := make([]int32, c.context)
	for i := range tokens {
		tokens[i] = int32(random.IntN(vocab))
	}
	return tokens
}
