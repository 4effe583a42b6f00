package assemble

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/build"
)

// A level is an instruction set that ggml's CPU backend is compiled for, of several among which the runtime chooses. What each compiles to
// is one object of which nothing is visible but the entries, whose names end in the level's: they have the same functions, and each
// must call its own.
type level struct {
	Name  string
	ISA   []string
	Flags []string // beside those
}

// entries are the functions of ggml's CPU backend that others call: ggml's registry, and our own sources. levelChoice defines them.
var entries = []string{"ggml_backend_cpu_reg", "ggml_get_type_traits_cpu", "ggml_graph_plan", "ggml_graph_compute"}

// levelChoice is the source that chooses the level, with the header that it needs: in both trees, and compiled where there are levels.
const (
	levelChoice = less + "lesskv-ggml-level.cpp"
	levelHeader = less + "level_cpu.h"
)

func isLevelChoice(p string) bool { return p == levelChoice || p == levelHeader }

// entry is what the level calls an entry.
func (l level) entry(name string) string { return name + "_" + l.Name }

// unit makes the unit of a source one of the level.
func (l level) unit(u build.Unit) build.Unit {
	u.Flags = u.Flags[:len(u.Flags):len(u.Flags)]
	for _, e := range entries {
		u.Flags = append(u.Flags, "-D"+e+"="+l.entry(e))
	}
	u.Flags = slices.Concat(u.Flags, l.ISA, l.Flags)
	u.Level = l.Name
	return u
}

// findLevels chooses the levels. A portable runtime for x86-64 has two: the second is upstream's variant for CPUs with AVX-512 and VNNI,
// without which products with quantised weights gain little (GGML_CPU_ALL_VARIANTS has it as cascadelake). Tools that cannot keep them
// apart leave the first, and so do sanitizers, which look for faults that both have.
func (a *assembly) findLevels(ctx context.Context) {
	t := a.tools
	if a.Preset != "portable" || a.March != "" || t.GOOS != "linux" || t.GOARCH != "amd64" || a.recipe.sanitize != sanitizeNothing {
		return
	}
	v4 := []string{"-march=x86-64-v4", "-mavx512vnni"}
	flags, err := t.FindObjcopy(ctx, v4)
	if err != nil {
		a.logf("ggml's CPU backend is for x86-64-v3 alone, which is slower on a CPU with AVX-512: %v", err)
		return
	}
	a.recipe.levels = []level{{"v3", a.recipe.isa, flags}, {"v4", v4, flags}}
}

// combine makes one object of those of each level, in the place of these.
func (a *assembly) combine(ctx context.Context, b *build.Builder, units []build.Unit, objects []string) ([]build.Unit, []string, error) {
	var us []build.Unit
	var os []string
	of := map[string][]string{}
	for i, u := range units {
		if u.Level == "" {
			us, os = append(us, u), append(os, objects[i])
		} else {
			of[u.Level] = append(of[u.Level], objects[i])
		}
	}
	for _, l := range a.recipe.levels {
		keep := make([]string, len(entries))
		for i, e := range entries {
			keep[i] = l.entry(e)
		}
		u := build.Unit{Source: path.Join(ggmlLoops, l.Name)}
		object, err := b.Combine(ctx, u.Source, of[l.Name], keep)
		if err != nil {
			return nil, nil, err
		}
		us, os = append(us, u), append(os, object)
	}
	return us, os, nil
}

// flags are the instruction-set flags, of each level.
func (r *recipe) flags() string {
	if len(r.levels) == 0 {
		return strings.Join(r.isa, " ")
	}
	var all []string
	for _, l := range r.levels {
		all = append(all, strings.Join(l.ISA, " "))
	}
	return strings.Join(all, " and ")
}
