// Command figures measures what the README shows: how close gopher-5m stays to the unmodified runtime under every policy
// and at which bytes, and what either runtime occupies as the context grows. It prints the tables and draws the picture.
//
//	go run ./integration/figures [-windows 6] [-o docs/figures.png]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/lesskv/lesskv/integration/heldout"
	"github.com/lesskv/lesskv/integration/reference"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	windows := flag.Int("windows", 6, "held-out windows of 2,048 tokens to measure, 1 to 6")
	out := flag.String("o", filepath.Join("docs", "figures.png"), "where the picture goes")
	flag.Parse()
	if err := run(ctx, *windows, *out); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, windows int, out string) error {
	dir, err := os.MkdirTemp("", "lesskv-figures-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	f := &figures{dir: dir}
	if f.Runner, err = heldout.New(ctx, dir, windows); err != nil {
		return err
	}
	quality, err := f.fidelity()
	if err != nil {
		return err
	}
	memory, err := f.memory()
	if err != nil {
		return err
	}
	return drawFigures(out, quality, memory)
}

type figures struct {
	*heldout.Runner
	dir string
}

// A method is one way to hold the cache, and what it is worth.
type method struct {
	policy  string
	setting string // "5 %", as a share of the window
	name    string
	bytes   int64 // slots, state and kernels of one sequence
	from    int   // first position that counts
	reference.Metrics
}

// The settings of the table: a policy, its budget and the adapter that was trained for both.
var settings = []struct {
	policy  string
	share   string
	budget  int
	adapter string
}{
	{"h2o", "5 %", 102, testdata.H2O102},
	{"h2o", "2 %", 41, testdata.H2O41},
	{"peak", "5 %", 102, testdata.Peak102},
	{"peak", "2 %", 41, testdata.Peak41},
	{"lambda", "5 %", 102, ""},
	{"lambda", "2 %", 41, ""},
}

// fidelity measures every setting sparse only, with its adapter, and sparse only at the bytes that the adapter takes.
func (f *figures) fidelity() ([]method, error) {
	full, _, err := f.Logits(worker.Unmodified, worker.Config{})
	if err != nil {
		return nil, err
	}
	fmt.Printf("gopher-5m, %d held-out windows of %d tokens, micro-batches of %d, against the unmodified runtime's f16 cache\n\n", len(f.Windows), heldout.Tokens, heldout.Ubatch)
	fmt.Println("| policy | budget | method | cache KiB | perplexity (full) | KL, nats | top-1 |\n|---|---|---|---|---|---|---|")

	var all []method
	for _, s := range settings {
		less := worker.LESS{Policy: s.policy, Budget: s.budget}
		measure := func(name string, less worker.LESS) (worker.LESSInfo, error) {
			m := method{policy: s.policy, setting: s.share, name: name, from: s.budget + heldout.Ubatch}
			got, info, err := f.Logits(worker.Patched, worker.Config{LESS: &less})
			if err != nil {
				return info, err
			}
			for i, w := range f.Windows {
				m.Add(full[i], got[i], w, m.from)
			}
			m.bytes = info.SlotBytes + info.StateBytes + info.KernelBytes
			fmt.Printf("| %s | %s | %s | %.0f | %.2f (%.2f) | %.4f | %.3f |\n", m.policy, m.setting, m.name, float64(m.bytes)/1024, m.Perplexity(), m.FullPerplexity(), m.KL(), m.Top1())
			all = append(all, m)
			return info, nil
		}
		sparse, err := measure("sparse only", less)
		if err != nil {
			return nil, err
		}
		if s.adapter == "" {
			continue
		}
		adapted := less
		if adapted.Adapter, err = testdata.PathIn(f.dir, s.adapter); err != nil {
			return nil, err
		}
		info, err := measure("LESS", adapted)
		if err != nil {
			return nil, err
		}
		slot := sparse.SlotBytes / int64(s.budget)
		for _, control := range []struct {
			name  string
			bytes int64
		}{{"Baseline+", info.StateBytes}, {"Baseline++", info.StateBytes + info.KernelBytes}} {
			less.Budget = s.budget + int(control.bytes/slot)
			if _, err := measure(control.name, less); err != nil {
				return nil, err
			}
		}
	}
	fmt.Println()
	return all, nil
}

// occupied is what a process takes with a context of so many tokens, beyond what it takes with the smallest.
type occupied struct {
	context    int
	full, less int64 // peak bytes
}

// memory measures the peak of either runtime's process after one window, for growing contexts.
func (f *figures) memory() ([]occupied, error) {
	adapter, err := testdata.PathIn(f.dir, testdata.H2O41)
	if err != nil {
		return nil, err
	}
	peak := func(tree worker.Tree, context int, less *worker.LESS) (int64, error) {
		w, err := f.Open(tree, worker.Config{Context: context, Ubatch: heldout.Ubatch, LESS: less})
		if err != nil {
			return 0, err
		}
		defer w.Close()
		if _, err := w.Feed(0, 0, f.Windows[0], worker.None); err != nil {
			return 0, err
		}
		m, err := w.Memory()
		return m.Peak, err
	}
	fmt.Println("| n_ctx | unmodified, peak MiB | LESS, peak MiB |\n|---|---|---|")
	var all []occupied
	for context := heldout.Tokens; context <= 131072; context *= 2 {
		o := occupied{context: context}
		if o.full, err = peak(worker.Unmodified, context, nil); err != nil {
			return nil, err
		}
		if o.less, err = peak(worker.Patched, context, &worker.LESS{Policy: "h2o", Budget: 41, Adapter: adapter}); err != nil {
			return nil, err
		}
		fmt.Printf("| %d | %.1f | %.1f |\n", context, mib(o.full), mib(o.less))
		all = append(all, o)
	}
	return all, nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
