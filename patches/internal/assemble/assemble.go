// Package assemble makes the runtime: it takes the pinned sources, applies the two series, adds the sources of cgo/,
// compiles, and links a Go module to the result.
package assemble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/patches/internal/series"
	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/internal/workspace"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/usage"
)

// format goes into every stamp. It changes when this program makes something else of the same sources with the same flags.
const format = "4"

// keep is how long an object that no run used stays in the store.
const keep = 14 * 24 * time.Hour

// Options say what to make.
type Options struct {
	Dir     string // where the program was called: in a checkout of this module, unless App is set
	App     string // the folder of an app's go.mod; "" for the checkout
	Build   string // the build folder; "" for the default
	Replace bool   // link the app by a replace in its go.mod
	Trees   string // "all", "patched", or "unmodified": the one that everything is verified against
	Preset  string // "native" or "portable"
	March   string // replaces the preset's flags
	Llama   string // a folder with llama.cpp; "": the pinned release, from wherever it can be had
	Jobs    int    // compilers at a time; 0: one for each CPU
	Strict  bool   // warnings of our own sources are errors

	Sanitize string // what is compiled with sanitizers, for tests: part or all; "": nothing

	Backends string // ggml's beside the CPU's, with commas between them
	CUDAArch string // the architectures that CUDA is compiled for, likewise; "": those of this machine's GPUs

	Series  fs.FS // folders llama.cpp and go-llama.cpp of *.patch files
	Sources fs.FS // folders kernels and llama, the contents of cgo/

	Log   io.Writer // what happens
	Trace io.Writer // the commands, or nil
}

func (o *Options) logf(format string, args ...any) {
	fmt.Fprintf(o.Log, "lesskv: "+format+"\n", args...)
}

// An assembly is one run.
type assembly struct {
	Options
	root     string // folder of the go.mod that is linked to the runtime
	out      layout.Layout
	tools    *toolchain.Toolchain
	recipe   recipe
	release  *source.Source // nil: the pinned one, not fetched yet
	devices  *source.Source // the same, with the sources of all backends beside the CPU's
	backends []backend      // the chosen ones
	series   map[string][]series.Patch
	sources  tree.Tree // less/...
}

// Run assembles what is not there yet and links the module to it.
func Run(ctx context.Context, o Options) error {
	start := time.Now()
	a := &assembly{Options: o}
	if err := a.prepare(ctx); err != nil {
		return err
	}
	l, err := a.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Release()

	stale, err := a.stale()
	if err != nil {
		return err
	}
	if len(stale) > 0 {
		if err := a.make(ctx, stale); err != nil {
			return err
		}
	}
	uses := ""
	var tied error
	if slices.Contains(a.kinds(), patched) {
		file, err := a.tie()
		if err != nil {
			return err
		}
		if a.App != "" {
			if err := a.note(); err != nil {
				return err
			}
		}
		uses = ", " + file + " uses it"
		if tied = a.check(ctx, file); tied != nil {
			uses = ""
		}
	}
	if len(stale) == 0 {
		a.logf("%s is up to date%s", a.out, uses)
	} else {
		a.logf("%s made in %s%s", a.out, time.Since(start).Round(time.Second), uses)
	}
	if a.App != "" && a.Build == "" {
		if err := a.prune(filepath.Dir(string(a.out)), a.out, abandoned); err != nil {
			a.logf("old runtimes stay: %v", err)
		}
	}
	if unanswered := (*workspace.UnansweredError)(nil); errors.As(tied, &unanswered) {
		a.logf("%v", tied) // not the link's fault: a requirement may be missing yet
		return nil
	}
	return tied
}

// check asks the go command whether the app uses the runtime. For a checkout it doesn't: GOWORK=off, with which that is
// assembled, hides its go.work.
func (a *assembly) check(ctx context.Context, file string) error {
	if a.App == "" {
		return nil
	}
	return workspace.Check(ctx, a.root, file, a.out.Package())
}

// tie makes the module use the assembled package and returns the file that says so.
func (a *assembly) tie() (string, error) {
	if a.Replace {
		return workspace.UseReplace(a.root, a.out.Package())
	}
	return workspace.UseWork(a.root, a.out.Package(), a.App != "") // a checkout ignores its go.work anyway
}

// prepare finds the toolchain, the module and the build folder, and reads the sources that the program carries.
func (a *assembly) prepare(ctx context.Context) error {
	var err error
	if !slices.Contains([]string{"all", patched.String(), unmodified.String()}, a.Trees) {
		return usage.Errorf("-tree %q: want all, patched or unmodified", a.Trees)
	}
	if err = sanitizing(a.Sanitize).check(); err != nil {
		return err
	}
	if a.tools, err = toolchain.Find(ctx); err != nil {
		return err
	}
	isa, err := a.tools.ISA(a.Preset, a.March)
	if err != nil {
		return err
	}
	a.recipe = recipe{
		goos: a.tools.GOOS, goarch: a.tools.GOARCH, isa: isa,
		strict:   a.Strict,
		sanitize: sanitizing(a.Sanitize),
		identity: map[identityKey]string{},
	}
	a.findLevels(ctx)
	if err := a.findBackends(ctx); err != nil {
		return err
	}
	features, err := a.probe(ctx)
	if err != nil {
		return err
	}
	a.series = map[string][]series.Patch{}
	folders := []string{"llama.cpp", "go-llama.cpp"}
	if _, ok := a.recipe.backends["rpc"]; ok {
		folders = append(folders, "ggml-rpc")
	}
	for _, name := range folders {
		if a.series[name], err = series.Read(a.Series, name); err != nil {
			return err
		}
	}
	if a.Llama != "" {
		if a.release, err = source.Folder(source.Options{Folder: a.Llama, Log: a.Log}); err != nil {
			return err
		}
		if len(a.backends) > 0 { // what there is to say of the folder has been said
			if a.devices, err = source.Folder(source.Options{Part: source.Devices, Folder: a.Llama, Log: io.Discard}); err != nil {
				return err
			}
		}
	}
	a.sources = tree.Tree{}
	if err := a.sources.AddFS(a.Sources, lessFile); err != nil {
		return fmt.Errorf("cgo: %w", err)
	}
	a.sources[less+"lesskv-cpu-features.h"] = fmt.Appendf(nil, "// Generated: what the CPU must have for the flags %s.\n#define LESSKV_CPU_FEATURES %q\n",
		strings.Join(isa, " "), strings.Join(features, " "))
	return a.find()
}

// probe asks the compilers for their identities, and for the CPU features that the flags imply.
func (a *assembly) probe(ctx context.Context) (features []string, err error) {
	work, ctx := errgroup.WithContext(ctx)
	keys := []identityKey{{toolchain.C, false}, {toolchain.C, true}, {toolchain.CXX, false}, {toolchain.CXX, true}}
	ids := make([]string, len(keys))
	for i, k := range keys {
		work.Go(func() (err error) {
			var flags []string
			if k.isa {
				flags = a.recipe.isa
			}
			ids[i], err = a.tools.Identity(ctx, k.lang, flags)
			return err
		})
	}
	work.Go(func() (err error) {
		features, err = a.tools.Features(ctx, a.recipe.isa)
		return err
	})
	err = work.Wait()
	for i, k := range keys {
		a.recipe.identity[k] = tree.Hash([]byte(ids[i]))
		if k == (identityKey{toolchain.CXX, false}) {
			a.recipe.compiler, _, _ = strings.Cut(ids[i], "\n")
		}
	}
	return features, err
}
