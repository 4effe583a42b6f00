//go:build cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/patches/usage"
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
	page    bool
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
		Long: `Measure how fast prompts and decoding are as the context grows, and how much
memory process and cache take, for LESS, its sparse policy alone, and the
unmodified runtime with and without flash attention and with quantised caches.
Each method has a process of its own. Every round visits all of them, and ratios
are taken within a round.

A SHAPE is a model with random weights that is made on the first call and kept:
` + strings.Join(names, ", ") + `.
Without an adapter its phi and psi are random too.

Long contexts are not decoded token by token. The unmodified cache is filled
with copies of one micro-batch, LESS's with what it holds once its slots are
full. --check decodes them once, and compares. It only reports: targets that are
missed and differences leave the status 0.`,
		Example: `  lesskv bench -m smollm2-135m
  lesskv bench -m llama-3.2-1b --method f16,less -c 512,32k --profile
  lesskv bench --targets results`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := o.ofTargets(cmd.Flags()); err != nil {
				return usageError{err}
			}
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
	f.StringVar(&o.Dir, "dir", "", "`folder` of shapes and random adapters (default: in the user's cache folder)")
	f.StringSliceVar(&o.methods, "method", nil, "caches: f16, f16-fa, q8_0-fa, q4_0-fa, sparse, less (default: these), sparse-unequal (heads with budgets of 0.25 and 1.75 times the mean)")
	addContexts(f, &o.Contexts, "512,2k,8k,32k", "; 0 is an empty cache")
	o.limit = -1
	f.Var((*tokens)(&o.limit), "prompt-limit", "measure prompts up to this context, 0 for none (default: all)")
	addNumber(f, &o.Repeat, "rounds", "r", 5, 1, 10000, "rounds")
	f.DurationVar(&o.Cell, "cell", 30*time.Second, "no more rounds for a prompt at one context after it took this long")
	addBudget(f, &o.budget, "; the context is the largest"+defaultBudget)
	addPolicy(f, &o.Policy, "", defaultPolicy)
	addType(f, &o.SlotType, defaultType)
	addAdapter(f, &o.Adapter, ", or none: random ones"+beside)
	addNumber(f, &o.Rank, "rank", "", 8, 1, weights.MaxSize, "rank of random phi and psi")
	addNumber(f, &o.Hidden, "hidden", "", 16, 1, weights.MaxSize, "hidden size of random phi and psi")
	addWord(f, &o.matrix, "phi-type", "type of random phi and psi", "f16", "q8_0")
	addNumber(f, &o.Sequences, "sequences", "", 0, 0, 256, "so many sequences that decode together too, a token of each in a batch")
	addUbatch(f, &o.Ubatch, 512, "")
	addThreads(f, &o.Threads, "")
	addGPULayers(f, &o.GPULayers, ", divided among the methods")
	f.BoolVar(&o.OnDevice, "device", false, "the cache and its attention where the layers are, not in main memory")
	f.BoolVar(&o.Profile, "profile", false, "say where LESS's time goes, and how its attention compares with a matrix product")
	f.BoolVar(&o.Roofline, "roofline", false, "say what share of the memory's bandwidth decoding reaches")
	f.Var((*tokens)(&o.Growth), "growth", "read so many `tokens` with LESS, and say how much its peak memory grew from 2,048 on")
	addOutput(f, &o.json, "`file` for all samples, as JSON")
	f.StringVar(&o.OtherBuild, "other-build", "", "measure every method on the runtime in this `folder` too (patches -build)")
	f.StringVar(&o.plot, "plot", "", "`file` for a picture, .png or .svg")
	f.BoolVar(&o.check, "check", false, "compare a filled cache with a decoded one, at the largest context")
	f.StringVar(&o.targets, "targets", "", "measure the project's targets; results are kept in this `folder`, and what is there is not measured again")
	f.StringVar(&o.into, "into", "", "write the table of --targets between the marks in this `file`")
	f.BoolVar(&o.page, "page", false, "measure nothing: show what the folder of --targets has")
	addQuiet(f, &o.quiet)
	f.SortFlags = false
	addEarlierNames(f, map[string]string{"methods": "method", "contexts": "context", "kernels": "phi-type"})
	return cmd
}

func (o *benchOptions) run(cmd *cobra.Command) error {
	ctx, stop := usage.Interruptible(cmd.Context())
	defer stop()
	if err := o.parse(); err != nil {
		return usageError{err}
	}
	if err := o.outputs(); err != nil {
		return err
	}
	o.RPC = rpcServers(cmd.ErrOrStderr(), "bench", o.GPULayers)
	meter := progress.New(cmd.ErrOrStderr(), o.quiet)
	o.Progress = func(done, total float64, what string) {
		if what != "" {
			meter.Show(progress.Status{Text: what, Done: int64(1000 * done / max(total, 1)), Total: 1000})
		}
	}
	out := cmd.OutOrStdout()
	err := func() error {
		if o.targets != "" {
			return o.measureTargets(ctx, out)
		}
		if o.check {
			checks, err := bench.CompareFilled(ctx, o.Options)
			meter.End()
			for _, c := range checks {
				_, printed := fmt.Fprintln(out, c)
				err = errors.Join(err, printed)
			}
			return err
		}
		r, err := bench.Run(ctx, o.Options)
		meter.End()
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
	meter.End()
	if err != nil && ctx.Err() != nil {
		return errInterrupted
	}
	return err
}

// ofTargets refuses the flags that say nothing without --targets, and those that say nothing with it: its groups have options of their own.
func (o *benchOptions) ofTargets(f *pflag.FlagSet) (err error) {
	f.Visit(func(flag *pflag.Flag) {
		switch flag.Name {
		case "into", "page":
			if o.targets == "" {
				err = fmt.Errorf("--%s: want the folder of --targets", flag.Name)
			}
		case "targets", "model", "dir", "rounds", "threads", "other-build", "quiet":
		default:
			if o.targets != "" {
				err = fmt.Errorf("--%s: the groups of --targets have their own", flag.Name)
			}
		}
	})
	return err
}

// measureTargets measures what is not there yet, if anything may be measured, and shows all that is.
func (o *benchOptions) measureTargets(ctx context.Context, w io.Writer) error {
	if !o.page {
		if err := bench.MeasureTargets(ctx, o.targets, o.Model, o.Options); err != nil {
			return err
		}
	}
	if o.into != "" {
		return bench.WriteTargets(o.targets, o.into)
	}
	text, err := bench.TargetsPage(o.targets)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
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
			for _, picture := range bench.TargetsPictures(o.targets) {
				outputs = append(outputs, output{"--targets", picture, pictureFile(picture)})
			}
		}
		return errors.Join(checkFolder("--targets", o.targets), checkOutputs(nil, outputs...))
	}
	if o.json != "" {
		outputs = append(outputs, output{"--output", o.json, resultFile})
	}
	if o.plot != "" {
		picture, err := pictureOutput("--plot", o.plot)
		if err != nil {
			return err
		}
		outputs = append(outputs, picture)
	}
	return checkOutputs([]string{o.Model, o.Adapter}, outputs...)
}
