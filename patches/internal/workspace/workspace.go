// Package workspace links a Go module to an assembled runtime and unlinks it again. Whatever it adds to a user's file is
// text of its own that carries a mark, so that taking it out leaves the file as it was, byte for byte.
package workspace

import (
	"bytes"
	"errors"
	"fmt"
	"go/version"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"

	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/outfile"
)

const (
	mark     = "// lesskv: patches -undo takes this line out"
	heading  = "// Made by " + pins.Self + "/patches, which also removes it (-undo, -clean). It holds paths of this machine: not for version control."
	excluded = "# lesskv: patches -undo takes out this line and the two below"
)

// A ConflictError says that a file of the user's already binds the module elsewhere.
type ConflictError struct {
	File, Other string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s already takes %s from %s: remove that line first", e.File, pins.GoLlama.Path, e.Other)
}

// UseWork makes the workspace of the module in dir use the assembled module in runtime. It edits the go.work that holds
// for dir, or makes one in dir; if ignore is set, a git checkout around it is told to ignore what was made. It takes the place of
// an earlier UseReplace, and returns the file's path.
func UseWork(dir, runtime string, ignore bool) (string, error) {
	file, err := useWork(dir, runtime, ignore)
	if err != nil {
		return "", err
	}
	_, err = undoReplace(dir)
	return file, err
}

func useWork(dir, runtime string, ignore bool) (string, error) {
	file, data, err := findWork(dir)
	if err != nil {
		return "", err
	}
	made := file == "" || isMade(data)
	if file == "" {
		file = filepath.Join(dir, "go.work")
	}
	target := modfile.AutoQuote(use(filepath.Dir(file), runtime))
	line := "use " + target + " " + mark
	if replaced, err := isReplaced(dir, file, data); err != nil {
		return "", err
	} else if replaced {
		line = fmt.Sprintf("replace %s => %s %s", pins.GoLlama.Path, target, mark)
	}
	if made {
		goVersion, err := newest(filepath.Join(dir, "go.mod"), filepath.Join(runtime, "go.mod"))
		if err != nil {
			return "", err
		}
		own := fmt.Sprintf("%s\n\ngo %s\n\nuse .\n%s\n", heading, goVersion, line)
		if data != nil && !onlyOurs(data) {
			own = string(add(strip(data), line)) // the user added to it: keep that
		}
		if err := write(file, data, []byte(own)); err != nil {
			return "", err
		}
		if ignore {
			err = exclude(filepath.Dir(file))
		}
		return file, err
	}
	rest := strip(data)
	if err := checkWork(file, rest, filepath.Join(runtime, "go.mod")); err != nil {
		return "", err
	}
	return file, write(file, data, add(rest, line))
}

// UseReplace adds a replace of the assembled module in runtime to the go.mod in dir. It takes the place of an earlier UseWork
// whose go.work serves no other module, and returns that file's path.
func UseReplace(dir, runtime string) (string, error) {
	file := filepath.Join(dir, "go.mod")
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	rest := strip(data)
	mod, err := modfile.Parse(file, rest, nil)
	if err != nil {
		return "", err
	}
	if err := checkReplace(file, mod.Replace); err != nil {
		return "", err
	}
	line := fmt.Sprintf("replace %s => %s %s", pins.GoLlama.Path, modfile.AutoQuote(runtime), mark)
	if err := write(file, data, add(rest, line)); err != nil {
		return "", err
	}
	work, data, err := findWork(dir)
	if err == nil && servesOnly(dir, work, data) {
		_, err = undoWork(dir)
	}
	return file, err
}

// Uses reports whether the module in dir is linked to the runtime, by a go.work or a replace, this program's or the user's own.
func Uses(dir, runtime string) bool {
	// the last two names, of which the first is like no other: paths may be relative
	name := []byte(filepath.ToSlash(filepath.Join(filepath.Base(filepath.Dir(runtime)), filepath.Base(runtime))))
	_, work, err := findWork(dir)
	if err == nil && bytes.Contains(work, name) {
		return true
	}
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	return err == nil && bytes.Contains(mod, name)
}

// Undo takes out what UseWork and UseReplace did for the module in dir, and returns the files that it changed or removed.
func Undo(dir string) ([]string, error) {
	changed, err := undoWork(dir)
	if err != nil {
		return changed, err
	}
	more, err := undoReplace(dir)
	return append(changed, more...), err
}

func undoWork(dir string) (changed []string, err error) {
	file, data, err := findWork(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case file == "":
	case onlyOurs(data):
		for _, f := range []string{file, file + ".sum"} {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return changed, err
			}
		}
		changed = append(changed, file)
		if err := include(filepath.Dir(file)); err != nil {
			return changed, err
		}
	default:
		if rest := strip(data); !bytes.Equal(rest, data) {
			if err := write(file, data, rest); err != nil {
				return changed, err
			}
			changed = append(changed, file)
		}
	}
	return changed, nil
}

func undoReplace(dir string) (changed []string, err error) {
	mod := filepath.Join(dir, "go.mod")
	data, err := os.ReadFile(mod)
	if err != nil {
		return nil, err
	}
	if rest := strip(data); !bytes.Equal(rest, data) {
		if err := write(mod, data, rest); err != nil {
			return nil, err
		}
		changed = append(changed, mod)
	}
	return changed, nil
}

// isReplaced reports whether the module in dir, or one that the go.work at file uses, replaces the package. The go command then
// reads what is there, a submodule that was never fetched too, although it builds with the one that is used: only a replace
// in the go.work goes before it.
func isReplaced(dir, file string, work []byte) (bool, error) {
	dirs := []string{dir}
	if work != nil {
		w, err := modfile.ParseWork(file, strip(work), nil)
		if err != nil {
			return false, err
		}
		for _, u := range w.Use {
			dirs = append(dirs, folder(file, u))
		}
	}
	for _, d := range dirs {
		name := filepath.Join(d, "go.mod")
		data, err := os.ReadFile(name)
		if err != nil {
			continue // the go command says so
		}
		mod, err := modfile.Parse(name, strip(data), nil)
		if err != nil {
			return false, err
		}
		if checkReplace(name, mod.Replace) != nil {
			return true, nil
		}
	}
	return false, nil
}

// findWork returns the go.work that the go command uses in dir, "" if there is none.
func findWork(dir string) (string, []byte, error) {
	for {
		file := filepath.Join(dir, "go.work")
		data, err := os.ReadFile(file)
		if err == nil {
			return file, data, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", nil, nil
		}
		dir = up
	}
}

// use is how a go.work in dir names the module in runtime: relative where it lies below, absolute elsewhere.
func use(dir, runtime string) string {
	if rel, err := filepath.Rel(dir, runtime); err == nil && filepath.IsLocal(rel) {
		return "./" + filepath.ToSlash(rel)
	}
	return runtime
}

func isMade(data []byte) bool { return bytes.HasPrefix(data, []byte(heading)) }

// onlyOurs reports whether a go.work is one that UseWork made and to which nobody added.
func onlyOurs(data []byte) bool {
	if !isMade(data) {
		return false
	}
	work, err := modfile.ParseWork("go.work", strip(data), nil)
	return err == nil && len(work.Use) == 1 && work.Use[0].Path == "." && len(work.Replace) == 0
}

// servesOnly reports whether a go.work lists the module in dir and, but for the runtime, no other.
func servesOnly(dir, file string, data []byte) bool {
	work, err := modfile.ParseWork(file, strip(data), nil)
	if err != nil || len(work.Use) != 1 {
		return false
	}
	return same(folder(file, work.Use[0]), dir)
}

// folder is the one that a line of the go.work at file uses.
func folder(file string, u *modfile.Use) string {
	if dir := filepath.FromSlash(u.Path); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(filepath.Dir(file), filepath.FromSlash(u.Path))
}

func checkWork(file string, data []byte, runtimeMod string) error {
	work, err := modfile.ParseWork(file, data, nil)
	if err != nil {
		return err
	}
	for _, u := range work.Use {
		if mod, err := os.ReadFile(filepath.Join(folder(file, u), "go.mod")); err == nil && modfile.ModulePath(mod) == pins.GoLlama.Path {
			return &ConflictError{file, u.Path}
		}
	}
	if err := checkReplace(file, work.Replace); err != nil {
		return err
	}
	want, err := newest(runtimeMod)
	if err != nil {
		return err
	}
	if have := workGo(work); version.Compare("go"+have, "go"+want) < 0 {
		return fmt.Errorf("%s says go %s, but the runtime wants go %s or later: change it with go work edit -go=%s", file, have, want, want)
	}
	return nil
}

func workGo(work *modfile.WorkFile) string {
	if work.Go == nil {
		return "1.18" // what the go command assumes
	}
	return work.Go.Version
}

func checkReplace(file string, replaces []*modfile.Replace) error {
	for _, r := range replaces {
		if r.Old.Path == pins.GoLlama.Path {
			return &ConflictError{file, r.New.Path}
		}
	}
	return nil
}

// newest returns the newest of the go versions that the go.mod files ask for.
func newest(files ...string) (string, error) {
	best := "1.21"
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		mod, err := modfile.ParseLax(file, data, nil)
		if err != nil {
			return "", err
		}
		if mod.Go != nil && version.Compare("go"+mod.Go.Version, "go"+best) > 0 {
			best = mod.Go.Version
		}
	}
	return best, nil
}

// add appends a text that does not end in a newline; cut takes it out again. A file that does not end in a newline does
// not end in one afterwards either, which is how cut knows.
func add(data []byte, text string) []byte {
	if len(data) == 0 || bytes.HasSuffix(data, []byte("\n")) {
		return []byte(string(data) + text + "\n")
	}
	return []byte(string(data) + "\n" + text)
}

func cut(data []byte, text string) []byte {
	if rest, ok := bytes.CutSuffix(data, []byte("\n"+text)); ok {
		return rest
	}
	return bytes.Replace(data, []byte(text+"\n"), nil, 1)
}

// strip cuts the lines that carry the mark.
func strip(data []byte) []byte {
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, mark) {
			data = cut(data, strings.TrimSuffix(line, "\n"))
		}
	}
	return data
}

// write replaces a file as a whole; equal contents are left alone.
func write(file string, old, data []byte) error {
	if old != nil && bytes.Equal(old, data) {
		return nil
	}
	return outfile.WriteBytes(file, data)
}

// exclude tells the git checkout around dir, if there is one, to ignore dir's go.work: in its own list, which no commit holds.
func exclude(dir string) error {
	file, text := excludeFile(dir)
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Contains(data, []byte(text)) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return write(file, data, add(data, text))
}

// include undoes exclude.
func include(dir string) error {
	file, text := excludeFile(dir)
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	rest := cut(data, text)
	if len(rest) == 0 && len(data) > 0 {
		return os.Remove(file)
	}
	return write(file, data, rest)
}

// excludeFile finds the list of the checkout that dir is in ("" if it is in none, or in a linked work tree) and what
// belongs into it.
func excludeFile(dir string) (file, text string) {
	for top := dir; ; top = filepath.Dir(top) {
		if info, err := os.Stat(filepath.Join(top, ".git")); err == nil {
			rel, err := filepath.Rel(top, dir)
			if err != nil || !info.IsDir() {
				return "", ""
			}
			prefix := "/"
			if rel != "." {
				prefix += filepath.ToSlash(rel) + "/"
			}
			return filepath.Join(top, ".git", "info", "exclude"), excluded + "\n" + prefix + "go.work\n" + prefix + "go.work.sum"
		}
		if top == filepath.Dir(top) {
			return "", ""
		}
	}
}
