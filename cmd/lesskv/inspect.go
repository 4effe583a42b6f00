package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/integration/wordwrap"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/describe"
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
	less, keeps := describe.Served(f, architecture)
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
	s.line("weights", "%s parameters, most of them %s, %s", count(elements), describe.Type(f.Tensors), memory.Size(bytes))
	if m == nil {
		s.line("memory", "%s", keeps)
		s.line("LESS", "%s", less)
		return s.w.Flush()
	}
	s.line("trained", "for %d tokens, with a vocabulary of %d", m.Context, m.Vocab)
	s.line("layers", "%d: %s", m.Layers, describe.Layers(m))
	s.line("heads", "%s", describe.Heads(m))
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
			each = append(each, fmt.Sprintf("%s in %v", memory.Size(bytes/256), t))
		}
	}
	s.line("a token takes", "%s of the full cache", strings.Join(each, ", "))
	const context = 32768
	full, err := memory.Full(m, context, gguf.F16)
	less, lessErr := memory.Less(m, memory.Cache{Context: context, Pinned: 1})
	if err == nil && lessErr == nil {
		s.line("32k tokens", "%s in full, %s with LESS by default and without an adapter: %d slots a head", memory.Size(full), memory.Size(less.Cache()), less.Budget)
	}
	if m.RecurrentBytes() > 0 {
		s.line("recurrent", "%s, whatever the text", memory.Size(m.RecurrentBytes()))
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

func inspectAdapter(w io.Writer, path, model string) error {
	a, err := weights.Read(path)
	if err != nil {
		return err
	}
	s := newSheet(w)
	s.line("file", "%s, an adapter", path)
	s.line("made for", "%q (%s), fingerprint %.16s…", printable(a.BaseName), printable(a.Architecture), a.Fingerprint)
	if a.Bytes() == 0 {
		s.line("phi and psi", "none: what is evicted is lost")
		if n := a.Trained.Heavy + a.Trained.Recent; n > 0 {
			s.line("tuned for", "policy %s, %d slots a head, micro-batches of %d tokens\n(run takes that policy by itself, that budget with -b %d)", printable(a.Trained.Policy), n, a.Trained.Ubatch, n)
		}
	} else {
		phi, psi, types := describe.Kernels(a)
		s.line("phi and psi", "phi of %d and psi of %d layers of %d, %s, %s, %s", phi, psi, a.Layers, describe.Sizes(a), strings.Join(types, " and "), memory.Size(a.Bytes()))
		if scales := describe.Scales(a); scales != nil {
			s.line("scales", "of %d query heads, %.1f to %.1f", len(scales), slices.Min(scales), slices.Max(scales))
		}
		t := a.Trained
		s.line("trained for", "policy %s, %d slots a head (%d heavy, %d recent),\nmicro-batches of %d tokens, texts of up to %d", printable(t.Policy), t.Heavy+t.Recent, t.Heavy, t.Recent, t.Ubatch, t.Context)
	}
	if a.Budget == nil {
		s.line("allocation", "none: every head has the same budget")
	} else {
		s.line("allocation", "%d heads; per cent of the slots above the least, by layer:\n%s", len(a.Budget), wordwrap.Words(describe.Allocation(a), 60))
	}
	if a.SlotTypes != nil {
		s.line("slots", "%s, where no types are given", strings.ReplaceAll(worker.FormatTypes(a.SlotTypes), ",", ", "))
	}
	name := "made by"
	for _, line := range describe.MadeBy(a.Description) {
		s.line(name, "%s", printable(line))
		name = ""
	}
	if errs := describe.Validation(a.Description); errs != nil {
		s.line("validation", "error by layer, sparse only being 1:\n%s", wordwrap.Words(errs, 60))
	}
	fits, err := fitsModel(path, model, a)
	s.line("model", "%s", fits)
	return errors.Join(s.w.Flush(), err)
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

// printable replaces what a file may have in its texts and a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
