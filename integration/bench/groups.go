package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lesskv/lesskv/integration/worker"
)

// A group is what is measured in one run for the table of targets. Each compares only what ran side by side in it.
type group struct {
	name    string
	options func(o *Options)
	other   bool // compares two runtimes: it needs Options.OtherBuild
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
		{name: "llama-3.2-1b", options: func(o *Options) {
			o.Model, o.Methods = "llama-3.2-1b", methods("f16", "f16-fa", "q8_0-fa", "q4_0-fa", "sparse", "less")
			o.Contexts, o.PromptLimit = []int{0, 512, 2048, 8192, 32768}, 512
		}},
		{name: "smollm2-135m", options: func(o *Options) {
			o.Model, o.Methods = "smollm2-135m", methods("f16", "f16-fa", "q8_0-fa", "q4_0-fa", "sparse", "less")
			o.Contexts = []int{0, 512, 2048, 8192, 32768}
		}},
		{name: "granite-4.0-1b", options: func(o *Options) { // heads of 128 elements, four queries to a KV head
			o.Model, o.Methods = "granite-4.0-1b", methods("f16", "f16-fa", "q8_0-fa", "sparse", "less", "less-q8_0")
			o.Contexts, o.PromptLimit, o.Roofline = []int{0, 512, 32768}, 512, true
		}},
		{name: "llama-3.2-1b-prompt", options: func(o *Options) { // with the slots that 5% of 32k are
			o.Model, o.Methods = "llama-3.2-1b", methods("f16", "f16-fa", "q8_0-fa", "less")
			o.Contexts, o.Budget = []int{512, 2048, 8192}, worker.Budget{Tokens: 1638}
		}},
		{name: "llama-3.2-1b-slots", options: func(o *Options) {
			o.Model, o.Methods = "llama-3.2-1b", methods("f16", "f16-fa", "q8_0-fa", "less", "less-q8_0", "less-q4_0", "less-q8_0-bytes", "less-q4_0-bytes")
			o.Contexts, o.PromptLimit = []int{0, 32768}, 512
		}},
		{name: "smollm2-135m-slots", options: func(o *Options) {
			o.Model, o.Methods = "smollm2-135m", methods("less", "less-q8_0", "less-q4_0", "less-q8_0-bytes", "less-q4_0-bytes")
			o.Contexts = []int{32768}
		}},
		{name: "llama-3.2-1b-default", options: func(o *Options) { // what an app gets that sets nothing
			o.Model, o.Methods = "llama-3.2-1b", methods("q8_0-fa", "less")
			o.Contexts, o.Budget, o.Policy, o.SlotType = []int{0, 512, 32768}, worker.Budget{}, "peak", "q8_0"
		}},
		{name: "smollm2-135m-profile", options: func(o *Options) {
			o.Model, o.Methods, o.Profile = "smollm2-135m", methods("sparse", "less", "sparse-unequal"), true
			o.Contexts = []int{512, 8192, 32768}
		}},
		{name: "llama-3.2-1b-profile", options: func(o *Options) {
			o.Model, o.Methods, o.Profile = "llama-3.2-1b", methods("sparse", "less"), true
			o.Contexts = []int{512, 32768}
		}},
		{name: "llama-3.2-1b-roofline", options: func(o *Options) {
			o.Model, o.Methods, o.Roofline = "llama-3.2-1b", methods("q8_0-fa", "less", "less-q8_0"), true
			o.Contexts, o.PromptLimit = []int{0, 32768}, -1
		}},
		{name: "llama-3.2-1b-processes", options: func(o *Options) {
			o.Model, o.Methods, o.Processes = "llama-3.2-1b", methods("f16", "q8_0-fa", "q4_0-fa", "less"), true
			o.Contexts = []int{2048, 4096, 8192, 16384, 32768}
		}},
		{name: "llama-3.2-1b-sequences", options: func(o *Options) {
			o.Model, o.Methods, o.Sequences = "llama-3.2-1b", methods("f16", "f16-fa", "q8_0-fa", "q4_0-fa", "less"), 8
			o.Contexts, o.PromptLimit, o.Budget = []int{1024}, -1, worker.Budget{Tokens: 1024}
		}},
		{name: "gopher-5m-growth", options: func(o *Options) {
			o.Model, o.Contexts, o.Growth = "gopher-5m", []int{}, 65536
		}},
		{name: "llama-3.2-1b-portable", other: true, options: func(o *Options) {
			o.Model, o.Methods = "llama-3.2-1b", methods("q8_0-fa", "less")
			o.Contexts, o.PromptLimit = []int{512, 32768}, 512
		}},
	}
}

// MeasureTargets measures what the project promises, one group after the other, and keeps each group's result in dir. It does not measure
// again what is there; only names the group to measure, all if empty. Of o, only Dir, Threads, Repeat, Progress and OtherBuild count; without
// the last the groups that compare two runtimes are left out.
func MeasureTargets(ctx context.Context, dir, only string, o Options) error {
	i := slices.IndexFunc(groups(), func(g group) bool { return g.name == only })
	if only != "" && i < 0 {
		return fmt.Errorf("bench: no group %q among the targets: %w", only, ErrOption)
	}
	if only != "" && groups()[i].other && o.OtherBuild == "" {
		return fmt.Errorf("bench: group %s compares two runtimes: want the build folder of another one: %w", only, ErrOption)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, g := range groups() {
		path := filepath.Join(dir, g.name+".json")
		if _, err := Read(path); err == nil || only != "" && only != g.name || g.other && o.OtherBuild == "" {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		mine := Options{Dir: o.Dir, Threads: o.Threads, Repeat: o.Repeat, Progress: o.Progress,
			Budget: worker.Budget{Share: .05}, Policy: "h2o", SlotType: "f16"} // as their names say, and as they have been
		mine.Cell = 2 * time.Minute // seven rounds of a prompt for the fastest caches at 32k, fewer for slow ones
		if g.other {
			mine.OtherBuild = o.OtherBuild
		}
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
