// Package assemble makes the runtime: it takes the pinned modules, applies the two series, adds the sources of cgo/,
// compiles, and ties a Go module to the result.
package assemble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/patches/internal/build"
	"github.com/lesskv/lesskv/patches/internal/lock"
	"github.com/lesskv/lesskv/patches/internal/module"
	"github.com/lesskv/lesskv/patches/internal/pins"
	"github.com/lesskv/lesskv/patches/internal/series"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/internal/workspace"
	"github.com/lesskv/lesskv/patches/layout"
)

// format goes into every stamp. It changes when this program makes something else of the same sources.
const format = "1"

// keep is how long an object that no run used stays in the store.
const keep = 14 * 24 * time.Hour

// Options say what to make.
type Options struct {
	Dir     string // where the program was called: in a checkout of this module, unless App is set
	App     string // the folder of an app's go.mod; "" for the checkout
	Build   string // the build folder; "" for the default
	Replace bool   // tie the app by a replace in its go.mod
	Trees   string // "all", "patched", or "unmodified": the one that everything is verified against
	Preset  string // "native" or "portable"
	March   string // replaces the preset's flags
	Jobs    int    // compilers at a time; 0: one for each CPU

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
	root    string // folder of the go.mod that is tied to the runtime
	out     layout.Layout
	tools   *toolchain.Toolchain
	recipe  recipe
	series  map[string][]series.Patch
	sources tree.Tree // less/...
}

// Run assembles what is not there yet and ties the module to it.
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
	if slices.Contains(a.kinds(), patched) {
		file, err := a.tie()
		if err != nil {
			return err
		}
		uses = ", " + file + " uses it"
	}
	if len(stale) == 0 {
		a.logf("%s is up to date%s", a.out, uses)
	} else {
		a.logf("%s made in %s%s", a.out, time.Since(start).Round(time.Second), uses)
	}
	return nil
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
		return fmt.Errorf("-tree %q: want all, patched or unmodified", a.Trees)
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
		strict:   a.App == "", // another compiler's new warning must not break an app
		identity: map[identityKey]string{},
	}
	features, err := a.probe(ctx)
	if err != nil {
		return err
	}
	a.series = map[string][]series.Patch{}
	for _, name := range []string{"llama.cpp", "go-llama.cpp"} {
		if a.series[name], err = series.Read(a.Series, name); err != nil {
			return err
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
	}
	return features, err
}

// find finds the module that is tied, and the build folder.
func (a *assembly) find() error {
	var err error
	if a.root, err = Root(a.Dir, a.App); err != nil {
		return err
	}
	dir := a.Build
	switch {
	case dir != "":
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
	case a.App == "":
		dir = filepath.Join(a.root, "build")
	default:
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		dir = filepath.Join(cache, "lesskv", a.inputs(patched)[:16])
	}
	a.out = layout.Layout(dir)
	return nil
}

// Root returns the folder of the go.mod that is to be tied: the app's, or that of the checkout of this module around dir.
func Root(dir, app string) (string, error) {
	if app != "" {
		root, err := filepath.Abs(app)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
			return "", fmt.Errorf("-app wants the folder of the app's go.mod: %w", err)
		}
		return root, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for d := abs; ; d = filepath.Dir(d) {
		data, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && modfile.ModulePath(data) == pins.Self {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not in a checkout of %s: name your app's folder with -app DIR", abs, pins.Self)
		}
	}
}

// lock takes the build folder. A folder that holds other things is refused: it would be swept.
func (a *assembly) lock(ctx context.Context) (*lock.Lock, error) {
	return Acquire(ctx, a.out, func() { a.logf("another run is at work in %s; waiting for it", a.out) })
}

// Acquire takes the lock of a build folder, which it makes.
func Acquire(ctx context.Context, out layout.Layout, waiting func()) (*lock.Lock, error) {
	if entries, err := os.ReadDir(string(out)); err == nil && len(entries) > 0 {
		if _, err := os.Stat(out.Lock()); err != nil {
			return nil, fmt.Errorf("%s is not empty and was not made by this program: name another folder with -build", out)
		}
	}
	return lock.Acquire(ctx, out.Lock(), waiting)
}

// kind is one of the two trees.
type kind int

const (
	patched kind = iota
	unmodified
)

func (k kind) String() string { return [...]string{"patched", "unmodified"}[k] }

func (a *assembly) kinds() []kind {
	switch a.Trees {
	case patched.String():
		return []kind{patched}
	case unmodified.String():
		return []kind{unmodified}
	}
	return []kind{patched, unmodified}
}

// A stamp says what a tree was made from and what it was when it was finished.
type stamp struct {
	Inputs string            `json:"inputs"`
	Files  map[string]string `json:"files"` // SHA-256 by path in the build folder
}

func (a *assembly) stampPath(k kind) string {
	return filepath.Join(string(a.out), "."+k.String()+".json")
}

// inputs is the hash of everything that a tree is made from.
func (a *assembly) inputs(k kind) string {
	in := map[string]any{
		"format": format, "modules": []pins.Module{pins.GoLlama, pins.Ollama}, "commit": pins.LlamaCommit,
		"target": a.tools, "isa": a.recipe.isa, "strict": a.recipe.strict,
		"sources": a.less(k).Hashes(),
	}
	for key, id := range a.recipe.identity {
		in[fmt.Sprint("identity", key)] = id
	}
	if k == patched {
		in["series"] = a.series
	}
	data, err := json.Marshal(in)
	if err != nil {
		panic(err) // strings, numbers, and structs of them
	}
	return tree.Hash(data)
}

// less returns the sources of cgo/ that belong into a tree: all of them, or the worker alone.
func (a *assembly) less(k kind) tree.Tree {
	t := tree.Tree{}
	for p, data := range a.sources {
		if k == patched || isWorker(p) {
			t[p] = data
		}
	}
	return t
}

// stale lists the trees that are not what a run would make.
func (a *assembly) stale() ([]kind, error) {
	var list []kind
	for _, k := range a.kinds() {
		data, err := os.ReadFile(a.stampPath(k))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		var s stamp
		if err != nil || json.Unmarshal(data, &s) != nil || s.Inputs != a.inputs(k) {
			list = append(list, k)
			continue
		}
		for p, want := range s.Files {
			data, err := os.ReadFile(filepath.Join(string(a.out), filepath.FromSlash(p)))
			if err != nil || tree.Hash(data) != want {
				a.logf("%s is not as it was made; making it again", filepath.Join(string(a.out), p))
				list = append(list, k)
				break
			}
		}
	}
	return list, nil
}

// make makes the trees.
func (a *assembly) make(ctx context.Context, kinds []kind) error {
	base, goLlama, err := a.fetch(ctx)
	if err != nil {
		return err
	}
	trees := map[kind]tree.Tree{}
	jobs := make([]build.Job, len(kinds))
	for i, k := range kinds {
		t := tree.Tree{}
		for p, data := range base {
			t[p] = data
		}
		if k == patched {
			if err := series.Apply(t, a.series["llama.cpp"]); err != nil {
				return err
			}
			if err := series.Apply(goLlama, a.series["go-llama.cpp"]); err != nil {
				return err
			}
		}
		for p, data := range a.less(k) {
			if err := t.Add(p, data); err != nil {
				return err
			}
		}
		if k == patched {
			if err := t.Add(less+"binding.h", goLlama["binding.h"]); err != nil {
				return fmt.Errorf("%w: binding.h comes from the go-llama.cpp series", err)
			}
		}
		if err := joinModels(t); err != nil {
			return err
		}
		if err := t.Sync(a.dir(k)); err != nil {
			return err
		}
		r := a.recipe
		if k == patched {
			r.define = []string{"-DLESSKV"}
		}
		trees[k] = t
		jobs[i] = build.Job{Dir: a.dir(k), Files: t, Units: r.units(t)}
	}

	store := &build.Store{Dir: a.out.Objects()}
	if err := os.MkdirAll(store.Dir, 0o755); err != nil {
		return err
	}
	b := &build.Builder{Tools: a.tools, Store: store, Jobs: a.Jobs, Log: a.Log, Trace: a.Trace}
	objects, err := b.Compile(ctx, jobs)
	if err != nil {
		return err
	}
	for i, k := range kinds {
		if err := a.finish(ctx, b, k, trees[k], goLlama, jobs[i].Units, objects[i]); err != nil {
			return err
		}
	}
	return store.Prune(time.Now().Add(-keep))
}

func (a *assembly) dir(k kind) string {
	if k == patched {
		return a.out.Sources()
	}
	return a.out.UnmodifiedSources()
}

// fetch returns the sources of the two modules, verified.
func (a *assembly) fetch(ctx context.Context) (llama, goLlama tree.Tree, err error) {
	llama, goLlama = tree.Tree{}, tree.Tree{}
	work, ctx := errgroup.WithContext(ctx)
	for _, m := range []struct {
		pins.Module
		to   tree.Tree
		keep func(string) string
	}{{pins.Ollama, llama, llamaFile}, {pins.GoLlama, goLlama, goLlamaFile}} {
		work.Go(func() error {
			dir, err := module.Fetch(ctx, m.Module)
			if err != nil {
				return err
			}
			a.logf("%s is what was pinned", m.Module)
			return m.to.AddFS(os.DirFS(dir), m.keep)
		})
	}
	return llama, goLlama, work.Wait()
}

// finish links the worker of a tree, makes the Go package of the patched one, and stamps the tree.
func (a *assembly) finish(ctx context.Context, b *build.Builder, k kind, files, goLlama tree.Tree, units []build.Unit, objects []string) error {
	s := stamp{Inputs: a.inputs(k), Files: map[string]string{}}
	record := func(path string, hash string) error {
		rel, err := filepath.Rel(string(a.out), path)
		s.Files[filepath.ToSlash(rel)] = hash
		return err
	}
	for p, hash := range files.Hashes() {
		if err := record(filepath.Join(a.dir(k), filepath.FromSlash(p)), hash); err != nil {
			return err
		}
	}

	var archive, worker []string
	hasWorker := false
	for i, u := range units {
		if !isWorker(u.Source) {
			archive = append(archive, objects[i])
		} else {
			hasWorker = true
		}
		if !isBinding(u.Source) {
			worker = append(worker, objects[i])
		}
	}
	if hasWorker {
		program := a.out.Worker()
		if k == unmodified {
			program = a.out.UnmodifiedWorker()
		}
		if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
			return err
		}
		if err := b.Link(ctx, program, worker, a.recipe.libs()); err != nil {
			return err
		}
		hash, err := hashFile(program)
		if err != nil {
			return err
		}
		if err := record(program, hash); err != nil {
			return err
		}
	}
	if k == patched {
		hashes, err := a.pack(ctx, b, goLlama, archive)
		if err != nil {
			return err
		}
		for p, hash := range hashes {
			if err := record(filepath.Join(a.out.Package(), filepath.FromSlash(p)), hash); err != nil {
				return err
			}
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return tree.WriteFile(a.stampPath(k), data)
}

// pack makes the Go package in a staging folder and puts it in the place of the old one, which a go.work may name: it is
// never missing. It returns the hashes of its files.
func (a *assembly) pack(ctx context.Context, b *build.Builder, goLlama tree.Tree, objects []string) (map[string]string, error) {
	staging := filepath.Join(string(a.out), ".staging")
	if err := os.RemoveAll(staging); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(staging, 0o755); err != nil {
		return nil, err
	}
	archive := filepath.Join(staging, "libbinding.a")
	if err := b.Archive(ctx, archive, objects); err != nil {
		return nil, err
	}
	hash, err := hashFile(archive)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"lesskv-llama.h", "binding_lesskv.h"} { // what the package's cgo sees
		header, ok := a.sources[less+name]
		if !ok {
			continue
		}
		if err := goLlama.Add(name, header); err != nil {
			return nil, err
		}
	}
	if err := goLlama.Add("zz_lesskv_build.go", stampFile(hash, strings.Join(a.recipe.isa, " "))); err != nil {
		return nil, err
	}
	for p, data := range goLlama {
		if err := tree.WriteFile(filepath.Join(staging, filepath.FromSlash(p)), data); err != nil {
			return nil, err
		}
	}
	if err := swap(staging, a.out.Package()); err != nil {
		return nil, err
	}
	hashes := goLlama.Hashes()
	hashes["libbinding.a"] = hash
	return hashes, os.RemoveAll(staging)
}

func hashFile(path string) (string, error) {
	data, err := os.ReadFile(path)
	return tree.Hash(data), err
}

// swap puts the folder from in the place of the folder to, and the old one, if there is one, in the place of from.
func swap(from, to string) error {
	if _, err := os.Stat(to); errors.Is(err, fs.ErrNotExist) {
		return os.Rename(from, to)
	}
	err := exchange(from, to)
	if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	// A file system that can't exchange two names.
	old := from + ".old"
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(to, old); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return os.Rename(old, from)
}
