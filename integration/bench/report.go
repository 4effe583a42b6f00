package bench

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/lesskv/lesskv/weights/outfile"
)

// ErrResult is what errors of Read wrap where a file is none that Write wrote.
var ErrResult = errors.New("not a result of bench")

// Write writes the result as JSON.
func (r *Result) Write(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return outfile.WriteBytes(path, append(b, '\n'))
}

const maxContext = 1 << 24 // tokens: more than any model has

// Read reads what Write wrote. It fails with ErrResult on what Run cannot have measured.
func Read(path string) (*Result, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Result)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("bench: %s: %w: %w", path, err, ErrResult)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("bench: %s: %w: %w", path, err, ErrResult)
	}
	return r, nil
}

// check tells what tables and sums could not be made of.
func (r *Result) check() error {
	if r.Ubatch < 0 || r.Threads < 0 || len(r.Samples) > 0 && r.Ubatch == 0 {
		return fmt.Errorf("micro-batches of %d tokens, %d threads: want 1 at least", r.Ubatch, r.Threads)
	}
	for i, s := range r.Samples {
		if s.Context < 0 || s.Context > maxContext || s.Tokens < 1 || !(s.Seconds > 0) {
			return fmt.Errorf("sample %d: %d tokens in %v seconds at a context of %d: want more than none of both, and a context of 0 to %d", i, s.Tokens, s.Seconds, s.Context, maxContext)
		}
	}
	return nil
}

// Table prints speeds and bytes: medians, in parentheses the slowest and the fastest round; ratios round by round to the
// fastest unmodified method.
func (r *Result) Table(w io.Writer) error {
	var text bytes.Buffer
	r.table(&text)
	_, err := w.Write(text.Bytes())
	return err
}

// kernels says what phi and psi are.
func (r *Result) kernels() string {
	if r.Rank == 0 {
		return "without phi and psi"
	}
	return fmt.Sprintf("%s, phi and psi in %s", cmp.Or(r.Sizes, fmt.Sprintf("rank %d, hidden size %d", r.Rank, r.Hidden)), r.Kernels)
}

func (r *Result) table(w *bytes.Buffer) {
	device := ""
	if r.GPU > 0 {
		device = fmt.Sprintf(", %d layers on a device", r.GPU)
	}
	if r.Device {
		device += ", LESS on the device"
	}
	fmt.Fprintf(w, "%s on %s (%s), %d threads, micro-batches of %d%s\n", r.Model, r.CPU, r.System, r.Threads, r.Ubatch, device)
	if tools := r.Tools(); tools != "" {
		fmt.Fprintln(w, tools)
	}
	if r.Other != nil {
		fmt.Fprintf(w, "methods that end in %s: the same on another runtime, %s\n", otherSuffix, cmp.Or(r.Other.Tools(), "which does not say how it was compiled"))
	}
	fmt.Fprintf(w, "LESS: %s, %d slots per KV head in %s, %s\n", r.Policy, r.Budget, r.Slots, r.kernels())
	for _, phase := range []Phase{Prompt, Decode, Together} {
		if !slices.ContainsFunc(r.Samples, func(s Sample) bool { return s.Phase == phase }) {
			continue
		}
		fmt.Fprintf(w, "\n%s, tokens/s\n", map[Phase]string{Prompt: "prompt, its last micro-batch", Decode: "decoding",
			Together: fmt.Sprintf("%d sequences decoding together, all of their tokens", r.Sequences)}[phase])
		r.grid(w, func(method string, context int) string {
			c := Cell{method, context, phase}
			s := r.Speed(c)
			if s.N == 0 {
				return "-"
			}
			text := fmt.Sprintf("%.1f (%.1f-%.1f)", s.Median, s.Min, s.Max)
			if x := r.Ratio(c, r.Best(context, phase)); x.N > 0 {
				text += fmt.Sprintf(" %.2fx", x.Median)
			}
			return text
		})
	}
	if len(r.Memory) > 0 && len(r.Samples) > 0 {
		fmt.Fprintf(w, "\ncache of so many tokens in MiB, peak of a process whose context is %d in MiB\n", slices.Max(r.Contexts()))
		r.grid(w, func(method string, context int) string {
			m, ok := r.memory(method, context)
			if !ok {
				return "-"
			}
			return fmt.Sprintf("%.1f, %.0f", mib(m.Cache), mib(m.Peak))
		})
	}
	if len(r.Processes) > 0 {
		fmt.Fprint(w, "\npeak of a process that is opened for so many tokens of context, in MiB\n")
		r.grid(w, func(method string, context int) string { return fmt.Sprintf("%.0f", mib(r.process(method, context))) })
	}
	r.roofline(w)
	if n := r.Node; n != nil {
		fmt.Fprintf(w, "\nattention node in a prompt: %.1f GFLOPS, the runtime's matrix product of its shapes, measured once, %.1f\n", n.Node, n.Matmul)
	}
	if g := r.Growth; g != nil {
		fmt.Fprintf(w, "\npeak after %d tokens %.2f MiB, after %d %.2f MiB (%d slots per KV head)\n", g.From, mib(g.Before), g.To, mib(g.After), g.Budget)
	}
	r.phases(w)
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// grid prints a line for each method and a column for each context.
func (r *Result) grid(w io.Writer, cell func(method string, context int) string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\t")
	for _, c := range r.Contexts() {
		fmt.Fprintf(tw, "%d\t", c)
	}
	fmt.Fprintln(tw)
	for _, m := range r.Methods() {
		fmt.Fprintf(tw, "%s\t", m)
		for _, c := range r.Contexts() {
			fmt.Fprintf(tw, "%s\t", cell(m, c))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

// phaseNames are the phases in the order of enum lesskv_phase.
var phaseNames = []string{"slots", "micro-batch", "softmax", "phi", "score", "policy", "fold", "move"}

// phases prints where LESS's time went: microseconds of a token, over all layers and threads.
func (r *Result) phases(w io.Writer) {
	type key struct {
		Cell
		name string
	}
	all := map[key][]float64{}
	var cells []Cell
	for _, s := range r.Samples {
		c := Cell{s.Method, s.Context, s.Phase}
		if s.Phases == nil {
			continue
		}
		if !slices.Contains(cells, c) {
			cells = append(cells, c)
		}
		for name, seconds := range s.Phases {
			all[key{c, name}] = append(all[key{c, name}], seconds/float64(s.Tokens)*1e6)
		}
		all[key{c, ""}] = append(all[key{c, ""}], s.Seconds/float64(s.Tokens)*1e6)
	}
	if len(cells) == 0 {
		return
	}
	fmt.Fprintf(w, "\nwhere LESS's time goes: microseconds of a token, all layers, the threads' sum; last the whole token's on the clock, times %d threads\n", r.Threads)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\t\t\t")
	for _, name := range phaseNames {
		fmt.Fprintf(tw, "%s\t", name)
	}
	fmt.Fprintln(tw, "token\t")
	for _, c := range cells {
		fmt.Fprintf(tw, "%s\t%s\t%d\t", c.Method, c.Phase, c.Context)
		for _, name := range phaseNames {
			fmt.Fprintf(tw, "%.1f\t", median(all[key{c, name}]))
		}
		fmt.Fprintf(tw, "%.0f\t\n", median(all[key{c, ""}])*float64(r.Threads))
	}
	tw.Flush()
}
