// Package layout knows where things lie in an assembled runtime, and finds it.
package layout

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
)

// Variable is the environment variable that names a build folder and goes before every other way to find one.
const Variable = "LESSKV_BUILD"

// ErrNotAssembled is what Find's error wraps where there is no runtime.
var ErrNotAssembled = errors.New("the runtime is not assembled: run go run ./patches (or, for an app, go run github.com/lesskv/lesskv/patches@VERSION -app DIR -tree all), or name the build folder of one that is in " + Variable)

// Policies is the source that joins the policies' files (among the sources of cgo/): the archive has it in their place.
const Policies = "lesskv-policies.c"

// A Layout is the path of a build folder.
type Layout string

// Package is the assembled Go module github.com/go-skynet/go-llama.cpp, with libbinding.a in it.
func (l Layout) Package() string { return l.in("go-llama.cpp") }

// Sources is the patched llama.cpp with the sources of cgo/.
func (l Layout) Sources() string { return l.in("llama.cpp") }

// Assembled reports whether a runtime has a file of cgo/: what is C or C++, but for training, which is the Go package's alone.
func Assembled(name string) bool {
	return slices.Contains([]string{".c", ".cpp", ".h"}, path.Ext(name)) && !strings.HasPrefix(path.Base(name), "train")
}

// Own returns the sources of cgo/ whose names match one of the patterns, without the one that joins others. It fails where there is none
// for a pattern.
func (l Layout) Own(patterns ...string) (paths []string, err error) {
	for _, pattern := range patterns {
		found, err := fs.Glob(os.DirFS(filepath.Join(l.Sources(), "less")), pattern) // the folder's name is no pattern
		if err != nil || len(found) == 0 {
			return nil, errors.Join(fmt.Errorf("no %s in %s", pattern, filepath.Join(l.Sources(), "less")), ErrNotAssembled, err)
		}
		for _, name := range found {
			if name != Policies {
				paths = append(paths, filepath.Join(l.Sources(), "less", name))
			}
		}
	}
	return paths, nil
}

// UnmodifiedSources is llama.cpp without the series, and the worker.
func (l Layout) UnmodifiedSources() string { return l.in("unmodified") }

// Worker is the verification worker on the patched llama.cpp, a program.
func (l Layout) Worker() string { return l.in("bin", "lesskv-worker") }

// UnmodifiedWorker is the same worker on the unmodified llama.cpp.
func (l Layout) UnmodifiedWorker() string { return l.in("bin", "lesskv-worker-unmodified") }

// RPCServer is the program that serves this machine's devices to others, where the backend rpc was asked for.
func (l Layout) RPCServer() string { return l.in("bin", "ggml-rpc-server") }

// Objects is the store of compiled objects.
func (l Layout) Objects() string { return l.in("obj") }

// Lock is the file that a run of the assembler locks.
func (l Layout) Lock() string { return l.in(".lock") }

func (l Layout) in(names ...string) string {
	return filepath.Join(append([]string{string(l)}, names...)...)
}

// Find returns the build folder that serves the module around dir: $LESSKV_BUILD, or the one that the go.work around dir
// uses, or the folder build beside the go.mod around dir. The error wraps ErrNotAssembled where there is none.
func Find(dir string) (Layout, error) {
	if l := Layout(os.Getenv(Variable)); l != "" {
		return check(l, "$"+Variable)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	var module string // the nearest folder with a go.mod
	for d := dir; ; d = filepath.Dir(d) {
		if l, ok := used(d); ok {
			return check(l, filepath.Join(d, "go.work"))
		}
		if module == "" && exists(filepath.Join(d, "go.mod")) {
			module = d
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	if module == "" {
		return "", fmt.Errorf("%s is in no Go module: %w", dir, ErrNotAssembled)
	}
	return check(Layout(filepath.Join(module, "build")), "")
}

// used returns the build folder that the go.work in dir uses.
func used(dir string) (Layout, bool) {
	file := filepath.Join(dir, "go.work")
	data, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	work, err := modfile.ParseWork(file, data, nil)
	if err != nil {
		return "", false
	}
	var paths []string
	for _, u := range work.Use {
		paths = append(paths, u.Path)
	}
	for _, r := range work.Replace {
		paths = append(paths, r.New.Path)
	}
	for _, p := range paths {
		p = filepath.FromSlash(p)
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, p)
		}
		if l := Layout(filepath.Dir(p)); p == l.Package() && exists(l.Lock()) {
			return l, true
		}
	}
	return "", false
}

func check(l Layout, source string) (Layout, error) {
	if exists(filepath.Join(l.Package(), "libbinding.a")) {
		return l, nil
	}
	if source != "" {
		source = " (" + source + ")"
	}
	return "", fmt.Errorf("no libbinding.a in %s%s: %w", l.Package(), source, ErrNotAssembled)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
