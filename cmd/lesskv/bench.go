//go:build cgo

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	bench.Options
	methods  []string
	contexts []string
	limit    string
	growth   string
	budget   string
	kernels  string
	json     string
	plot     string
	check    bool
	targets  string
	into     string
	quiet    bool
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
		Use:   "bench [flags] MODEL.gguf|SHAPE",
		Short: "Measure speed and memory beside the unmodified runtime",
		Long: `Measure how fast prompts and decoding are at growing contexts, and what process and
cache take, for LESS, its sparse policy alone, and the unmodified runtime with and
without flash attention and with quantised caches. Each method has a process of its
own; every round visits all of them, and ratios are taken round by round.

A SHAPE is a model with random weights that is made on the first call and kept:
` + strings.Join(names, ", ") + `. Without an adapter its kernels are random too.

Long contexts are not decoded: the unmodified cache is filled with copies of one
micro-batch, LESS's with what it holds once its slots are full. --check decodes
them for once, and compares.`,
		Example: `  lesskv bench smollm2-135m
  lesskv bench -m f16,less -c 512,32k --profile llama-3.2-1b
  lesskv bench --targets results`,
		Args: func(_ *cobra.Command, args []string) error {
			if o.targets == "" && len(args) != 1 || len(args) > 1 {
				return usageError{fmt.Errorf("%d arguments: want one model's file, or one of %s", len(args), strings.Join(names, ", "))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.Quant, "quant", "Q4_0", "type of a shape's matrices, by llama.cpp's names")
	f.StringVar(&o.Dir, "dir", "", "`folder` of shapes and random kernels (default: in the user's cache folder)")
	f.StringSliceVarP(&o.methods, "methods", "m", nil, "f16, f16-fa, q8_0-fa, q4_0-fa, sparse, less (default: these), sparse-unequal: heads with budgets of 0.25 and 1.75 times the mean")
	f.StringSliceVarP(&o.contexts, "contexts", "c", []string{"512", "2k", "8k", "32k"}, "tokens before what is measured, up to 128k; 0 is an empty cache")
	f.StringVar(&o.limit, "prompt-limit", "", "measure prompts up to this context, 0 for none (default: all)")
	addNumber(f, &o.Repeat, "rounds", "r", 5, 1, 10000, "rounds")
	f.DurationVar(&o.Cell, "cell", 30*time.Second, "no more rounds of a prompt's cell after it took so long")
	f.StringVar(&o.budget, "budget", "5%", "slots per KV head as a share of the largest context")
	f.StringVar(&o.Policy, "policy", "h2o", "sparse policy, which says what stays: "+kernels.PolicyHelp())
	f.StringVar(&o.SlotType, "type", "f16", "type of the slots: f16, f32, q8_0, q4_0, or one for keys and one for values, as q4_0,q8_0")
	f.StringVar(&o.Adapter, "adapter", "", "`file` of the kernels (default: random ones)")
	addNumber(f, &o.Rank, "rank", "", 8, 1, weights.MaxSize, "rank of random kernels")
	addNumber(f, &o.Hidden, "hidden", "", 16, 1, weights.MaxSize, "hidden size of random kernels")
	f.StringVar(&o.kernels, "kernels", "f16", "type of random kernels: f16, q8_0")
	addNumber(f, &o.Ubatch, "ubatch", "", 512, 1, most, "tokens of a micro-batch")
	addNumber(f, &o.Threads, "threads", "t", limits.CPUs(), 1, maxThreads, "threads")
	addNumber(f, &o.GPULayers, "gpu-layers", "", 0, 0, most, gpuLayersHelp+", dealt out to the methods")
	f.BoolVar(&o.Profile, "profile", false, "say where LESS's time goes, and how its attention compares with a matrix product")
	f.StringVar(&o.growth, "growth", "", "feed LESS so many `tokens`, and say how much its peak grew from 2,048 on")
	f.StringVarP(&o.json, "output", "o", "", "`file` for all samples, as JSON")
	f.StringVar(&o.plot, "plot", "", "`file` for a picture, .png")
	f.BoolVar(&o.check, "check", false, "compare filled caches with decoded ones, at the largest context")
	f.StringVar(&o.targets, "targets", "", "measure what the project promises; results are kept in this `folder`, and what is there is not measured again")
	f.StringVar(&o.into, "into", "", "put the table of --targets between the marks of this `file`")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
	f.SortFlags = false
	return cmd
}

func (o *benchOptions) run(cmd *cobra.Command, args []string) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	if err := o.parse(); err != nil {
		return usageError{err}
	}
	if err := o.outputs(args); err != nil {
		return err
	}
	o.RPC = rpcServers(cmd.ErrOrStderr(), "bench", o.GPULayers)
	bar := &benchBar{w: cmd.ErrOrStderr(), quiet: o.quiet}
	o.Progress = bar.show
	out := cmd.OutOrStdout()
	err := func() error {
		if o.targets != "" {
			only := ""
			if len(args) == 1 {
				only = args[0]
			}
			return bench.Targets(ctx, out, o.targets, only, o.into, o.Options)
		}
		o.Model = args[0]
		if o.check {
			checks, err := bench.Verify(ctx, o.Options)
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
	o.Contexts = []int{}
	for _, s := range o.contexts {
		n, err := tokens(s)
		if err != nil {
			return fmt.Errorf("--contexts %s: %w", s, err)
		}
		o.Contexts = append(o.Contexts, n)
	}
	if o.limit != "" {
		if o.PromptLimit, err = tokens(o.limit); err != nil {
			return fmt.Errorf("--prompt-limit %s: %w", o.limit, err)
		}
		if o.PromptLimit == 0 {
			o.PromptLimit = -1
		}
	}
	if o.growth != "" {
		if o.Growth, err = tokens(o.growth); err != nil {
			return fmt.Errorf("--growth %s: %w", o.growth, err)
		}
	}
	if o.Cell <= 0 {
		return fmt.Errorf("--cell %v: want a time such as 30s", o.Cell)
	}
	share, ok := strings.CutSuffix(o.budget, "%")
	if o.Budget, err = strconv.ParseFloat(share, 64); err != nil || !ok || !(o.Budget > 0 && o.Budget <= 100) {
		return fmt.Errorf("--budget %s: want a share such as 5%%", o.budget)
	}
	o.Budget /= 100
	types := map[string]gguf.Type{"f16": gguf.F16, "q8_0": gguf.Q8_0}
	if o.KernelType, ok = types[o.kernels]; !ok {
		return fmt.Errorf("--kernels %s: want f16 or q8_0", o.kernels)
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
func (o *benchOptions) outputs(args []string) error {
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
	return checkOutputs(append(args, o.Adapter), outputs...)
}

// tokens reads 512 or 32k.
func tokens(s string) (int, error) {
	digits, k := strings.CutSuffix(strings.ToLower(s), "k")
	n, err := strconv.ParseInt(digits, 10, 32)
	if k {
		n *= 1024
	}
	if err != nil || n < 0 || n > 1<<20 {
		return 0, errors.New("want a number of tokens such as 512 or 32k, 1024k at most")
	}
	return int(n), nil
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
