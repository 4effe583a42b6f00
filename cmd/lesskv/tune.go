//go:build cgo

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

// tuneOptions are the flags of tune.
type tuneOptions struct {
	tune.Options
	training tune.Training
	train    bool
	texts    []string
	output   string
	budget   budget
	types    string
	matrix   string
	context  int
	windows  int
	limit    int
	plot     string
	quiet    bool

	findTypes bool

	slots []weights.SlotTypes // of each layer, as types has them
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
matter. In a model with more than 16 KV heads, replays of what each layer's
attention saw compare the heads of a layer instead, in far fewer passes. The
allocation that results is measured as a whole, also on text that it was not
tuned on. The text is as for lesskv train.

With --find-types keys and values of layers may get types of their own where
that is closer in the same bytes: what q4_0 costs in each is measured.

With --train phi and psi follow, in the layers in which they gain more than
their bytes would as slots, larger or smaller by layer where that gains more;
then the budget is spread anew beside them. It is lesskv train under the
allocation, and tune again, in one command.

Finished measurements are kept in a folder beside the output (OUTPUT.work)
until the adapter is written: after Ctrl-C the same command goes on.`,
		Example: `  lesskv tune -m model.gguf -d texts/
  lesskv tune -m model.gguf -d texts/ -b 1/16 --type q8_0
  lesskv tune -m model.gguf -d texts/ -b 1/16 --train
  lesskv tune -m model.gguf -d texts/ -w trained.gguf -o both.gguf`,
		Args: textArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	addModel(f, &o.Model, "")
	addTexts(f, &o.texts)
	addOutput(f, &o.output, "`file` to write"+beside)
	addAdapter(f, &o.Adapter, ", or none: its phi and psi are used in the measurements and written to the output")
	addBudget(f, &o.budget, windowContext+" (default: what phi and psi of -w were trained for, without them what run would take, but half a window at most)")
	addPolicy(f, &o.Policy, "peak", "")
	addLayerTypes(f, &o.types, defaultType)
	f.BoolVar(&o.findTypes, "find-types", false, "look for types by layer, q8_0 or q4_0 of keys and values each, that are closer in the same bytes")
	addUbatch(f, &o.Ubatch, 32, smallUbatch)
	addContext(f, &o.context, 2048, ": that of a window, 0 for the model's")
	addNumber(f, &o.windows, "windows", "", 2, 1, most, "windows of text to tune on; one more is for validation")
	addNumber(f, &o.Rounds, "rounds", "r", 0, 0, most, "rounds in which heads or layers have a little less or more than the allocation, which is then improved (default: 4, or 1 where heads are replayed)")
	f.BoolVar(&o.train, "train", false, "train phi and psi too, for the layers in which they pay; the flags down to --disk are for that")
	t := &o.training.Options
	addNumber(f, &t.Rank, "rank", "", tune.DefaultRank, 1, weights.MaxSize, "rank of the low-rank state, to begin with: both double or halve in layers where that pays")
	addNumber(f, &t.Hidden, "hidden", "", tune.DefaultHidden, 1, weights.MaxSize, "hidden size of phi and psi, to begin with")
	addTokens(f, &o.limit, "text-tokens", "", 200_000, 0, "how many tokens of the text to train on, spread over it, 0 for all")
	addNumber(f, &t.Steps, "steps", "", train.DefaultSteps, 1, most, "steps of the optimiser, one window each")
	addWord(f, &o.matrix, "phi-type", "type of phi and psi", "q8_0", "f16", "f32")
	f.Var((*byteSize)(&t.Disk), "disk", "`bytes` that recordings may take at a time, as 20G (default: nine tenths of what is free)")
	addThreads(f, &o.Threads, "")
	f.StringVar(&o.plot, "plot", "", "`file` for a picture of sensitivity and allocation, .png or .svg; none for none (default: OUTPUT with .png)")
	addQuiet(f, &o.quiet)
	f.SortFlags = false
	addEarlierNames(f, map[string]string{"types": "type"})
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
	t := &o.training.Options
	t.Model, t.Threads, t.Seed = m, o.Threads, 1
	if free, ok := limits.Memory(); ok {
		t.Memory = free
	}
	if t.Type, _, err = worker.GGUFTypes(o.matrix); err != nil {
		return err
	}
	if o.train && o.Adapter != "" {
		return fmt.Errorf("--train and --adapter %s: phi and psi are trained anew: want one of the two", o.Adapter)
	}
	fillOutputs(o.Model, &o.output, &o.plot)
	return nil
}

// forTraining are the flags that only --train reads.
var forTraining = []string{"rank", "hidden", "text-tokens", "steps", "phi-type", "disk"}

// behindTrain is the command that looks for types of slots once this one, without --find-types, has run.
func (o *tuneOptions) behindTrain(flags *pflag.FlagSet) string {
	line := "lesskv tune"
	flags.Visit(func(f *pflag.Flag) {
		switch list, isList := f.Value.(pflag.SliceValue); {
		case slices.Contains(append(forTraining, "train", "find-types", "adapter", "output", "plot"), f.Name):
		case isList:
			for _, x := range list.GetSlice() {
				line += " --" + f.Name + " " + quote(x)
			}
		default:
			line += " --" + f.Name + "=" + quote(f.Value.String())
		}
	})
	return line + " --adapter " + quote(o.output) + " --output " + quote(strings.TrimSuffix(o.output, ".gguf")+".types.gguf") + " --find-types"
}

// setTypes sets the types of the slots: as they were given, else an adapter's, else the model's default. The adapter has none then: the output gets
// those that it was tuned for, unless they are the default.
func (o *tuneOptions) setTypes(m *weights.Model, a *weights.Adapter) (err error) {
	if o.types == "" {
		o.types = worker.DefaultSlots(m, a)
	}
	a.SlotTypes = nil
	if o.TypeK, o.TypeV, err = worker.SlotTypes(o.types); err == nil {
		o.slots, err = worker.LayerTypes(o.TypeK, o.TypeV, m.Layers)
	}
	return err
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
	if o.train && o.findTypes {
		return usageError{fmt.Errorf("--train and --find-types: want one after the other; behind --train: %s", o.behindTrain(cmd.Flags()))}
	}
	for _, flag := range forTraining {
		if !o.train && cmd.Flags().Changed(flag) {
			return usageError{fmt.Errorf("--%s is for training: want --train with it", flag)}
		}
	}
	if cmd.Flags().Changed("rounds") && o.Rounds == 0 {
		o.Rounds = -1 // as tune has it
	}
	o.Work = o.output + ".work"
	texts, err := listTexts(o.texts, o.Work, tune.TrainFolder(o.Work))
	if err != nil {
		return err
	}
	outputs := []output{{"--output", o.output, allocationFile}}
	if o.train { // the output has phi and psi too
		outputs[0].kind = adapterFile
	}
	if o.plot != "none" {
		picture, err := pictureOutput("--plot", o.plot)
		if err != nil {
			return err
		}
		outputs = append(outputs, picture)
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
	given := o.types != ""
	if err := o.setTypes(model, adapter); err != nil {
		return usageError{err}
	}
	if !given && !o.findTypes {
		warnTypes(cmd.ErrOrStderr(), o.output, o.slots)
	}
	if o.Budget = o.budget.Budget; o.Budget == (worker.Budget{}) {
		c := memory.Cache{Context: o.context, Policy: o.Policy, Pinned: 1, Types: o.slots}
		if o.Adapter != "" {
			c.Adapter = adapter
		}
		if o.Budget.Tokens, err = slotsOf(budget{}, c, model); err != nil {
			return err
		}
	}
	ctx, stop := usage.Interruptible(cmd.Context())
	defer stop()
	runtime, err := o.cut(ctx, cmd, texts)
	if err != nil {
		return err
	}
	defer runtime.Close()
	if !o.train {
		runtime.Close()
	}
	meter := progress.New(cmd.ErrOrStderr(), o.quiet)
	o.Progress = func(e tune.Event) { showTuning(meter, e) }
	t := &tune.Trained{}
	if o.train {
		p := &trainProgress{meter: meter, began: time.Now(), done: map[int]int{}}
		o.training.Progress, o.training.Runtime = p.event, runtime
		t, err = tune.Train(ctx, o.Options, o.training)
	} else {
		t.Without, err = tune.Run(ctx, o.Options)
	}
	said, without := "", error(nil) // types by layer
	if err == nil && o.findTypes {
		if said, without = o.find(ctx, model, t); ctx.Err() != nil {
			err = without
		}
	}
	meter.End()
	if err != nil {
		if o.train && ctx.Err() == nil {
			err = fmt.Errorf("%w\nWithout --train the same command writes the allocation alone, of what is measured", err)
		}
		return stopped(ctx, cmd.ErrOrStderr(), err)
	}
	r := t.Result()
	if o.train {
		adapter = t.Adapter
	} else {
		err = r.Give(adapter, o.Policy)
	}
	if adapter != nil && !slices.Equal(o.slots, memory.SlotTypes(model, nil)) {
		adapter.SlotTypes = o.slots
	}
	if err == nil {
		_, printing := io.WriteString(cmd.OutOrStdout(), said)
		err = errors.Join(printing, o.table(cmd.OutOrStdout(), t, adapter), adapter.Write(o.output)) // the table first: what follows may fail
	}
	if err == nil && o.plot != "none" {
		err = tune.Plot(r, o.plot)
	}
	if err = errors.Join(err, without); err != nil {
		return err // the work stays
	}
	return tune.Remove(o.Work)
}

// find looks for types by layer, and takes those that it finds; it returns what is to be said of that. Where it fails, what was found before stays.
func (o *tuneOptions) find(ctx context.Context, model *weights.Model, t *tune.Trained) (string, error) {
	was, given := t.Without, o.types
	found, err := tune.FindTypes(ctx, o.Options, model, was)
	switch {
	case err != nil:
		return "", fmt.Errorf("no types by layer were found, the allocation is for %s: %w", given, err)
	case found.Why != "":
		return fmt.Sprintf("No types by layer were tried: %s.\n\n", found.Why), nil
	case found.Result == nil:
		return fmt.Sprintf("No types by layer are predicted to be closer than %s.\n\n", given), nil
	case !found.Better:
		return fmt.Sprintf("Types by layer were tried, and are not closer than %s: KL is %.4f on text that was not tuned on, not %.4f.\n\n", given, found.Result.TunedValid, was.TunedValid), nil
	}
	t.Without, o.slots, o.types = found.Result, found.Types, worker.FormatTypes(found.Types)
	return fmt.Sprintf("Types by layer: %s. With %s KL is %.4f, on text that was not tuned on %.4f.\n\n", o.types, given, was.Tuned, was.TunedValid), nil
}

// showTuning shows an event.
func showTuning(meter *progress.Meter, e tune.Event) {
	unit := "measurements"
	if e.Stage == tune.Replays {
		unit = "layers"
	}
	switch {
	case e.Why != "":
		meter.Printf("heads are measured one by one, in more passes: replays can't compare them: %s\n", e.Why)
	case e.Total > 0:
		meter.Show(progress.Status{Stage: string(e.Stage), Done: int64(e.Done), Total: int64(e.Total), Unit: unit})
	}
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
	return weights.New(model, weights.Trained{Policy: o.Policy, Ubatch: o.Ubatch, Context: o.context}), nil
}

// cut makes windows of the texts, and returns the runtime that read them.
func (o *tuneOptions) cut(ctx context.Context, cmd *cobra.Command, texts []document) (_ *activations.Runtime, err error) {
	if o.Worker, err = worker.Path(worker.Patched); err != nil {
		return nil, err
	}
	r, err := activations.Open(ctx, o.Worker, o.Model, o.context, o.Threads)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	text, err := readTexts(r, cmd.InOrStdin(), texts)
	if err != nil {
		return nil, err
	}
	w, err := train.CutInto(text, o.context, o.windows, 1, r.Start())
	if err != nil {
		return nil, err
	}
	o.Windows, o.Valid = w.Train, w.Valid
	wanted := ""
	if len(w.Train) < o.windows {
		wanted = fmt.Sprintf(", of the %d that were asked for", o.windows)
	}
	if wanted != "" || !o.quiet {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d tokens of text; %d windows of %d tokens to tune on%s, %d for validation\n", len(text), len(w.Train), o.context, wanted, len(w.Valid))
	}
	o.training.Windows, err = train.Cut(text, o.context, o.limit, r.Start())
	return r, err
}

// table prints what was found.
func (o *tuneOptions) table(w io.Writer, t *tune.Trained, a *weights.Adapter) error {
	r := t.Result()
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
	holds := "the allocation, which takes no memory"
	switch {
	case o.Adapter != "":
		holds = "the allocation, and phi and psi of " + o.Adapter
	case t.Better:
		holds = fmt.Sprintf("the allocation, and phi and psi, which take %s of memory", memory.Size(a.Bytes()))
	}
	if o.train {
		if err := fitted(w, t); err != nil {
			return err
		}
	}
	share := "~ a share of its layer's, which was\nlimited as a whole."
	if r.Replayed {
		share = "~ a share of its layer's, by replays."
	}
	_, err := fmt.Fprintf(w, `
KL divergence from the full cache in nats, %d slots a head on average (%.0f KiB), %s:
  equal budgets      %.4f, on text that was not tuned on %.4f
%s  this allocation    %.4f, on text that was not tuned on %.4f*
* It took part in the choice, as the lowest of these: on other text, which
lesskv verify reads, expect a little more.
Of a head: what limiting it alone costs; %s
%s: %s
To run it with the budget that it was tuned for:
  %s
`, r.Slots(), float64(r.Bytes)/1024, o.types, t.Without.Equal, t.Without.EqualValid, without(t), r.Tuned, r.TunedValid, share, o.output, holds, o.runLine(a, r.Slots()))
	return err
}

// runLine is the command that runs the model under the adapter and the budget. Phi and psi bring that along, an allocation alone does not.
func (o *tuneOptions) runLine(a *weights.Adapter, budget int) string {
	line := "lesskv run -m " + quote(o.Model)
	if o.output != besideName(o.Model) {
		line += " -w " + quote(o.output)
	}
	if a.Bytes() == 0 {
		line += fmt.Sprintf(" -b %d", budget)
	}
	return line
}

// without is the line of the allocation without phi and psi, where the one that is written has some.
func without(t *tune.Trained) string {
	if !t.Better {
		return ""
	}
	return fmt.Sprintf("  none of phi, psi   %.4f, on text that was not tuned on %.4f\n", t.Without.Tuned, t.Without.TunedValid)
}

// fitted prints for which layers phi and psi were trained, and what became of them.
func fitted(w io.Writer, t *tune.Trained) error {
	if len(t.Layers) == 0 {
		why := cmp.Or(t.Why, "in no layer would they pay for their bytes")
		_, err := fmt.Fprintf(w, "\nphi and psi were not trained: %s.\n", why)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	kept := map[bool]string{false: "no", true: "yes"}
	fmt.Fprint(tw, "\nlayer\trank\thidden size\terror with phi and psi\tbytes\tkept\t\n")
	for _, l := range t.Layers {
		fmt.Fprintf(tw, "%d\t%d\t%d\t%.3f\t%d\t%s\t\n", l.Layer, l.Rank, l.Hidden, l.Error, l.Bytes, kept[l.Kept])
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	why := ""
	switch {
	case t.With == nil:
		why = "\nNo layer gains more by them than by as many bytes of slots."
	case !t.Better:
		why = fmt.Sprintf("\nWith them KL is %.4f on text that was not tuned on, %.4f without: they are not kept.", t.With.TunedValid, t.Without.TunedValid)
	}
	if _, err := fmt.Fprintf(w, "Errors of the layers' outputs on the validation windows, relative to the sparse policy alone.%s\n", why); err != nil {
		return err
	}
	if len(t.Sizes) == 0 {
		return nil
	}
	fmt.Fprint(tw, "\nlayer\trank\thidden size\tKL before\tKL with these\tkept\t\n")
	for _, d := range t.Sizes {
		fmt.Fprintf(tw, "%d\t%d\t%d\t%.5f\t%.5f\t%s\t\n", d.Layer, d.Rank, d.Hidden, d.Before, d.After, kept[d.Kept])
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "Larger or smaller phi and psi of one layer at a time, in the same bytes: KL before the slots were spread anew.")
	return err
}

// shownLevels returns which levels have a column: of the many that replays have, the budget, a quarter of it, and four times as much.
func shownLevels(r *tune.Result) (which []int) {
	at := r.Level()
	for l := range r.Levels {
		if !r.Replayed || l == at-2 || l == at || l == at+2 {
			which = append(which, l)
		}
	}
	return which
}
