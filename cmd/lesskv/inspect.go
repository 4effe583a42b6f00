package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/docs"
	"github.com/lesskv/lesskv/integration/wordwrap"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

func newInspect() *cobra.Command {
	var model string
	cmd := &cobra.Command{
		Use:   "inspect [-m MODEL] FILE",
		Short: "Say what a model or an adapter is, and whether LESS serves it",
		Long: `Say what a GGUF file is. For a model: its layers and heads, its kind of memory,
whether LESS serves it, and the bytes of a token and a slot. For an adapter: for
which model and use it was made, and whether it fits the model of -m (default:
the one beside it, MODEL.gguf for MODEL.lesskv.gguf).

Only the file's header and, of a model, its small tensors are read.`,
		Example: `  lesskv inspect model.gguf
  lesskv inspect -m model.gguf trained.lesskv.gguf`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("want one file: FILE.gguf")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Stat(args[0]); err != nil {
				return err
			}
			if weights.IsAdapter(args[0]) {
				return inspectAdapter(cmd.OutOrStdout(), args[0], model)
			}
			if model != "" {
				return usageError{fmt.Errorf("--model %s: %s is no adapter, which it would be compared with", model, args[0])}
			}
			return inspectModel(cmd.OutOrStdout(), args[0])
		},
	}
	addModel(cmd.Flags(), &model, " that an adapter is to fit")
	return cmd
}

// A sheet is lines of a name and what is said of it, 80 columns wide.
type sheet struct{ w *tabwriter.Writer }

func newSheet(w io.Writer) sheet { return sheet{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (s sheet) line(name, format string, args ...any) {
	for _, text := range strings.Split(fmt.Sprintf(format, args...), "\n") {
		for _, part := range strings.Split(wordwrap.Words(strings.Split(text, " "), 64), "\n") {
			fmt.Fprintf(s.w, "%s\t%s\n", name, part)
			name = ""
		}
	}
}

// served says whether LESS serves a model of an architecture, and what it keeps of a text, as docs/models.md has it. Latent attention shows
// in the metadata, whatever the architecture.
func served(f *gguf.File, architecture string) (less, keeps string) {
	if f.Has(architecture + ".attention.key_length_mla") {
		architecture = "deepseek2"
	}
	all := docs.Architectures()
	if i := slices.IndexFunc(all, func(a docs.Architecture) bool { return a.Name == architecture }); i >= 0 {
		return all[i].LESS, all[i].Memory
	}
	return "yes, if its layers attend in the usual way: the runtime looks while it loads the model", "not known here"
}

func inspectModel(w io.Writer, path string) error {
	f, err := gguf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	architecture, err := gguf.Get[string](f, "general.architecture")
	if err != nil {
		return err
	}
	less, keeps := served(f, architecture)
	refused := strings.HasPrefix(less, "no")
	m, err := weights.ReadModel(path)
	if err != nil && !refused {
		return err
	}
	s := newSheet(w)
	s.line("file", "%s, a model", path)
	if m != nil && m.Name != "" {
		s.line("name", "%s", printable(m.Name))
	}
	s.line("architecture", "%s", printable(architecture))
	var bytes, elements uint64
	for _, t := range f.Tensors {
		bytes += uint64(t.Size)
		elements += t.Elements()
	}
	s.line("weights", "%s parameters, most of them %s, %s", count(elements), mostOf(f.Tensors), mib(bytes))
	if m == nil {
		s.line("memory", "%s", keeps)
		s.line("LESS", "%s", less)
		return s.w.Flush()
	}
	s.line("trained", "for %d tokens, with a vocabulary of %d", m.Context, m.Vocab)
	s.line("layers", "%d: %s", m.Layers, layersOf(m))
	s.line("heads", "%s", headsOf(m))
	s.line("memory", "%s", keeps)
	s.line("LESS", "%s", less)
	if !refused {
		inspectBytes(s, m)
		s.line("adapter", "%s", besideModel(path, m))
	}
	s.line("fingerprint", "%s", m.Fingerprint)
	return s.w.Flush()
}

// inspectBytes says what a token and a slot of a model take.
func inspectBytes(s sheet, m *weights.Model) {
	var each []string
	for _, t := range []gguf.Type{gguf.F16, gguf.Q8_0, gguf.Q4_0} {
		if bytes, err := memory.Full(m, 256, t); err == nil {
			each = append(each, fmt.Sprintf("%s in %v", size(bytes/256), t))
		}
	}
	s.line("a token takes", "%s of the full cache", strings.Join(each, ", "))
	const context = 32768
	full, err := memory.Full(m, context, gguf.F16)
	key, value := memory.SlotTypes(m)
	less, lessErr := memory.Less(m, memory.Cache{Context: context, Pinned: 1, Key: key, Value: value})
	if err == nil && lessErr == nil {
		s.line("32k tokens", "%s in full, %s with LESS by default and without an adapter: %d slots a head", size(full), size(less.Cache()), less.Budget)
	}
	if m.RecurrentBytes() > 0 {
		s.line("recurrent", "%s, whatever the text", size(m.RecurrentBytes()))
	}
}

// besideModel says whether there is an adapter where the runtime looks for one.
func besideModel(path string, m *weights.Model) string {
	beside := besideName(path)
	a, err := weights.Read(beside)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "none beside it: sparse only; lesskv train makes one"
	case err != nil:
		return fmt.Sprintf("%v", err)
	}
	if _, err := weights.Check(a, m); err != nil {
		return fmt.Sprintf("%s does not fit:\n%v", beside, err)
	}
	return beside + " fits"
}

// layersOf counts the layers by what they do.
func layersOf(m *weights.Model) string {
	var all, windowed, shared, recurrent, neither int
	window := 0
	for i := range m.Layers {
		switch {
		case m.Attends(i) && m.Shares(i):
			shared++
		case m.Attends(i) && m.Window(i) > 0:
			windowed++
			window = m.Window(i)
		case m.Attends(i):
			all++
		case m.Recurrent(i):
			recurrent++
		default:
			neither++
		}
		if m.Attends(i) && m.Recurrent(i) {
			recurrent++
		}
	}
	var parts []string
	add := func(n int, text string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, text))
		}
	}
	add(all, "attend to the whole text")
	add(windowed, fmt.Sprintf("in a window of %d tokens", window))
	add(shared, "attend to another's keys and values")
	add(recurrent, "recurrent")
	add(neither, "without either")
	return strings.Join(parts, ", ")
}

// headsOf describes the heads, layer by layer where they differ.
func headsOf(m *weights.Model) string {
	describe := func(i int) string {
		s := m.Layer(i)
		if !m.Attends(i) {
			return "none"
		}
		text := fmt.Sprintf("%d query heads, %d of keys and values, %d wide", s.Heads, s.HeadsKV, s.KeyLength)
		if s.ValueLength != s.KeyLength {
			text = fmt.Sprintf("%d query heads, %d of keys %d wide and values %d wide", s.Heads, s.HeadsKV, s.KeyLength, s.ValueLength)
		}
		return text
	}
	runs := group(m.Layers, describe)
	if len(runs) == 1 {
		return "each layer has " + describe(0)
	}
	var lines []string
	for text, layers := range runs {
		lines = append(lines, fmt.Sprintf("%s: %s", layers, text))
	}
	slices.SortFunc(lines, func(a, b string) int { return firstNumber(a) - firstNumber(b) })
	return strings.Join(lines, "\n")
}

// group collects layers of which the same is said: "layers 0 to 4, 6".
func group(n int, describe func(int) string) map[string]string {
	runs := map[string][][2]int{}
	for i := range n {
		text := describe(i)
		r := runs[text]
		if len(r) > 0 && r[len(r)-1][1] == i-1 {
			r[len(r)-1][1] = i
			continue
		}
		runs[text] = append(r, [2]int{i, i})
	}
	out := map[string]string{}
	for text, r := range runs {
		var parts []string
		for _, ab := range r {
			part := strconv.Itoa(ab[0])
			if ab[1] > ab[0] {
				part += fmt.Sprintf("-%d", ab[1])
			}
			parts = append(parts, part)
		}
		out[text] = "layers " + strings.Join(parts, ", ")
	}
	return out
}

func firstNumber(s string) int {
	n, _ := strconv.Atoi(regexp.MustCompile(`\d+`).FindString(s))
	return n
}

func inspectAdapter(w io.Writer, path, model string) error {
	a, err := weights.Read(path)
	if err != nil {
		return err
	}
	s := newSheet(w)
	s.line("file", "%s, an adapter", path)
	s.line("made for", "%q (%s), fingerprint %.16s…", printable(a.BaseName), printable(a.Architecture), a.Fingerprint)
	phi, psi := 0, 0
	types := map[string]bool{}
	for i := range a.Kernels {
		k := &a.Kernels[i]
		if k.HasPhi() {
			phi++
		}
		if k.HasPsi() {
			psi++
			types[k.Psi[0].Type.String()] = true
		}
	}
	if a.Bytes() == 0 {
		s.line("phi and psi", "none: what is evicted is lost")
	} else {
		s.line("phi and psi", "phi of %d and psi of %d layers of %d, rank %d, hidden size %d, %s, %s", phi, psi, a.Layers, a.Rank, a.Hidden, strings.Join(slices.Sorted(maps.Keys(types)), " and "), size(a.Bytes()))
		if scales := scalesOf(a); scales != nil {
			s.line("scales", "of %d query heads, %.1f to %.1f", len(scales), slices.Min(scales), slices.Max(scales))
		}
		t := a.Trained
		s.line("trained for", "policy %s, %d slots a head (%d heavy, %d recent),\nmicro-batches of %d tokens, texts of up to %d", printable(t.Policy), t.Heavy+t.Recent, t.Heavy, t.Recent, t.Ubatch, t.Context)
	}
	s.line("allocation", "%s", allocationOf(a))
	if made, validation := madeBy(a.Description); made != "" {
		s.line("made by", "%s", made)
		if validation != "" {
			s.line("validation", "%s", validation)
		}
	}
	fits, err := fitsModel(path, model, a)
	s.line("model", "%s", fits)
	return errors.Join(s.w.Flush(), err)
}

// scalesOf returns what query heads add to the logit of the low-rank part.
func scalesOf(a *weights.Adapter) (scales []float32) {
	for i := range a.Kernels {
		scales = append(scales, a.Kernels[i].Scale.Values...)
	}
	return scales
}

// allocationOf says how an adapter spreads a budget.
func allocationOf(a *weights.Adapter) string {
	if a.Budget == nil {
		return "none: every head has the same budget"
	}
	var sum float64
	for _, w := range a.Budget {
		sum += float64(w)
	}
	var parts []string
	head := 0
	for i := range a.Layers {
		n := a.Layer(i).HeadsKV
		var layer float64
		for _, w := range a.Budget[head : head+n] {
			layer += float64(w)
		}
		head += n
		if n > 0 && sum > 0 {
			parts = append(parts, fmt.Sprintf("%.1f", 100*layer/sum))
		} else {
			parts = append(parts, "-")
		}
	}
	return fmt.Sprintf("%d heads; per cent of the slots above the least, by layer:\n%s", len(a.Budget), wordwrap.Words(parts, 60))
}

var (
	trainedLine    = regexp.MustCompile(`(?m)^made by (.*?), with (\{.*\})$`)
	validationLine = regexp.MustCompile(`(?m)^layer (\d+): validation error ([0-9.]+) of sparse only's$`)
)

// madeBy reads a description: how an adapter was made, and what validation found layer by layer.
func madeBy(description string) (made, validation string) {
	var errs []string
	for _, v := range validationLine.FindAllStringSubmatch(description, -1) {
		errs = append(errs, v[1]+": "+v[2])
	}
	if errs != nil {
		validation = "error by layer, sparse only being 1:\n" + wordwrap.Words(errs, 60)
	}
	found := trainedLine.FindAllStringSubmatch(description, -1)
	if found == nil {
		first, _, _ := strings.Cut(description, "\n")
		return printable(first), validation
	}
	var lines []string
	for _, f := range found {
		lines = append(lines, printable(f[1]))
	}
	var options struct {
		Rate    float64
		Steps   int
		Seed    int
		Budgets []int
	}
	if json.Unmarshal([]byte(found[0][2]), &options) == nil {
		lines = append(lines, fmt.Sprintf("budgets %v, at most %d steps of %g, seed %d", options.Budgets, options.Steps, options.Rate, options.Seed))
	}
	return strings.Join(lines, "\n"), validation
}

// fitsModel says whether an adapter fits a model: the one named, or the one beside it. The error is the reason why the one named is none.
func fitsModel(path, model string, a *weights.Adapter) (string, error) {
	named := model != ""
	if !named {
		model = strings.TrimSuffix(path, ".lesskv.gguf") + ".gguf"
		if _, err := os.Stat(model); err != nil || model == path {
			return "none beside it to compare with: name one with -m", nil
		}
	}
	m, err := weights.ReadModel(model)
	if err != nil {
		if !named {
			return fmt.Sprintf("%v", err), nil
		}
		return "can't be compared", err
	}
	warnings, err := weights.Check(a, m)
	switch {
	case err != nil && named:
		return "does not fit " + model, fmt.Errorf("%s does not fit %s: %w", path, model, err)
	case err != nil:
		return fmt.Sprintf("does not fit %s:\n%v", model, err), nil
	}
	return strings.Join(append([]string{"fits " + model}, warnings...), "\n"), nil
}

// mostOf names the type that most bytes of some tensors have.
func mostOf(tensors []gguf.Info) string {
	bytes := map[gguf.Type]int64{}
	most := gguf.F32
	for _, t := range tensors {
		if bytes[t.Type] += t.Size; bytes[t.Type] >= bytes[most] {
			most = t.Type
		}
	}
	return most.String()
}

// count writes a number in thousands, millions and so on.
func count(n uint64) string {
	x, unit := float64(n), ""
	for _, u := range []string{" thousand", " million", " billion"} {
		if x >= 1000 {
			x, unit = x/1000, u
		}
	}
	return strconv.FormatFloat(x, 'f', 1, 64) + unit
}

// size writes bytes in KiB, MiB or GiB.
func size(bytes uint64) string {
	x, unit := float64(bytes)/(1<<10), "KiB"
	for _, u := range []string{"MiB", "GiB"} {
		if x >= 1024 {
			x, unit = x/1024, u
		}
	}
	return fmt.Sprintf("%.4g %s", x, unit)
}

// printable replaces what a file may have in its texts and a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
