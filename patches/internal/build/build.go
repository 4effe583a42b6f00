// Package build compiles source trees in parallel into a store of objects that are found again by content: the same
// source, headers, flags and compiler are never compiled twice, whichever tree or run they come from.
package build

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/patches/internal/command"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/weights/outfile"
)

// A Unit is one source file to compile.
type Unit struct {
	Source   string // its path in the tree
	Lang     toolchain.Language
	Flags    []string // relative paths in them are relative to the tree
	Identity string   // of the compiler with these flags, see toolchain.Toolchain.Identity
	Strict   bool     // warnings are errors, also those of an object that is there already
	Generate []string // if not empty, the command that makes what is compiled of Source, itself on many CPUs; the file to make is added to it
	Weight   int      // bytes of source: the heaviest start first
	Level    string   // for the caller: the set of objects that this one is to be combined with
}

// A Job is the units of one tree.
type Job struct {
	Dir   string    // where the tree lies on the disk
	Files tree.Tree // the same in memory
	Units []Unit
}

// A CommandError is a command that failed.
type CommandError struct {
	What    string // the file that it was to make, or the source that it was to compile
	Command []string
	Output  string
	Err     error
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("%s: %v\n%s\ncommand: %s", e.What, e.Err, strings.TrimSpace(e.Output), strings.Join(e.Command, " "))
}

func (e *CommandError) Unwrap() error { return e.Err }

// Is lets errors.Is(err, syscall.ENOSPC) see that a compiler met a full disk.
func (e *CommandError) Is(target error) bool {
	return target == syscall.ENOSPC && strings.Contains(e.Output, "No space left on device")
}

// A Builder runs the toolchain.
type Builder struct {
	Tools *toolchain.Toolchain
	Store *Store    // its folder is absolute: compilers run in the folders of the trees
	Jobs  int       // commands at a time; 0: one for each CPU
	Log   io.Writer // progress
	Trace io.Writer // the commands, if not nil

	mu         sync.Mutex    // over Trace
	generating chan struct{} // holds a place for each unit that may be generated at a time
}

// Compile compiles what the store does not hold and returns the objects of every job, in the order of its units.
func (b *Builder) Compile(ctx context.Context, jobs []Job) ([][]string, error) {
	// One unit of one job. Those with the same key differ in their headers at most: they go to one worker, one after the
	// other, and the second finds what the first compiled if its headers are the same.
	type member struct {
		job, unit int
		key       string
	}
	objects := make([][]string, len(jobs))
	missing := map[string][]member{}
	hashes := make([]map[string]string, len(jobs))
	total := 0
	for i, job := range jobs {
		objects[i] = make([]string, len(job.Units))
		hashes[i] = job.Files.Hashes()
		for j, u := range job.Units {
			m := member{i, j, sourceKey(u, b.Tools.Compiler(u.Lang), hashes[i])}
			object, ok := b.Store.Lookup(u.Source, m.key, hashes[i], u.Strict)
			if !ok {
				missing[m.key] = append(missing[m.key], m)
				total++
			}
			objects[i][j] = object
		}
	}
	if total == 0 {
		return objects, nil
	}

	groups := make([][]member, 0, len(missing))
	for _, g := range missing {
		groups = append(groups, g)
	}
	first := func(g []member) Unit { return jobs[g[0].job].Units[g[0].unit] }
	weight := func(g []member) int { return first(g).Weight * len(g) }
	slices.SortFunc(groups, func(x, y []member) int {
		return cmp.Or(cmp.Compare(weight(y), weight(x)), strings.Compare(x[0].key, y[0].key))
	})
	left := pace{}
	for i, g := range groups {
		u := first(g)
		if left[u.kind()] == nil { // the heaviest of its kind goes before all others: behind it, it is known how long the rest takes
			copy(groups[len(left)+1:i+1], groups[len(left):i])
			groups[len(left)] = g
		}
		left.add(u, len(g))
	}

	meter := progress.New(b.Log, false)
	defer meter.End()
	status := progress.Status{Stage: "compiling", Total: int64(total), Unit: "files"}
	step := func(u Unit, took time.Duration) {
		b.mu.Lock()
		defer b.mu.Unlock()
		status.Done++
		status.Work, status.AllWork = left.compiled(u, took)
		meter.Show(status)
	}
	limit := b.Jobs
	if limit <= 0 {
		limit = limits.CPUs()
	}
	b.generating = make(chan struct{}, max(1, limit/4))
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(limit)
	for _, g := range groups {
		work.Go(func() error {
			for _, m := range g {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				job := jobs[m.job]
				u := job.Units[m.unit]
				began := time.Now()
				object, ok := b.Store.Lookup(u.Source, m.key, hashes[m.job], u.Strict)
				if !ok {
					var err error
					if object, err = b.compile(ctx, job.Dir, u, m.key, hashes[m.job]); err != nil {
						return err
					}
				}
				objects[m.job][m.unit] = object
				step(u, time.Since(began))
			}
			return nil
		})
	}
	return objects, work.Wait()
}

// compile compiles one unit into the store.
func (b *Builder) compile(ctx context.Context, dir string, u Unit, key string, hashes map[string]string) (string, error) {
	tmp := b.Store.temporary(u.Source, key)
	object, depfile := tmp+".o", tmp+".d"
	defer os.Remove(object)
	defer os.Remove(depfile)
	text := u.Source
	if len(u.Generate) > 0 {
		text = b.Store.path(u.Source, key, ".cpp") // a name that is always the same: the object holds it
		defer os.Remove(text)
		defer os.Remove(text + ".d") // in which upstream's program for shaders lists what they include
		b.generating <- struct{}{}
		_, err := b.Run(ctx, dir, u.Source, append(slices.Clone(u.Generate), text))
		<-b.generating
		if err != nil {
			return "", err
		}
	}
	command := slices.Concat(b.Tools.Compiler(u.Lang), u.Flags, []string{"-MD", "-MF", depfile, "-c", text, "-o", object})
	if u.Strict {
		command = append(command, "-Werror")
	}
	said, err := b.Run(ctx, dir, u.Source, command)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(depfile)
	if err != nil {
		return "", err
	}
	return b.Store.put(u.Source, key, headers(data, u.Source, hashes), hashes, object, u.Strict || said == "")
}

// Combine makes one object of several, in which the symbols keep alone are visible to others, and returns its path in the store. It is
// whole or not at all.
func (b *Builder) Combine(ctx context.Context, name string, objects, keep []string) (string, error) {
	key := slices.Clone(keep)
	for _, o := range objects {
		key = append(key, filepath.Base(o)) // which has the hash of what went into it
	}
	path := b.Store.path(name, digest(key...), ".o")
	return path, outfile.Make(path, func(part string) error {
		for _, command := range [][]string{b.Tools.CombineCommand(part, objects), b.Tools.HideCommand(part, keep)} {
			if _, err := b.Run(ctx, "", path, command); err != nil {
				return err
			}
		}
		return nil
	})
}

// Archive makes a fresh archive of the objects, whose base names must differ. It is at path whole or not at all.
func (b *Builder) Archive(ctx context.Context, path string, objects []string) error {
	seen := map[string]bool{}
	for _, o := range objects {
		if name := filepath.Base(o); seen[name] {
			return fmt.Errorf("%s: two objects are named %s, and ar would keep one of them", path, name)
		} else {
			seen[name] = true
		}
	}
	mode := "rcsD" // D: no dates and owners, equal objects make an equal archive
	if b.Tools.GOOS == "darwin" {
		mode = "rcs"
	}
	return outfile.Make(path, func(part string) error {
		_, err := b.Run(ctx, "", path, slices.Concat(b.Tools.AR, []string{mode, part}, objects))
		return err
	})
}

// Link links the objects into a program. It is at path whole or not at all.
func (b *Builder) Link(ctx context.Context, path string, objects, libs []string) error {
	return outfile.Make(path, func(part string) error {
		_, err := b.Run(ctx, "", path, slices.Concat(b.Tools.CXX, []string{"-o", part}, objects, libs))
		return err
	})
}

// Run runs a command in a folder and returns what it says; what names the file that it is for. Its failure is a *CommandError.
func (b *Builder) Run(ctx context.Context, dir, what string, line []string) (string, error) {
	if b.Trace != nil {
		b.mu.Lock()
		fmt.Fprintln(b.Trace, strings.Join(line, " "))
		b.mu.Unlock()
	}
	cmd := command.New(ctx, line[0], line[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "ZERO_AR_DATE=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := command.Run(ctx, cmd); err != nil {
		if ctx.Err() != nil {
			return "", err
		}
		return "", &CommandError{What: what, Command: line, Output: out.String(), Err: err}
	}
	return out.String(), nil
}
