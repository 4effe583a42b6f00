//go:build cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

// tuneOptions are the flags of tune.
type tuneOptions struct {
	tune.Options
	texts   []string
	output  string
	budget  budget
	types   string
	context int
	windows int
	plot    string
	quiet   bool
}

func newTune() *cobra.Command {
	o := &tuneOptions{}
	cmd := &cobra.Command{
		Use:   "tune -m MODEL -d TEXT [flags]",
		Short: "Find how a budget is best spread over a model's layers and heads",
		Long: `Find how a budget is best spread over a model's layers and heads, and write
that as an adapter that run, verify and plugins take: with the same bytes, the
output is closer to that of the full cache.

Each layer in turn is limited to a few slots while all others are full, and the
KL divergence from the full cache is measured; then each head of the layers that
matter. Of a model with more than 16 KV heads the heads of a layer are told
apart by replays instead, in far fewer passes. The allocation that results is
measured as a whole, also on text that it was not tuned on. The text is as for
lesskv train.

Finished measurements are kept in a folder beside the output (OUTPUT.work)
until the adapter is written: after Ctrl-C the same command goes on.`,
		Example: `  lesskv tune -m model.gguf -d texts/
  lesskv tune -m model.gguf -d texts/ -b 1/16 --type q8_0
  lesskv tune -m model.gguf -d texts/ -w trained.gguf -o both.gguf`,
		Args: textArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	addModel(f, &o.Model, "")
	addTexts(f, &o.texts)
	addOutput(f, &o.output, "`file` to write"+beside)
	addAdapter(f, &o.Adapter, ", or none: its phi and psi are used in the measurements and written to the output")
	addBudget(f, &o.budget, " (default: what phi and psi of -w were trained for, without them what run would take, but half a window at most)")
	addPolicy(f, &o.Policy, "peak", "")
	addType(f, &o.types, defaultType)
	addUbatch(f, &o.Ubatch, 32)
	addContext(f, &o.context, 2048, ": that of a window, 0 for the model's")
	addNumber(f, &o.windows, "windows", "", 2, 1, most, "windows of text to tune on; one more is for validation")
	addNumber(f, &o.Rounds, "rounds", "r", 0, 0, most, "rounds in which heads or layers have a little less or more than the allocation, which is then improved (default: 4, or 1 where heads are replayed)")
	addThreads(f, &o.Threads, "")
	f.StringVar(&o.plot, "plot", "", "`file` for a picture of sensitivity and allocation, .png or .svg; none for none (default: OUTPUT with .png)")
	addQuiet(f, &o.quiet)
	f.SortFlags = false
	aliases(f, map[string]string{"types": "type"})
	return cmd
}

// parse checks flags that need more than a number, and fills in what depends on the model.
func (o *tuneOptions) parse(m *weights.Model) (err error) {
	if o.Adapter == noAdapter {
		o.Adapter = ""
	}
	if o.context == 0 {
		o.context = m.Context
	}
	if o.types == "" {
		o.types = worker.DefaultSlots(m)
	}
	if o.TypeK, o.TypeV, err = worker.SlotTypes(o.types); err != nil {
		return err
	}
	return fillOutputs(o.Model, &o.output, &o.plot)
}

func (o *tuneOptions) run(cmd *cobra.Command) error {
	if o.Model == "" || len(o.texts) == 0 {
		return usageError{errors.New("want a model and a text: -m MODEL.gguf -d TEXT")}
	}
	model, err := weights.ReadModel(o.Model)
	if err != nil {
		return err
	}
	if err := o.parse(model); err != nil {
		return usageError{err}
	}
	if cmd.Flags().Changed("rounds") && o.Rounds == 0 {
		o.Rounds = -1 // as tune has it
	}
	o.Work = o.output + ".work"
	texts, err := listTexts(o.texts, o.Work)
	if err != nil {
		return err
	}
	outputs := []output{{"--output", o.output, allocationFile}}
	if o.plot != "none" {
		outputs = append(outputs, output{"--plot", o.plot, pictureFile(o.plot)})
	}
	read := inputs(o.Model, texts, outputs)
	if o.Adapter != "" {
		read = append(read, o.Adapter)
	}
	if err := checkOutputs(read, outputs...); err != nil {
		return err
	}
	adapter, err := o.empty(model, cmd.Flags().Changed("policy"))
	if err != nil {
		return err
	}
	if o.Budget = o.budget.Budget; o.Budget == (worker.Budget{}) {
		c := memory.Cache{Context: o.context, Policy: o.Policy, Pinned: 1}
		if o.Adapter != "" {
			c.Adapter = adapter
		}
		if o.Budget.Tokens, err = slotsOf(budget{}, c, model); err != nil {
			return err
		}
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	if err := o.cut(ctx, cmd, texts); err != nil {
		return err
	}
	meter := progress.New(cmd.ErrOrStderr(), o.quiet)
	o.Progress = func(e tune.Event) {
		if e.Total > 0 {
			unit := "measurements"
			if e.Stage == tune.Replays {
				unit = "layers"
			}
			meter.Show(progress.Status{Stage: string(e.Stage), Done: int64(e.Done), Total: int64(e.Total), Unit: unit})
		}
	}
	r, err := tune.Run(ctx, o.Options)
	meter.End()
	if err != nil {
		return stopped(ctx, cmd.ErrOrStderr(), err)
	}
	adapter.Budget = budgets(adapter, r)
	if o.Adapter == "" {
		if adapter.Trained.Heavy, err = kernels.PolicyHeavy(o.Policy, r.Budget); err != nil {
			return err
		}
		adapter.Trained.Recent = r.Budget - adapter.Trained.Heavy
	}
	err = errors.Join(o.table(cmd.OutOrStdout(), r), adapter.Write(o.output)) // the table first: what follows may fail
	if err == nil && o.plot != "none" {
		err = tune.Plot(r, o.plot)
	}
	if err != nil {
		return err // the work stays
	}
	return pieces.Remove(o.Work)
}

// empty returns the adapter that the allocation goes into: one without phi and psi, or the one that was named, which brings its policy
// unless one was given.
func (o *tuneOptions) empty(model *weights.Model, given bool) (*weights.Adapter, error) {
	if o.Adapter != "" {
		a, err := readAdapter(o.Adapter, model)
		if err != nil {
			return nil, err
		}
		if !given {
			o.Policy = a.Trained.Policy
		}
		if a.Trained.Policy != o.Policy {
			return nil, usageError{fmt.Errorf("--policy %s: %s was trained with %s: want that", o.Policy, o.Adapter, a.Trained.Policy)}
		}
		return a, nil
	}
	if _, err := kernels.PolicyHeavy(o.Policy, 1); err != nil {
		return nil, usageError{err}
	}
	return weights.New(model, 1, 1, weights.Trained{Policy: o.Policy, Ubatch: o.Ubatch, Context: o.context}), nil
}

// cut makes windows of the texts.
func (o *tuneOptions) cut(ctx context.Context, cmd *cobra.Command, texts []document) error {
	path, err := worker.Path(worker.Patched)
	if err != nil {
		return err
	}
	o.Worker = path
	r, err := activations.Open(ctx, path, o.Model, o.context, 1)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := readTexts(r, cmd.InOrStdin(), texts)
	if err != nil {
		return err
	}
	w, err := train.Cut(text, o.context, (o.windows+1)*o.context, r.Start())
	if err != nil {
		return err
	}
	o.Windows, o.Valid = w.Train[:min(len(w.Train), o.windows)], w.Valid[:1]
	return nil
}

// budgets returns the weights as the adapter has them: one for each KV head of each layer, 0 where there is no budget.
func budgets(a *weights.Adapter, r *tune.Result) (all []float32) {
	found := map[[2]int]float32{}
	for _, h := range r.Heads {
		found[[2]int{h.Layer, h.Head}] = h.Weight
	}
	for il := range a.Layers {
		for j := range a.Layer(il).HeadsKV {
			all = append(all, found[[2]int{il, j}])
		}
	}
	return all
}

// table prints what was found.
func (o *tuneOptions) table(w io.Writer, r *tune.Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "layer\thead\t")
	shown := shownLevels(r)
	for _, l := range shown {
		fmt.Fprintf(tw, "KL at %d\t", r.Levels[l])
	}
	fmt.Fprintln(tw, "slots\t")
	for _, h := range r.Heads {
		fmt.Fprintf(tw, "%d\t%d\t", h.Layer, h.Head)
		for _, l := range shown {
			mark := ""
			if !h.Measured {
				mark = "~"
			}
			fmt.Fprintf(tw, "%s%.5f\t", mark, h.Distance[l])
		}
		fmt.Fprintf(tw, "%d\t\n", h.Slots)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	holds := "the allocation, which weighs nothing in memory"
	if o.Adapter != "" {
		holds = "the allocation, and phi and psi of " + o.Adapter
	}
	share := "~ a share of its layer's, which was\nlimited as a whole."
	if r.Replayed {
		share = "~ a share of its layer's, by replays."
	}
	_, err := fmt.Fprintf(w, `
KL divergence from the full cache in nats, %d slots a head on average (%.0f KiB), %s:
  equal budgets      %.4f, on text that was not tuned on %.4f
  this allocation    %.4f, on text that was not tuned on %.4f
Of a head: what limiting it alone costs; %s
%s: %s
`, r.Budget, float64(r.Bytes)/1024, o.types, r.Equal, r.EqualValid, r.Tuned, r.TunedValid, share, o.output, holds)
	return err
}

// shownLevels returns which levels have a column: of the many that replays have, the budget, a quarter of it, and four times as much.
func shownLevels(r *tune.Result) (which []int) {
	at := slices.Index(r.Levels, r.Budget)
	for l := range r.Levels {
		if !r.Replayed || l == at-2 || l == at || l == at+2 {
			which = append(which, l)
		}
	}
	return which
}
