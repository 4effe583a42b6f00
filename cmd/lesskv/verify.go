//go:build cgo

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/integration/verify/page"
	"github.com/lesskv/lesskv/integration/wordwrap"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/outfile"
)

// verifyOptions are the flags of verify.
type verifyOptions struct {
	verify.Plan
	texts    []string
	budgets  []budget
	bytes    []budget
	start    bool
	prompts  string
	types    []string
	requires []string
	output   string
	unpacked string // folder of the built-in model and its adapters, where no other was named
	json     bool
	keep     bool
	quiet    bool
}

func newVerify() *cobra.Command {
	o := &verifyOptions{}
	cmd := &cobra.Command{
		Use:   "verify -m MODEL -w ADAPTER -d TEXT [flags]",
		Short: "Measure how close LESS stays to the full cache, at what memory",
		Long: `Read a text with several kinds of cache, beside the full cache of the unmodified
runtime in a process of its own, and report how far each is from the full cache
and how many bytes it takes. The report is a table on standard output, and in
the folder of -o report.json, report.csv, report.md, report.html (one file, no
network) and the pictures as PNG.

Exit status: 0 if every --require holds and the build is what it claims to be
(switched off it equals the unmodified runtime bit for bit; with nothing
evicted, to rounding; its kernels agree with the reference loops), 3 if not,
with the reasons among the checks of report.json; 1 if it could not be
measured, 2 for a wrong command line.

Requirements are [[POLICY] METHOD [BUDGET]:] MEASURE <= NUMBER, without a method
LESS's: "kl <= 0.2", "peak less 102: top1 > 0.85", "minus.baseline+.high < 0"
(KL less that of Baseline+, upper end of the interval). Measures:
` + wordwrap.Words(verify.MeasureNames(), 80) + `

With --bytes it finds the best setting under a number of bytes, with everything
counted: every policy, with equal budgets and with the adapters that are given,
in slots of several types. Nothing is trained. It prints them by their distance
from the full cache, the best first, and writes only report.json.

Finished work is kept in OUTPUT/work until the report is written: after Ctrl-C
or a crash the same command goes on. Without -m the model is gopher-5m, which is
built in with its adapters and a text that it has not seen.`,
		Example: `  lesskv verify -m model.gguf -w model.lesskv.gguf -d book.txt
  lesskv verify -m model.gguf -d book.txt -b 512,5% --require "kl <= 0.05"
  lesskv verify -m model.gguf -d book.txt --bytes 1/8,1/16 -n 0 --recall none
  lesskv verify -b 41,102 -o report/`,
		Args: textArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	addModel(f, &o.Model, builtin)
	f.StringArrayVarP(&o.Adapters, "adapter", "w", nil, adapterHelp+", or none; may be given several times, each serves its policy"+beside)
	addTexts(f, &o.texts)
	addNumber(f, &o.Windows, "windows", "", 6, 1, 1<<20, "how many windows of the text to read")
	addTokens(f, &o.Stride, "stride", "", 0, 0, "tokens between the starts of two windows (default: evenly over the text)")
	f.BoolVar(&o.start, "bos", true, "put the model's start token before each window; =false to read them as they are in the text")
	addContexts(f, &o.Contexts, "", ", windows have as many (default: the model's, 2048 at most)")
	addBudgets(f, &o.budgets, "", windowContext+defaultBudget)
	f.Var(newList(&o.bytes, "budgets", parseBytesBudget), "bytes", "find the best setting under so many bytes of one sequence, instead of budgets: shares of the full f16 cache's bytes as 1/8,1/16, or 363KiB")
	addUbatches(f, &o.Ubatches, "32", smallUbatch+"; generations, recall tasks and most pictures are of the first")
	addPolicies(f, &o.Policies, verify.Policies())
	addTypes(f, &o.types, "; with --bytes several may be given"+defaultType)
	f.StringSliceVar(&o.Methods, "method", verify.Methods(), "caches to compare")
	addTokens(f, &o.Generate, "tokens", "n", 48, 0, "tokens of each greedy generation, 0 for none")
	f.StringVar(&o.prompts, "prompts", "", "JSON lines `file` of generations: {\"prompt\": …, \"reference\": …} (default: the first halves of the windows)")
	f.StringSliceVar(&o.Recall, "recall", verify.RecallKinds(), "recall tasks, or none")
	addNumber(f, &o.Tasks, "tasks", "", 1, 1, 1<<20, "recall tasks of each kind, length and depth")
	f.StringVar(&o.Template, "template", "", "template of a recall task, with {prompt} in it, as a chat model needs it")
	addTokens(f, &o.Read, "read", "", 0, 0, "read so many tokens at each budget, without a full cache")
	f.Var(newList(&o.Peaks, "contexts", parseSomeTokens), "peaks", "`contexts` at which to measure the peak memory of both runtimes")
	f.StringArrayVar(&o.requires, "require", nil, "`requirement` that must hold (may be given several times)")
	addNumber(f, &o.Samples, "samples", "", 1000, 10, 100_000, "draws of the bootstrap")
	addNumber(f, &o.Seed, "seed", "s", 1, 1, math.MaxUint64, "seed of the draws: the same command gives the same report")
	addOutput(f, &o.output, "`folder` for the report (default: MODEL.verify beside the model)")
	addMemory(f, &o.Memory, "; of all processes together (default: four fifths of what is available)")
	addThreads(f, &o.Threads, "")
	addGPULayers(f, &o.GPULayers, ", half of them the full cache's")
	f.BoolVar(&o.json, "json", false, "print the report as JSON instead of the table")
	f.BoolVar(&o.keep, "keep", false, "keep the work folder")
	addQuiet(f, &o.quiet)
	f.SortFlags = false
	addEarlierNames(f, map[string]string{"text": "data"})
	return cmd
}

func (o *verifyOptions) run(cmd *cobra.Command) error {
	ctx, stop := usage.Interruptible(cmd.Context())
	defer stop()
	report, err := o.measure(ctx, cmd)
	if err != nil {
		err = stopped(ctx, cmd.ErrOrStderr(), err)
		if o.json {
			json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"error": err.Error()})
		}
		return err
	}
	if o.json { // first: what follows may fail
		var data []byte
		if data, err = report.JSON(); err == nil {
			_, err = cmd.OutOrStdout().Write(data)
		}
	} else if len(report.Best) > 0 {
		err = page.Best(cmd.OutOrStdout(), report)
	} else {
		err = page.Table(cmd.OutOrStdout(), report)
	}
	paths, writing := page.Write(report, o.output)
	if err := errors.Join(err, writing); err != nil {
		return err
	}
	if !o.keep {
		if err := errors.Join(pieces.Remove(o.Work), outfile.RemoveFolder(o.unpacked, builtinFiles)); err != nil {
			return err
		}
	}
	if !o.quiet {
		fmt.Fprintln(cmd.ErrOrStderr(), "written:\n"+strings.Join(paths, "\n"))
	}
	if failed := report.Failed(); len(failed) > 0 {
		return fmt.Errorf("%d of %d %w: see the checks in %s", len(failed), len(report.Checks), errChecks, filepath.Join(o.output, "report.json"))
	}
	return nil
}

// measure runs the plan that the flags make, and checks the requirements.
func (o *verifyOptions) measure(ctx context.Context, cmd *cobra.Command) (*verify.Report, error) {
	requirements := make([]verify.Requirement, len(o.requires))
	for i, s := range o.requires {
		var err error
		if requirements[i], err = verify.ParseRequirement(s); err != nil {
			return nil, err
		}
	}
	if err := o.resolve(cmd); err != nil {
		return nil, err
	}
	o.RPC = rpcServers(cmd.ErrOrStderr(), "verify", o.GPULayers)
	meter := progress.New(cmd.ErrOrStderr(), o.quiet)
	o.Progress = func(p verify.Progress) { meter.Show(progress.Status{Text: p.Stage, Done: p.Done, Total: p.Total}) }
	report, err := verify.Run(ctx, o.Plan)
	meter.End()
	if err != nil {
		return nil, err
	}
	report.Check(requirements...)
	return report, nil
}

// resolve fills in what flags leave open.
func (o *verifyOptions) resolve(cmd *cobra.Command) (err error) {
	o.NoStart = !o.start
	o.Budgets = nil
	for _, b := range o.budgets {
		o.Budgets = append(o.Budgets, b.Budget)
	}
	if err := o.sizes(cmd); err != nil {
		return err
	}
	if o.Generate == 0 {
		o.Generate = -1
	}
	if len(o.Recall) == 1 && o.Recall[0] == "none" {
		o.Recall = []string{}
	}
	if o.Model != "" && len(o.texts) == 0 {
		return usageError{errors.New("want a text: -d FILE")}
	}
	if o.output == "" {
		o.output = "gopher-5m.verify"
		if o.Model != "" {
			o.output = strings.TrimSuffix(o.Model, ".gguf") + ".verify"
		}
	}
	o.Work = filepath.Join(o.output, "work")
	texts, err := listTexts(o.texts, o.output)
	if err != nil {
		return err
	}
	if err := o.outputs(texts); err != nil {
		return err
	}
	if o.Model == "" {
		if err := o.builtin(cmd); err != nil {
			return err
		}
	}
	if len(o.Adapters) < 2 {
		path := adapterOf(strings.Join(o.Adapters, ""), o.Model)
		if o.Adapters = nil; path != "" {
			o.Adapters = []string{path}
		}
	}
	if o.types == nil {
		if err := o.defaultTypes(); err != nil {
			return err
		}
	}
	if o.prompts != "" {
		if o.Prompts, err = readPrompts(o.prompts); err != nil {
			return err
		}
	}
	if len(texts) == 0 {
		return nil
	}
	var text strings.Builder
	for _, d := range texts {
		if filepath.Ext(d.path) == tokenFile {
			if d.inside {
				continue
			}
			return usageError{fmt.Errorf("--data %s: want text: token numbers are for train and tune", d.path)}
		}
		data, err := d.content(cmd.InOrStdin())
		if err != nil {
			return fmt.Errorf("reading the text: %w", err)
		}
		text.Write(data)
	}
	o.Text = text.String()
	return nil
}

// defaultTypes fills in the types of the slots where none are given: those of the first adapter that has some, else the runtime's; with --bytes
// those of each adapter too.
func (o *verifyOptions) defaultTypes() error {
	var types []string
	for _, path := range o.Adapters {
		if a, err := weights.Read(path); err == nil && a.SlotTypes != nil { // an error is verify's to say
			types = append(types, worker.FormatTypes(a.SlotTypes))
		}
	}
	if len(o.Bytes) > 0 {
		o.SlotTypes = append(verify.CandidateTypes(), types...)
		return nil
	}
	m, err := weights.ReadModel(o.Model)
	if err != nil {
		return err
	}
	o.SlotType = append(types, worker.DefaultSlots(m, nil))[0]
	return nil
}

// sizes reads --bytes and the types that go with it.
func (o *verifyOptions) sizes(cmd *cobra.Command) error {
	o.Bytes = nil
	for _, b := range o.bytes {
		o.Bytes = append(o.Bytes, b.Budget)
	}
	switch {
	case len(o.Bytes) == 0 && len(o.types) <= 1:
		o.SlotType = strings.Join(o.types, "") // none: the model's default
	case len(o.Bytes) == 0:
		return usageError{fmt.Errorf("--type %s: want one type, or --bytes", strings.Join(o.types, " and "))}
	case cmd.Flags().Changed("type"):
		o.SlotTypes = o.types
	}
	for _, name := range []string{"budget", "method", "read", "peaks"} {
		if len(o.Bytes) > 0 && cmd.Flags().Changed(name) {
			return usageError{fmt.Errorf("--%s: without effect where --bytes finds what is best", name)}
		}
	}
	return nil
}

// builtin puts in gopher-5m, its adapters, and the windows of the held-out text that its published figures are of.
func (o *verifyOptions) builtin(cmd *cobra.Command) (err error) {
	o.unpacked = filepath.Join(o.output, "builtin") // a run's own: another version of the program may have other adapters
	if o.Model, err = testdata.PathIn(o.unpacked, testdata.Model); err != nil {
		return fmt.Errorf("unpacking the built-in model: %w", err)
	}
	if len(o.Adapters) == 0 {
		for _, name := range testdata.Adapters() {
			path, err := testdata.PathIn(o.unpacked, name)
			if err != nil {
				return fmt.Errorf("unpacking the built-in adapters: %w", err)
			}
			o.Adapters = append(o.Adapters, path)
		}
	}
	if len(o.texts) > 0 {
		return nil
	}
	text, err := testdata.Read(testdata.Heldout)
	if err != nil {
		return err
	}
	o.Text = string(text)
	if !cmd.Flags().Changed("stride") && !cmd.Flags().Changed("bos") && !cmd.Flags().Changed("windows") {
		o.Stride, o.NoStart = 60000, true
	}
	return nil
}

// builtinFiles are the names of what is unpacked.
var builtinFiles = func() *regexp.Regexp {
	names := []string{regexp.QuoteMeta(testdata.Model)}
	for _, name := range testdata.Adapters() {
		names = append(names, regexp.QuoteMeta(name))
	}
	return regexp.MustCompile(`^(` + strings.Join(names, "|") + `)(\.part\.tmp)?$`)
}()

// outputs checks what is to be written: the report's files, where they are there already, and their folder.
func (o *verifyOptions) outputs(texts []document) error {
	if err := checkFolder("--output", o.output); err != nil {
		return err
	}
	if _, err := os.Stat(o.output); err != nil {
		return nil // it is made
	}
	var outputs []output
	files := page.Files()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		outputs = append(outputs, output{"--output", filepath.Join(o.output, name), kind{"lesskv verify's", files[name]}})
	}
	pictures, err := os.ReadDir(o.output)
	if err != nil {
		return err
	}
	for _, p := range pictures {
		if path := filepath.Join(o.output, p.Name()); page.IsPicture(p.Name()) {
			outputs = append(outputs, output{"--output", path, pictureFile(path)})
		}
	}
	return checkOutputs(append(inputs(o.Model, texts, outputs), append(o.Adapters, o.prompts)...), outputs...)
}
