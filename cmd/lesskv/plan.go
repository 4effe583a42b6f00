package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/describe"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// errNothingFits is a bound that no cache fits.
var errNothingFits = errors.New("nothing fits")

// planOptions are the flags of plan.
type planOptions struct {
	model       string
	adapter     string
	memory      int64
	contexts    []int
	budgets     []budget
	types       string
	ubatch      int
	threads     int
	checkpoints int // of a LESS cache
	picture     string
}

func newPlan() *cobra.Command {
	o := &planOptions{}
	cmd := &cobra.Command{
		Use:   "plan [-m MODEL] [--memory 8G]",
		Short: "Say which context and budget fit into how much memory",
		Long: `Say how much memory a process with a model takes, by context and budget, beside
the full cache in f16, q8_0 and q4_0; what of it fits into --memory or, without
it, into the memory that is free here, container limits included; and the line
to copy.

Weights and caches are exact; scratch, and the process as a whole, are
estimates. Only the model's header is read. Nothing is loaded or measured. An
adapter beside the model (MODEL.lesskv.gguf) counts, as the runtime would load
it.`,
		Example: `  lesskv plan -m model.gguf
  lesskv plan -m model.gguf --memory 8G -c 8k,32k,128k -b 5%,1024 -o plan.png`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%q: the model is given with -m", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	addModel(f, &o.model, builtin)
	addAdapter(f, &o.adapter, ", or none"+beside)
	addMemory(f, &o.memory, " (default: what is available)")
	addContexts(f, &o.contexts, "", " (default: 2k, 8k, 32k and so on to the model's)")
	addBudgets(f, &o.budgets, "", " (default: what run would take, and 5%)")
	addType(f, &o.types, defaultType)
	addUbatch(f, &o.ubatch, 512, "")
	addThreads(f, &o.threads, "")
	addNumber(f, &o.checkpoints, "checkpoints", "", memory.DefaultCheckpoints, 0, 1000, "checkpoints of a LESS cache that the process keeps; run keeps none")
	addOutput(f, &o.picture, "`file` for a picture, .png or .svg")
	f.SortFlags = false
	return cmd
}

// A plan is what is known of a model, and the rows that were worked out.
type plan struct {
	memory.Plan
	path     string // as the user gave it; "" is the built-in model
	adapter  string // as the user gave it
	from     string // where the bound comes from
	types    string // as the user gave them
	contexts []int
	budgets  []budget
}

func (o *planOptions) run(w io.Writer) error {
	p, inputs, err := o.plan()
	if err != nil {
		return err
	}
	if o.picture != "" {
		if err := o.checkPicture(inputs); err != nil {
			return err
		}
	}
	if err := p.work(); err != nil {
		return err
	}
	var text bytes.Buffer
	p.print(&text)
	p.advise(&text)
	if _, err := w.Write(text.Bytes()); err != nil {
		return err
	}
	if o.picture != "" {
		if err := p.draw(o.picture); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(p.Rows, p.Fits) {
		return fmt.Errorf("%w into %s at a context of %d tokens, the smallest that was asked for", errNothingFits, memory.Size(p.Bound), p.contexts[0])
	}
	return nil
}

func (o *planOptions) checkPicture(inputs []string) error {
	picture, err := pictureOutput("--output", o.picture)
	if err != nil {
		return err
	}
	return checkOutputs(inputs, picture)
}

// plan reads the command line, the model and its adapter.
func (o *planOptions) plan() (p *plan, inputs []string, err error) {
	p = &plan{path: o.model, adapter: o.adapter}
	p.Checkpoints, p.Ubatch, p.Threads = o.checkpoints, o.ubatch, o.threads
	path := o.model
	if path == "" {
		if path, err = testdata.Path(testdata.Model); err != nil {
			return nil, nil, err
		}
	}
	if p.Model, err = weights.ReadModel(path); err != nil {
		return nil, nil, err
	}
	f, err := gguf.Open(path)
	if err != nil {
		return nil, nil, err
	}
	p.Weights = memory.Weights(f)
	less, _ := describe.Served(f, p.Model.Architecture)
	f.Close()
	if strings.HasPrefix(less, "no") {
		return nil, nil, fmt.Errorf("%s: LESS does not serve the architecture %s: %s", path, p.Model.Architecture, less)
	}
	if err := o.bound(p); err != nil {
		return nil, nil, err
	}
	if p.contexts, err = o.contextsOf(p.Model); err != nil {
		return nil, nil, err
	}
	if p.budgets = o.budgets; p.budgets == nil {
		p.budgets = []budget{{}, {memory.Budget{Share: .05}, "5%"}}
	}
	if p.types = o.types; p.types != "" {
		var t weights.SlotTypes
		if t.Key, t.Value, err = worker.GGUFTypes(o.types); err != nil {
			return nil, nil, usageError{err}
		}
		p.Cache.Types = weights.SameSlotTypes(t, p.Model.Layers)
	}
	if p.Cache.Pinned = 1; o.model == "" {
		p.Cache.Policy = builtinPolicy
	}
	inputs = []string{path}
	used, err := o.readAdapter(p, path)
	if used != "" {
		inputs = append(inputs, used)
	}
	return p, inputs, err
}

// readAdapter reads the adapter that run would take, and returns its path; "" if there is none.
func (o *planOptions) readAdapter(p *plan, model string) (path string, err error) {
	if path = adapterOf(o.adapter, model); o.adapter == "" && o.model == "" {
		path, err = testdata.Path(builtinAdapters[builtinPolicy])
	}
	if err != nil || path == "" {
		return "", err
	}
	p.Cache.Adapter, err = readAdapter(path, p.Model)
	return path, err
}

// bound finds out how much memory there is.
func (o *planOptions) bound(p *plan) error {
	if o.memory > 0 {
		p.Bound, p.from = uint64(o.memory), "--memory"
		return nil
	}
	n, ok := limits.Memory()
	if !ok {
		return usageError{errors.New("this system does not say how much memory is free: want --memory, as in --memory 8G")}
	}
	p.Bound, p.from = uint64(n), "available on this machine"
	return nil
}

// contextsOf returns the contexts that were asked for, or those that make a table.
func (o *planOptions) contextsOf(m *weights.Model) (all []int, err error) {
	if all = slices.Clone(o.contexts); slices.Contains(all, 0) {
		return nil, usageError{errors.New("--context 0: want 1 token at least")}
	}
	if all == nil {
		for n := 2048; n < m.Context; n *= 4 {
			all = append(all, n)
		}
		all = append(all, m.Context)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// slotOptions are the types of slots as an app names them.
var slotOptions = map[gguf.Type]string{gguf.F16: "F16", gguf.F32: "F32", gguf.Q8_0: "Q8", gguf.Q4_0: "Q4"}

// work fills in the rows, context by context.
func (p *plan) work() error {
	for _, context := range p.contexts {
		for _, t := range []gguf.Type{gguf.F16, gguf.Q8_0, gguf.Q4_0} {
			if err := p.AddFull(context, t); err != nil && !errors.Is(err, memory.ErrType) { // heads that don't fill its blocks
				return err
			}
		}
		for _, b := range p.budgets {
			err := p.AddLESS(context, b.Budget)
			if errors.Is(err, memory.ErrBudget) {
				return fmt.Errorf("--budget %s at a context of %d: %w", b.text, context, err)
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// print writes the table.
func (p *plan) print(w io.Writer) {
	s := newSheet(w)
	s.line("model", "%s: weights %s, trained for %d tokens", printable(p.name()), memory.Size(p.Weights), p.Model.Context)
	s.line("memory", "%s, %s", memory.Size(p.Bound), p.from)
	if a := p.Cache.Adapter; a != nil {
		var parts []string
		if a.Bytes() > 0 {
			ranks, _ := a.Sizes()
			parts = append(parts, fmt.Sprintf("phi and psi, %s, %s", describe.Ranks(ranks), memory.Size(p.Rows[len(p.Rows)-1].Process.Kernels)))
		}
		if a.Budget != nil {
			parts = append(parts, "budgets by head")
		}
		if a.SlotTypes != nil && p.types == "" {
			parts = append(parts, "slots of "+worker.FormatTypes(a.SlotTypes))
		}
		s.line("LESS", "of an adapter: %s", strings.Join(parts, ", "))
	}
	s.w.Flush()
	fmt.Fprintln(w)
	var table bytes.Buffer
	tw := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "context\tcache\tslots\tslots\tstate\tcheckpoints\tscratch\tprocess\tfits\t")
	fmt.Fprintln(tw, "\t\ta head\tMiB\tMiB\tMiB\tMiB\tMiB\t\t")
	var last int
	for _, r := range p.Rows {
		context, fits, x := "", "no", r.Process
		if r.Context != last {
			context, last = strconv.Itoa(r.Context), r.Context
		}
		if p.Fits(r) {
			fits = "yes"
		}
		slots, checkpoints, scratch := "all", "-", "-"
		if !r.Full {
			slots, checkpoints, scratch = strconv.Itoa(r.Slots), column(x.Checkpoints), column(x.Scratch)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", context, p.cacheOf(r), slots, column(x.Slots), column(x.State), checkpoints, scratch, column(x.Total()), fits)
	}
	tw.Flush()
	for line := range strings.Lines(table.String()) {
		fmt.Fprintln(w, strings.TrimRight(line[2:], " \n")) // without the first column's padding: 80 columns
	}
	if p.Checkpoints > 0 {
		fmt.Fprintf(w, "\nCheckpoints are those of an app or a chat, %d of them; run keeps none.\n", p.Checkpoints)
	}
}

// column writes bytes in MiB, for a column of them.
func column(bytes uint64) string {
	if bytes == 0 {
		return "-"
	}
	x := float64(bytes) / (1 << 20)
	return strconv.FormatFloat(x, 'f', max(0, 2-int(math.Log10(max(x, 1)))), 64)
}

// cacheOf names the cache of a row: a LESS cache by its budget as the user gave it.
func (p *plan) cacheOf(r memory.Row) string {
	if r.Full {
		return "full " + strings.ToLower(r.Type.String())
	}
	return "LESS " + cmp.Or(p.budgetOf(r).text, "default")
}

func (p *plan) budgetOf(r memory.Row) budget {
	i := slices.IndexFunc(p.budgets, func(b budget) bool { return b.Budget == r.Budget })
	return p.budgets[i]
}

func (p *plan) name() string {
	if p.path == "" {
		return "gopher-5m"
	}
	return filepath.Base(p.path)
}

// advise writes the line to copy.
func (p *plan) advise(w io.Writer) {
	r, ok := p.Best()
	if !ok {
		return
	}
	byDefault, given := p.Default(r.Context)
	if !r.Full {
		fmt.Fprintf(w, "\nTo hold %d tokens:\n\n", r.Context)
	} else {
		bytes := r.Process.Total()
		l, ok := p.Below(r.Context, bytes)
		switch {
		case given && byDefault.Process.Total()+(r.Process.Slots+r.Process.State)/8 > bytes:
			fmt.Fprintf(w, `
The full cache of %d tokens fits. At so short a context LESS by default saves
next to nothing: it keeps %d slots a head, and checkpoints beside them.
A smaller budget saves memory, at a price: lesskv verify says which.
`, r.Context, byDefault.Slots)
			return
		case !ok:
			fmt.Fprintf(w, "\nThe full cache of %d tokens fits, and LESS with these budgets takes no less.\n", r.Context)
			return
		}
		fmt.Fprintf(w, "\nThe full cache of %d tokens fits. LESS leaves %s to others:\n\n", r.Context, memory.Size(bytes-l.Process.Total()))
		r = l
	}
	flags, options := []string{fmt.Sprintf("-c %d", r.Context)}, []string{}
	variables := []string{"LESSKV=on"}
	add := func(flag, variable, option string) {
		flags, variables, options = append(flags, flag), append(variables, variable), append(options, option)
	}
	if p.path != "" {
		flags = append(flags, "-m "+quote(p.path))
	}
	if b := p.budgetOf(r); b.text != "" {
		add("-b "+quote(b.text), "LESSKV_BUDGET="+quote(b.text), "Budget: "+b.option())
	}
	if p.types != "" {
		add("--type "+p.types, "LESSKV_TYPE="+p.types, fmt.Sprintf("Keys: lesskv.%s, Values: lesskv.%s", slotOptions[p.Cache.Types[0].Key], slotOptions[p.Cache.Types[0].Value]))
	}
	switch p.adapter {
	case "":
	case noAdapter:
		add("-w "+noAdapter, "LESSKV_ADAPTER="+noAdapter, "Adapter: lesskv.NoAdapter")
	default:
		add("-w "+quote(p.adapter), "LESSKV_ADAPTER="+quote(p.adapter), fmt.Sprintf("Adapter: %q", p.adapter))
	}
	switch {
	case p.Checkpoints == 0:
		add("--checkpoints 0", "LESSKV_CHECKPOINTS=0", "Checkpoints: lesskv.None")
	case p.Checkpoints != memory.DefaultCheckpoints:
		n := strconv.Itoa(p.Checkpoints)
		add("--checkpoints "+n, "LESSKV_CHECKPOINTS="+n, "Checkpoints: "+n)
	}
	fmt.Fprintf(w, "  option       llama.SetContext(%d),\n               lesskv.Enable(lesskv.Config{%s})\n", r.Context, strings.Join(options, ", "))
	fmt.Fprintf(w, "  environment  %s\n", strings.Join(variables, " "))
	fmt.Fprintf(w, "  flags        lesskv run %s\n", strings.Join(flags, " "))
	if given && r.Slots < byDefault.Slots {
		fmt.Fprintf(w, "\nThe default, %d slots a head, does not fit. What fewer cost: lesskv verify.\n", byDefault.Slots)
	}
	if r.Context > p.Model.Context {
		fmt.Fprintf(w, "\nThe model was trained for %d tokens; beyond them its output gets worse.\n", p.Model.Context)
	}
}

// option writes a budget as an app does.
func (b budget) option() string {
	switch {
	case b.Tokens > 0:
		return fmt.Sprintf("lesskv.Tokens(%d)", b.Tokens)
	case b.Bytes > 0:
		return fmt.Sprintf("lesskv.Bytes(%d)", b.Bytes)
	case b.Full > 0:
		part, of, _ := strings.Cut(b.text, "/")
		return fmt.Sprintf("lesskv.Part(%s, %s)", strings.TrimSpace(part), strings.TrimSpace(of))
	}
	return fmt.Sprintf("lesskv.Share(%s)", strconv.FormatFloat(b.Share, 'g', -1, 64))
}
