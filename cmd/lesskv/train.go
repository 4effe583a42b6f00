//go:build cgo

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

// trainOptions are the flags of train.
type trainOptions struct {
	train.Options
	model   string
	texts   []string
	budgets []budget
	context int
	limit   int
	layers  string
	matrix  string
	spread  string
	plot    string
	quiet   bool
}

func newTrain() *cobra.Command {
	o := &trainOptions{}
	cmd := &cobra.Command{
		Use:   "train -m MODEL -d TEXT [flags]",
		Short: "Train an adapter for a model on this machine",
		Long: `Train phi and psi, the functions of LESS, for a model, and write them as an
adapter that run and plugins take.

The text is files, folders of files, or - for standard input; a file whose name
ends in .tokens is int32 token numbers, little-endian. The last tenth of it is
for validation and never trained on. The adapter's errors are printed relative
to those of the sparse policy alone.

Work is kept in a folder beside the output (OUTPUT.work) until the adapter is
written. After Ctrl-C, a full disk or a crash the same command goes on and
repeats at most the layers that were being fitted.

Layers are independent: with --layers 0-7 on one machine and 8-15 on another,
lesskv merge combines what they write.`,
		Example: `  lesskv train -m model.gguf -d texts/
  lesskv train -m model.gguf -d texts/ -o h2o.gguf --policy h2o -b 5%
  lesskv train -m model.gguf -d texts/ --rank 4,0=8
  lesskv train -m model.gguf -d a.txt --layers 0-7 -o part1.gguf`,
		Args: textArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	addModel(f, &o.model, "")
	addTexts(f, &o.texts)
	addOutput(f, &o.Output, "`file` to write"+beside)
	addAdapter(f, &o.spread, ", or none: budgets by head, as lesskv tune finds them (default: equal ones)")
	addPolicy(f, &o.Policy, "peak", "")
	addBudgets(f, &o.budgets, "", " make one adapter for all"+windowContext+" (default: the budget of -w, without it what run would take, but half a window at most)")
	addNumber(f, &o.Heavy, "heavy", "", 0, 0, most, "heavy slots of the first budget, 0 for the policy's own share")
	addNumber(f, &o.Pinned, "pinned", "", 1, 0, most, "first positions that are never evicted, 0 for none")
	addUbatch(f, &o.Ubatch, 32, smallUbatch)
	addSizes(f, &o.Rank, &o.Ranks, "rank", train.DefaultRank, "rank of the low-rank state")
	addSizes(f, &o.Hidden, &o.Hiddens, "hidden", train.DefaultHidden, "hidden size of phi and psi, which take memory too")
	addContext(f, &o.context, 2048, ": that of a window, 0 for the model's")
	addTokens(f, &o.limit, "text-tokens", "", 200_000, 0, "how many tokens of the text to use, spread over it, 0 for all")
	addNumber(f, &o.Steps, "steps", "", train.DefaultSteps, 1, most, "steps of the optimiser, one window each")
	addNumber(f, &o.Rate, "rate", "", train.DefaultRate, 1e-9, train.MaxRate, "largest rate of the optimiser")
	f.StringVar(&o.layers, "layers", "", "`layers` to train, counted from 0, as 0-7 or 0,5-7 (default: all)")
	addThreads(f, &o.Threads, "")
	addNumber(f, &o.Seed, "seed", "s", 1, 0, math.MaxUint64, "seed of the starting point: the same options give the same file")
	addWord(f, &o.matrix, "phi-type", "type of phi and psi", "f16", "f32", "q8_0")
	f.Var((*byteSize)(&o.Disk), "disk", "`bytes` that recordings may take at a time, as 20G (default: nine tenths of what is free)")
	f.StringVar(&o.Recordings, "recordings", "", "`folder` in which recordings stay for other runs with the same model, text and context")
	f.StringVar(&o.plot, "plot", "", "`file` for a picture of the layers' validation errors, .png or .svg; none for none (default: OUTPUT with .png)")
	addQuiet(f, &o.quiet)
	f.SortFlags = false
	addEarlierNames(f, map[string]string{"allocation": "adapter", "tokens": "text-tokens", "type": "phi-type", "kernels": "phi-type"})
	return cmd
}

func (o *trainOptions) run(cmd *cobra.Command) (err error) {
	if o.model == "" || len(o.texts) == 0 {
		return usageError{errors.New("want a model and a text: -m MODEL.gguf -d TEXT")}
	}
	if o.Model, err = weights.ReadModel(o.model); err != nil {
		return err
	}
	if err := o.parse(); err != nil {
		return usageError{err}
	}
	found := 0 // the budget that an allocation is for
	if o.spread != "" {
		a, err := readAdapter(o.spread, o.Model)
		if err != nil {
			return err
		}
		found = a.Trained.Heavy + a.Trained.Recent
		switch policy := a.Trained.Policy; {
		case !cmd.Flags().Changed("policy"):
			o.Policy = policy
		case policy != o.Policy:
			return usageError{fmt.Errorf("--policy %s: the allocation in %s was found for %s: want that", o.Policy, o.spread, policy)}
		}
		o.SlotTypes = a.SlotTypes
		if o.Allocation = a.Budget; a.Budget == nil {
			return usageError{fmt.Errorf("--adapter %s: that one has no budgets by head: lesskv tune makes one", o.spread)}
		}
	}
	if free, ok := limits.Memory(); ok {
		o.Memory = free
	}
	if err := o.slots(found); err != nil {
		return err
	}
	if err := o.Check(o.context); err != nil {
		return err
	}
	texts, err := listTexts(o.texts, o.Output+".work", o.Recordings)
	if err != nil {
		return err
	}
	if err := o.outputs(texts); err != nil {
		return err
	}
	if o.Source, err = pieces.HashFile(o.model); err != nil {
		return err
	}
	ctx, stop := usage.Interruptible(cmd.Context())
	defer stop()
	path, err := worker.Path(worker.Patched)
	if err != nil {
		return err
	}
	r, err := activations.Open(ctx, path, o.model, o.context, o.Threads)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := readTexts(r, cmd.InOrStdin(), texts)
	if err != nil {
		return err
	}
	windows, err := train.Cut(text, o.context, o.limit, r.Start())
	if err != nil {
		return err
	}
	out := cmd.ErrOrStderr()
	fmt.Fprintf(out, "%d tokens of text; %d windows of %d tokens for training, %d for validation\n", len(text), len(windows.Train), o.context, len(windows.Valid))
	p := &trainProgress{meter: progress.New(out, o.quiet), began: time.Now(), done: map[int]int{}}
	o.Progress = p.event
	var printed error
	o.Trained = func(report *train.Report) { // before files are written, which may fail
		p.meter.End()
		if len(report.Shared) > 0 {
			fmt.Fprintf(out, "layers %v share the cache of a layer that is not trained here: they are trained with it\n", report.Shared)
		}
		printed = table(cmd.OutOrStdout(), report)
	}
	report, err := train.Run(ctx, o.Options, r, windows)
	p.meter.End()
	if err != nil {
		return stopped(ctx, out, err)
	}
	err = errors.Join(printed, o.written(cmd.OutOrStdout(), report))
	if o.plot != "none" {
		err = errors.Join(err, drawTraining(report, o.plot))
	}
	if err != nil {
		return err
	}
	peak, err := r.Peak()
	if err != nil {
		peak = -1 // the adapter is there
	}
	return p.spent(cmd.OutOrStdout(), peak, o.model)
}

// parse checks flags that need more than a number, and fills in what depends on the model.
func (o *trainOptions) parse() (err error) {
	m := o.Model
	if o.spread == noAdapter {
		o.spread = ""
	}
	if o.Pinned == 0 {
		o.Pinned = -1 // as train has it
	}
	if o.context == 0 {
		o.context = m.Context
	}
	if o.context < 2 {
		return fmt.Errorf("a context of %d tokens: want 2 at least", o.context)
	}
	fillOutputs(o.model, &o.Output, &o.plot)
	if o.Options.Layers, err = parseLayers(o.layers, m.Layers); err != nil {
		return err
	}
	o.Type, _, err = worker.GGUFTypes(o.matrix)
	return err
}

// parseLayers reads numbers and ranges of a model's layers, "" being all of them.
func parseLayers(text string, n int) (layers []int, err error) {
	if text == "" {
		text = fmt.Sprintf("0-%d", n-1)
	}
	layers, err = weights.ParseLayers(text)
	if err != nil || layers[len(layers)-1] >= n {
		return nil, fmt.Errorf("--layers %s: want numbers or ranges, such as 0-%d or 0,%d, of the model's %d layers", text, n-1, n-1, n)
	}
	return layers, nil
}

// slots fills in the budgets, as slots of a KV head.
func (o *trainOptions) slots(found int) (err error) {
	c := memory.Cache{Context: o.context, Policy: o.Policy, Pinned: max(0, o.Pinned), Types: o.SlotTypes}
	for _, b := range o.budgets {
		if b.InBytes() && c.Adapter == nil { // which are to pay for phi and psi
			if c.Adapter, err = o.Sized(); err != nil {
				return err
			}
		}
		n, err := slotsOf(b, c, o.Model)
		if err != nil {
			return err
		}
		o.Budgets = append(o.Budgets, n)
	}
	if len(o.budgets) > 0 {
		return nil
	}
	n, err := slotsOf(budget{}, c, o.Model)
	if found > 0 {
		n = min(found, o.context/2)
	}
	o.Budgets = []int{n}
	return err
}

// outputs checks what is to be written.
func (o *trainOptions) outputs(texts []document) error {
	if o.Recordings != "" {
		if err := checkFolder("--recordings", o.Recordings); err != nil {
			return err
		}
	}
	outputs := []output{{"--output", o.Output, adapterWith(o.Allocation != nil, o.SlotTypes != nil)}}
	if o.plot != "none" {
		picture, err := pictureOutput("--plot", o.plot)
		if err != nil {
			return err
		}
		outputs = append(outputs, picture)
	}
	read := inputs(o.model, texts, outputs)
	if o.spread != "" {
		read = append(read, o.spread)
	}
	return checkOutputs(read, outputs...)
}

// table prints how the layers came out.
func table(w io.Writer, report *train.Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "layer\tstart\ttraining\tvalidation\tbaseline+\tbest step\ttime\t")
	for _, l := range report.Layers {
		fmt.Fprintf(tw, "%d\t%.3f\t%.3f\t%.3f\t%.3f\t%d\t%v\t\n", l.Layer, l.Start, l.Train, l.Valid, l.Plus, l.Steps, l.Times.Total().Round(time.Second))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, "\nErrors of the layers' outputs, relative to the sparse policy alone.\nBaseline+ spends the state's bytes on extra slots instead.\n")
	return err
}

// written says what was written.
func (o *trainOptions) written(w io.Writer, report *train.Report) error {
	stat, err := os.Stat(o.Output)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s: %s; phi and psi take %s of memory\n", o.Output, memory.Size(stat.Size()), memory.Size(report.Adapter.Bytes()))
	return err
}
