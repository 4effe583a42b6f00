package assemble

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/patches/internal/build"
	"github.com/lesskv/lesskv/patches/internal/module"
	"github.com/lesskv/lesskv/patches/internal/series"
	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
)

// make makes the trees.
func (a *assembly) make(ctx context.Context, kinds []kind) error {
	base, goLlama, err := a.fetch(ctx)
	if err != nil {
		return err
	}
	store := &build.Store{Dir: a.out.Objects()}
	if err := os.MkdirAll(store.Dir, 0o755); err != nil {
		return err
	}
	b := &build.Builder{Tools: a.tools, Store: store, Jobs: a.Jobs, Log: a.Log, Trace: a.Trace}
	if len(a.backends) > 0 {
		defer os.RemoveAll(a.generated())
		if err := a.addBackends(ctx, b, base); err != nil {
			return err
		}
	}
	trees := map[kind]tree.Tree{}
	jobs := make([]build.Job, len(kinds))
	for i, k := range kinds {
		t := tree.Tree{}
		for p, data := range base {
			t[p] = data
		}
		if k == patched {
			for _, name := range []string{"llama.cpp", "ggml-rpc"} {
				if err := series.Apply(t, a.series[name]); err != nil {
					return err
				}
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
		if err := join(t, allModels, "every model in one unit", isModel); err != nil {
			return err
		}
		if err := join(t, allPolicies, "every policy in one unit", isPolicy); err != nil {
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

	objects, err := b.Compile(ctx, jobs)
	if err != nil {
		return err
	}
	for i, k := range kinds {
		units, objects, err := a.combine(ctx, b, jobs[i].Units, objects[i])
		if err != nil {
			return err
		}
		if err := a.finish(ctx, b, k, trees[k], goLlama, units, objects); err != nil {
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

// fetch returns the sources of llama.cpp and of the Go API, verified.
func (a *assembly) fetch(ctx context.Context) (llama, goLlama tree.Tree, err error) {
	goLlama = tree.Tree{}
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error {
		if a.release == nil {
			o, err := a.released()
			if err != nil {
				return err
			}
			if a.release, err = source.Fetch(ctx, o); err != nil {
				return err
			}
			if len(a.backends) > 0 {
				o.Part = source.Devices
				if a.devices, err = source.Fetch(ctx, o); err != nil {
					return err
				}
			}
			if err := source.Prune(ctx, o, abandoned); err != nil {
				a.logf("old releases stay: %v", err)
			}
		}
		var err error
		llama, err = llamaTree(a.release)
		return err
	})
	work.Go(func() error {
		dir, err := module.Fetch(ctx, pins.GoLlama)
		if err != nil {
			return err
		}
		return goLlama.AddFS(os.DirFS(dir), goLlamaFile)
	})
	if err := work.Wait(); err != nil {
		return nil, nil, err
	}
	if a.release.Pinned {
		a.logf("%s is what was pinned", a.release)
	}
	a.logf("%s is what was pinned", pins.GoLlama)
	return llama, goLlama, nil
}

// released says where llama.cpp is looked for.
func (o *Options) released() (source.Options, error) {
	dir, err := layout.SourcesFolder()
	return source.Options{Folder: o.Llama, Cache: dir, Log: o.Log}, err
}

// finish links the worker of a tree, makes the Go package of the patched one, and stamps the tree.
func (a *assembly) finish(ctx context.Context, b *build.Builder, k kind, files, goLlama tree.Tree, units []build.Unit, objects []string) error {
	s := stamp{Inputs: a.inputs(k), Files: map[string]string{}, Strict: a.Strict}
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

	link := func(program string, objects []string) error {
		if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
			return err
		}
		if err := b.Link(ctx, program, objects, slices.Concat(a.recipe.extraLibs(), a.recipe.libs())); err != nil {
			return err
		}
		hash, err := hashFile(program)
		if err != nil {
			return err
		}
		return record(program, hash)
	}

	var archive, worker, server []string
	hasWorker := false
	for i, u := range units {
		if u.Source == source.RPCServer {
			server = append(server, objects[i])
			continue
		}
		if !isWorker(u.Source) {
			archive = append(archive, objects[i])
		} else {
			hasWorker = true
		}
		if !isBinding(u.Source) {
			worker = append(worker, objects[i])
		}
	}
	if len(server) > 0 {
		for i, u := range units {
			if strings.HasPrefix(u.Source, "ggml/") || u.Source == levelChoice {
				server = append(server, objects[i])
			}
		}
	}
	if hasWorker {
		program := a.out.Worker()
		if k == unmodified {
			program = a.out.UnmodifiedWorker()
		}
		if err := link(program, worker); err != nil {
			return err
		}
	}
	if len(server) > 0 && k == patched {
		if err := link(a.out.RPCServer(), server); err != nil {
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
