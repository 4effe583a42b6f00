package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/outfile"
)

// A group is what is measured in one run for the table of targets. Each compares only what ran side by side in it.
type group struct {
	name    string
	options func(o *Options)
}

func groups() []group {
	methods := func(names ...string) []Method {
		m, err := FindMethods(names)
		if err != nil {
			panic(err)
		}
		return m
	}
	return []group{
		{"llama-3.2-1b", func(o *Options) {
			o.Model, o.Methods = "llama-3.2-1b", methods("f16", "f16-fa", "q8_0-fa", "q4_0-fa", "sparse", "less")
			o.Contexts, o.PromptLimit = []int{0, 512, 2048, 8192, 32768}, 512
		}},
		{"smollm2-135m", func(o *Options) {
			o.Model, o.Methods = "smollm2-135m", methods("f16", "f16-fa", "q8_0-fa", "q4_0-fa", "sparse", "less")
			o.Contexts = []int{0, 512, 2048, 8192, 32768}
		}},
		{"llama-3.2-1b-slots", func(o *Options) {
			o.Model, o.Methods = "llama-3.2-1b", methods("f16", "f16-fa", "q8_0-fa", "less", "less-q8_0", "less-q4_0", "less-q8_0-bytes", "less-q4_0-bytes")
			o.Contexts, o.PromptLimit = []int{0, 32768}, 512
		}},
		{"smollm2-135m-slots", func(o *Options) {
			o.Model, o.Methods = "smollm2-135m", methods("less", "less-q8_0", "less-q4_0", "less-q8_0-bytes", "less-q4_0-bytes")
			o.Contexts = []int{32768}
		}},
		{"llama-3.2-1b-default", func(o *Options) { // what an app gets that sets nothing
			o.Model, o.Methods = "llama-3.2-1b", methods("q8_0-fa", "less")
			o.Contexts, o.Budget, o.Policy, o.SlotType = []int{0, 512, 32768}, worker.Budget{}, "peak", "q8_0"
		}},
		{"smollm2-135m-profile", func(o *Options) {
			o.Model, o.Methods, o.Profile = "smollm2-135m", methods("sparse", "less", "sparse-unequal"), true
			o.Contexts = []int{512, 8192, 32768}
		}},
		{"llama-3.2-1b-profile", func(o *Options) {
			o.Model, o.Methods, o.Profile = "llama-3.2-1b", methods("sparse", "less"), true
			o.Contexts, o.Repeat = []int{512, 32768}, 3
		}},
		{"llama-3.2-1b-processes", func(o *Options) {
			o.Model, o.Methods, o.Processes = "llama-3.2-1b", methods("f16", "q8_0-fa", "q4_0-fa", "less"), true
			o.Contexts = []int{2048, 4096, 8192, 16384, 32768}
		}},
		{"llama-3.2-1b-sequences", func(o *Options) {
			o.Model, o.Methods, o.Sequences = "llama-3.2-1b", methods("f16", "f16-fa", "q8_0-fa", "q4_0-fa", "less"), 8
			o.Contexts, o.PromptLimit, o.Budget = []int{1024}, -1, worker.Budget{Tokens: 1024}
		}},
		{"gopher-5m-growth", func(o *Options) {
			o.Model, o.Contexts, o.Growth = "gopher-5m", []int{}, 65536
		}},
	}
}

// A target is a line of the table.
type target struct {
	measure string
	want    float64
	most    bool // want is the most that it may be, not the least
	unit    string
	group   string
	value   func(r *Result) Spread
}

func targets() []target {
	at := func(method string, context int, phase Phase) Cell { return Cell{method, context, phase} }
	list := []target{
		{"decoding at 32k, llama-3.2-1b Q4_0, budget 5%, f16 slots: against the unmodified runtime with an empty cache, the best of its caches", 0.92, false, "x", "llama-3.2-1b", func(r *Result) Spread {
			return r.Ratio(at("less", 32768, Decode), r.Best(0, Decode))
		}},
		{"the same, q8_0 slots", 0.95, false, "x", "llama-3.2-1b-slots", func(r *Result) Spread {
			return r.Ratio(at("less-q8_0", 32768, Decode), r.Best(0, Decode))
		}},
		{"the same, f16 slots, against the unmodified runtime at 32k, the best of f16, f16 with flash attention, q8_0 and q4_0", 5, false, "x", "llama-3.2-1b", func(r *Result) Spread {
			return r.Ratio(at("less", 32768, Decode), r.Best(32768, Decode))
		}},
		{"decoding at 32k, llama-3.2-1b Q4_0, with the default's policy, slots and budget: against the unmodified runtime's q8_0 with flash attention at 32k", 5, false, "x", "llama-3.2-1b-default", func(r *Result) Spread {
			return r.Ratio(at("less", 32768, Decode), r.Best(32768, Decode))
		}},
		{"decoding at 32k, smollm2-135m Q4_0, budget 5%, against the unmodified runtime at 32k, the best of its caches", 12, false, "x", "smollm2-135m", func(r *Result) Spread {
			return r.Ratio(at("less", 32768, Decode), r.Best(32768, Decode))
		}},
		{"prompt of 32k tokens, smollm2-135m, budget 5%, summed up from micro-batches, against the unmodified runtime, the best of its caches", 9, false, "x", "smollm2-135m", func(r *Result) Spread {
			base := "f16"
			for _, m := range Methods() {
				if m.Tree == worker.Unmodified && r.Whole(m.Name, 32768).Median > r.Whole(base, 32768).Median {
					base = m.Name
				}
			}
			return r.WholeRatio("less", base, 32768)
		}},
		{"decoding at 32k, smollm2-135m: LESS's time against sparse-only's at the same budget", 1.05, true, "x", "smollm2-135m", func(r *Result) Spread {
			return r.Ratio(at("sparse", 32768, Decode), at("less", 32768, Decode))
		}},
		{"the same, llama-3.2-1b", 1.05, true, "x", "llama-3.2-1b", func(r *Result) Spread {
			return r.Ratio(at("sparse", 32768, Decode), at("less", 32768, Decode))
		}},
	}
	for _, shape := range []string{"llama-3.2-1b", "smollm2-135m"} {
		for _, slots := range []string{"q8_0", "q4_0"} {
			list = append(list, target{"decoding at 32k, " + shape + ": " + slots + " slots against as many in f16", 1, false, "x", shape + "-slots", func(r *Result) Spread {
				return r.Ratio(at("less-"+slots, 32768, Decode), at("less", 32768, Decode))
			}}, target{"the same, as many as take the bytes of those in f16", 1, false, "x", shape + "-slots", func(r *Result) Spread {
				return r.Ratio(at("less-"+slots+"-bytes", 32768, Decode), at("less", 32768, Decode))
			}})
		}
	}
	return append(list, []target{
		{"decoding at 32k, smollm2-135m, sparse only: time of budgets of 0.25 and 1.75 times the mean, head by head, against that of equal ones", 1.02, true, "x", "smollm2-135m-profile", func(r *Result) Spread {
			return r.Ratio(at("sparse", 32768, Decode), at("sparse-unequal", 32768, Decode))
		}},
		{"prompt, its last micro-batch at 32k: the same", 1.02, true, "x", "smollm2-135m-profile", func(r *Result) Spread {
			return r.Ratio(at("sparse", 32768, Prompt), at("sparse-unequal", 32768, Prompt))
		}},
		{"prompt of 512 tokens, nothing evicted, smollm2-135m: LESS on against unmodified, the best of its caches", 1, false, "x", "smollm2-135m", func(r *Result) Spread {
			return r.Ratio(at("less", 512, Prompt), r.Best(512, Prompt))
		}},
		{"decoding at 512, the same", 1, false, "x", "smollm2-135m", func(r *Result) Spread {
			return r.Ratio(at("less", 512, Decode), r.Best(512, Decode))
		}},
		{"prompt of 512 tokens, llama-3.2-1b", 1, false, "x", "llama-3.2-1b", func(r *Result) Spread {
			return r.Ratio(at("less", 512, Prompt), r.Best(512, Prompt))
		}},
		{"decoding at 512, the same", 1, false, "x", "llama-3.2-1b", func(r *Result) Spread {
			return r.Ratio(at("less", 512, Decode), r.Best(512, Decode))
		}},
		{"LESS's attention node in a prompt, smollm2-135m: floating-point rate against the runtime's own matmul of the same shapes", 0.6, false, "x", "smollm2-135m-profile", node},
		{"the same, llama-3.2-1b", 0.6, false, "x", "llama-3.2-1b-profile", node},
		{"8 sequences decoding together, llama-3.2-1b, 1k tokens each, 1,024 slots: tokens of all a second against one's", 3, false, "x", "llama-3.2-1b-sequences", func(r *Result) Spread {
			return r.Ratio(at("less", 1024, Together), at("less", 1024, Decode))
		}},
		{"the same against the unmodified runtime's 8, the best of its caches", 1, false, "x", "llama-3.2-1b-sequences", func(r *Result) Spread {
			return r.Ratio(at("less", 1024, Together), r.Best(1024, Together))
		}},
		{"total bytes at 32k, llama-3.2-1b, budget 5%, phi and psi included, against the full f16 cache", 0.07, true, "x", "llama-3.2-1b", func(r *Result) Spread {
			m, ok := r.memory("less", 32768)
			if !ok {
				return Spread{}
			}
			return spread([]float64{float64(m.Cache) / float64(m.Full)})
		}},
		{"growth of peak memory from 2k to 64k tokens of context, gopher-5m", 2, true, " MiB", "gopher-5m-growth", func(r *Result) Spread {
			if r.Growth == nil {
				return Spread{}
			}
			return spread([]float64{mib(r.Growth.After - r.Growth.Before)})
		}},
	}...)
}

func node(r *Result) Spread {
	if r.Node == nil {
		return Spread{}
	}
	return spread([]float64{r.Node.Node / r.Node.Matmul})
}

// The marks that WriteTargets puts its table between.
const (
	tableBegin = "<!-- lesskv bench: the table below is written by it -->"
	tableEnd   = "<!-- lesskv bench: end -->"
)

// MeasureTargets measures what the project promises, one group after the other, and keeps each group's result in dir. It does not measure
// again what is there; only names the group to measure, all if empty. Of o, only Dir, Threads, Repeat and Progress count.
func MeasureTargets(ctx context.Context, dir, only string, o Options) error {
	if only != "" && !slices.ContainsFunc(groups(), func(g group) bool { return g.name == only }) {
		return fmt.Errorf("bench: no group %q among the targets: %w", only, ErrOption)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, g := range groups() {
		path := filepath.Join(dir, g.name+".json")
		if _, err := Read(path); err == nil || only != "" && only != g.name {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		mine := Options{Dir: o.Dir, Threads: o.Threads, Repeat: o.Repeat, Progress: o.Progress,
			Budget: worker.Budget{Share: .05}, Policy: "h2o", SlotType: "f16"} // as their names say, and as they have been
		g.options(&mine)
		r, err := Run(ctx, mine)
		if err != nil {
			return err
		}
		if err := r.Write(path); err != nil {
			return err
		}
	}
	return nil
}

// readTargets reads the results of the groups that were measured.
func readTargets(dir string) (map[string]*Result, error) {
	results := map[string]*Result{}
	for _, g := range groups() {
		r, err := Read(filepath.Join(dir, g.name+".json"))
		switch {
		case err == nil:
			results[g.name] = r
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return results, nil
}

// TargetsPage is the table of targets and, group by group, what was measured, by the results that are in dir. It measures nothing.
func TargetsPage(dir string) ([]byte, error) {
	results, err := readTargets(dir)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("| measure | target | measured: median (least to most, rounds) | |\n|---|---|---|---|\n")
	for _, t := range targets() {
		value, verdict := "not measured", ""
		if r := results[t.group]; r != nil {
			if s := t.value(r); s.N > 0 {
				value = fmt.Sprintf("%.3g%s (%.3g to %.3g, %d)", s.Median, t.unit, s.Min, s.Max, s.N)
				verdict = "met"
				if (s.Median < t.want) != t.most && s.Median != t.want {
					verdict = "**missed**"
				}
			}
		}
		sign := "≥"
		if t.most {
			sign = "≤"
		}
		fmt.Fprintf(&b, "| %s | %s %g%s | %s | %s |\n", t.measure, sign, t.want, t.unit, value, verdict)
	}
	for _, g := range groups() {
		if r := results[g.name]; r != nil {
			fmt.Fprintf(&b, "\n### %s\n\n```\n", g.name)
			if err := r.Table(&b); err != nil {
				return nil, err
			}
			b.WriteString("```\n")
		}
	}
	return b.Bytes(), nil
}

// WriteTargets puts TargetsPage between the marks of a file, and draws the pictures beside dir: DIR.png and DIR-context.png.
func WriteTargets(dir, into string) error {
	results, err := readTargets(dir)
	if err != nil {
		return err
	}
	text, err := TargetsPage(dir)
	if err != nil {
		return err
	}
	var drawn []*Result
	for _, name := range []string{"llama-3.2-1b", "smollm2-135m"} {
		if r := results[name]; r != nil {
			drawn = append(drawn, r)
		}
	}
	base := strings.TrimSuffix(dir, "/")
	if len(drawn) > 0 {
		if err := Plot(base+".png", drawn...); err != nil {
			return err
		}
	}
	if speed, memory := results["llama-3.2-1b"], results["llama-3.2-1b-processes"]; speed != nil && memory != nil {
		if err := PlotContext(base+"-context.png", speed, memory); err != nil {
			return err
		}
	}
	return replace(into, string(text))
}

// CheckTargets tells before anything is measured whether what is in dir can be read, and the table put into a file.
func CheckTargets(dir, into string) error {
	if _, err := readTargets(dir); err != nil {
		return err
	}
	if into == "" {
		return nil
	}
	if _, _, err := marked(into); err != nil {
		return err
	}
	if err := unix.Access(into, unix.W_OK); err != nil {
		return &fs.PathError{Op: "write", Path: into, Err: err}
	}
	return nil
}

// marked returns what is around the marks of a file.
func marked(path string) (before, after string, err error) {
	old, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	before, rest, ok := strings.Cut(string(old), tableBegin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return "", "", fmt.Errorf("bench: %s: want the marks %q and %q: %w", path, tableBegin, tableEnd, ErrOption)
	}
	return before, after, nil
}

// replace puts text between the marks of a file.
func replace(path, text string) error {
	before, after, err := marked(path)
	if err != nil {
		return err
	}
	return outfile.WriteBytes(path, []byte(between(before, text, after)))
}

// between is a file with a text between its marks.
func between(before, text, after string) string {
	return before + tableBegin + "\n\n" + text + "\n" + tableEnd + after
}
