//go:build cgo

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	bench.Options
	methods []string
	limit   int
	budget  budget
	matrix  string
	json    string
	plot    string
	check   bool
	targets string
	into    string
	quiet   bool
}

// resultFile is the kind of a result.
var resultFile = kind{"a result of lesskv bench", func(path string) bool {
	r, err := bench.Read(path)
	return err == nil && r.Model != "" && !r.Time.IsZero()
}}

func newBench() *cobra.Command {
	o := &benchOptions{}
	var names []string
	for _, s := range bench.Shapes() {
		names = append(names, s.Name)
	}
	cmd := &cobra.Command{
		Use:   "bench -m MODEL|SHAPE [flags]",
		Short: "Measure speed and memory beside the unmodified runtime",
		Long: `Measure how fast prompts and decoding are at growing contexts, and what process
and cache take, for LESS, its sparse policy alone, and the unmodified runtime
with and without flash attention and with quantised caches. Each method has a
process of its own; every round visits all of them, and ratios are taken round
by round.

A SHAPE is a model with random weights that is made on the first call and kept:
` + strings.Join(names, ", ") + `.
Without an adapter its kernels are random too.

Long contexts are not decoded: the unmodified cache is filled with copies of one
micro-batch, LESS's with what it holds once its slots are full. --check decodes
them for once, and compares.`,
		Example: `  lesskv bench -m smollm2-135m
  lesskv bench -m llama-3.2-1b --method f16,less -c 512,32k --profile
  lesskv bench --targets results`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1 || len(args) == 1 && o.Model != "":
				return usageError{fmt.Errorf("%q: want one model, -m MODEL", args[len(args)-1])}
			case len(args) == 1: // as it was given before there was -m
				o.Model = args[0]
			case o.Model == "" && o.targets == "":
				return usageError{fmt.Errorf("want a model: -m with its file, or one of %s", strings.Join(names, ", "))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	addModel(f, &o.Model, ", or a shape")
	f.StringVar(&o.Quant, "quant", "Q4_0", "type of a shape's matrices, by llama.cpp's names")
	f.StringVar(&o.Dir, "dir", "", "`folder` of shapes and random kernels (default: in the user's cache folder)")
	f.StringSliceVar(&o.methods, "method", nil, "ways to hold the cache: f16, f16-fa, q8_0-fa, q4_0-fa, sparse, less (default: these), sparse-unequal: heads with budgets of 0.25 and 1.75 times the mean")
	addContexts(f, &o.Contexts, "512,2k,8k,32k", "; what is measured comes behind, 0 is an empty cache")
	o.limit = -1
	f.Var((*tokens)(&o.limit), "prompt-limit", "measure prompts up to this context, 0 for none (default: all)")
	addNumber(f, &o.Repeat, "rounds", "r", 5, 1, 10000, "rounds")
	f.DurationVar(&o.Cell, "cell", 30*time.Second, "no more rounds of a prompt's cell after it took so long")
	addBudget(f, &o.budget, "; the context is the largest"+defaultBudget)
	addPolicy(f, &o.Policy, "", defaultPolicy)
	addType(f, &o.SlotType, defaultType)
	addAdapter(f, &o.Adapter, ", or none: random ones"+beside)
	addNumber(f, &o.Rank, "rank", "", 8, 1, weights.MaxSize, "rank of random kernels")
	addNumber(f, &o.Hidden, "hidden", "", 16, 1, weights.MaxSize, "hidden size of random kernels")
	addWord(f, &o.matrix, "kernels", "type of random phi and psi", "f16", "q8_0")
	addNumber(f, &o.Sequences, "sequences", "", 0, 0, 256, "so many sequences that decode together too, a token of each in a batch")
	addUbatch(f, &o.Ubatch, 512)
	addThreads(f, &o.Threads, "")
	addGPULayers(f, &o.GPULayers, ", dealt out to the methods")
	f.BoolVar(&o.OnDevice, "device", false, "LESS where the layers are, not in main memory")
	f.BoolVar(&o.Profile, "profile", false, "say where LESS's time goes, and how its attention compares with a matrix product")
	f.Var((*tokens)(&o.Growth), "growth", "feed LESS so many `tokens`, and say how much its peak grew from 2,048 on")
	addOutput(f, &o.json, "`file` for all samples, as JSON")
	f.StringVar(&o.plot, "plot", "", "`file` for a picture, .png")
	f.BoolVar(&o.check, "check", false, "compare filled caches with decoded ones, at the largest context")
	f.StringVar(&o.targets, "targets", "", "measure what the project promises; results are kept in this `folder`, and what is there is not measured again")
	f.StringVar(&o.into, "into", "", "put the table of --targets between the marks of this `file`")
	addQuiet(f, &o.quiet)
	f.SortFlags = false
	aliases(f, map[string]string{"methods": "method", "contexts": "context"})
	return cmd
}

func (o *benchOptions) run(cmd *cobra.Command) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	if err := o.parse(); err != nil {
		return usageError{err}
	}
	if err := o.outputs(); err != nil {
		return err
	}
	o.RPC = rpcServers(cmd.ErrOrStderr(), "bench", o.GPULayers)
	bar := &benchBar{w: cmd.ErrOrStderr(), quiet: o.quiet}
	o.Progress = bar.show
	out := cmd.OutOrStdout()
	err := func() error {
		if o.targets != "" {
			return bench.Targets(ctx, out, o.targets, o.Model, o.into, o.Options)
		}
		if o.check {
			checks, err := bench.CompareFilled(ctx, o.Options)
			bar.end()
			for _, c := range checks {
				fmt.Fprintln(out, c)
			}
			return err
		}
		r, err := bench.Run(ctx, o.Options)
		bar.end()
		if err != nil {
			return err
		}
		err = r.Table(out) // first: what follows may fail
		if o.json != "" {
			err = errors.Join(err, r.Write(o.json))
		}
		if o.plot != "" {
			err = errors.Join(err, bench.Plot(o.plot, r))
		}
		return err
	}()
	bar.end()
	if err != nil && ctx.Err() != nil {
		return errInterrupted
	}
	return err
}

// parse checks the flags that are more than a number.
func (o *benchOptions) parse() (err error) {
	if o.Options.Methods, err = bench.FindMethods(o.methods); err != nil {
		return err
	}
	switch o.limit {
	case -1: // all
	case 0:
		o.PromptLimit = -1
	default:
		o.PromptLimit = o.limit
	}
	if o.Cell <= 0 {
		return fmt.Errorf("--cell %v: want a time such as 30s", o.Cell)
	}
	o.Options.Budget = o.budget.Budget
	named := o.Adapter
	o.Adapter = adapterOf(named, o.Model)
	if a, err := weights.Read(o.Adapter); named == "" && err == nil && a.Bytes() == 0 { // budgets by head alone: no phi and psi to measure
		o.Adapter = ""
	}
	if o.KernelType, _, err = worker.GGUFTypes(o.matrix); err != nil {
		return err
	}
	if o.Dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("%w: say --dir", err)
		}
		o.Dir = filepath.Join(cache, "lesskv", "bench")
	}
	return nil
}

// outputs checks what is to be written.
func (o *benchOptions) outputs() error {
	var outputs []output
	if o.targets != "" {
		if err := bench.CheckTargets(o.targets, o.into); err != nil {
			return err
		}
		if o.into != "" {
			picture := strings.TrimSuffix(o.targets, "/") + ".png"
			outputs = append(outputs, output{"--targets", picture, pictureFile(picture)})
		}
		return errors.Join(checkFolder("--targets", o.targets), checkOutputs(nil, outputs...))
	}
	if o.json != "" {
		outputs = append(outputs, output{"--output", o.json, resultFile})
	}
	if o.plot != "" {
		if filepath.Ext(o.plot) != ".png" {
			return usageError{fmt.Errorf("--plot %s: want a name that ends in .png", o.plot)}
		}
		outputs = append(outputs, output{"--plot", o.plot, pictureFile(o.plot)})
	}
	return checkOutputs([]string{o.Model, o.Adapter}, outputs...)
}

// benchBar shows how far a measurement is: a bar with the time left on a terminal, a line for each round elsewhere.
type benchBar struct {
	w     io.Writer
	quiet bool
	bar   *progressbar.ProgressBar
	total float64
	last  string
}

func (b *benchBar) show(done, total float64, what string) {
	if b.quiet || what == "" {
		return
	}
	if !onTerminal(b.w) {
		group, _, _ := strings.Cut(what, ":")
		if group != b.last {
			b.last = group
			fmt.Fprintln(b.w, group)
		}
		return
	}
	if b.bar == nil || total != b.total {
		b.end()
		b.total = total
		b.bar = progressbar.NewOptions(1000, progressbar.OptionSetWriter(b.w), progressbar.OptionSetPredictTime(true),
			progressbar.OptionSetWidth(24), progressbar.OptionClearOnFinish())
	}
	b.bar.Describe(fmt.Sprintf("%-32s", what))
	b.bar.Set(int(1000 * done / max(total, 1)))
}

func (b *benchBar) end() {
	if b.bar != nil {
		b.bar.Clear()
		b.bar = nil
	}
}
