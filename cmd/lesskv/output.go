package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/outfile"
)

// An output is a file that a command is to write.
type output struct {
	flag string // that names it
	path string
	kind kind
}

// A kind is what a file that is replaced has to be.
type kind struct {
	name string
	is   func(path string) bool
}

var (
	adapterFile    = kind{"an adapter", weights.IsAdapter}
	allocationFile = kind{"an allocation alone, without phi and psi that would be lost", func(path string) bool {
		a, err := weights.Read(path)
		return err == nil && a.Bytes() == 0
	}}
)

// adapterWith is an adapter that has no budgets by head and no types of slots, but for what the adapter that replaces it has too.
func adapterWith(budgets, types bool) kind {
	var lost []string
	if !budgets {
		lost = append(lost, "budgets by head (lesskv tune)")
	}
	if !types {
		lost = append(lost, "types of slots")
	}
	if lost == nil {
		return adapterFile
	}
	return kind{"an adapter without " + strings.Join(lost, " and ") + ", which would be lost", func(path string) bool {
		a, err := weights.Read(path)
		return err == nil && (budgets || a.Budget == nil) && (types || a.SlotTypes == nil)
	}}
}

// pictureOutput is a picture that a command is to write. The end of its name is its format.
func pictureOutput(flag, path string) (output, error) {
	if ext := filepath.Ext(path); ext != ".png" && ext != ".svg" {
		return output{}, usageError{fmt.Errorf("%s %s: want a name that ends in .png or .svg", flag, path)}
	}
	return output{flag, path, pictureFile(path)}, nil
}

// pictureFile is the kind of a picture by the end of its name.
func pictureFile(path string) kind {
	if filepath.Ext(path) == ".svg" {
		return kind{"an SVG picture", starts("<?xml", "<svg")}
	}
	return kind{"a PNG picture", starts("\x89PNG\r\n\x1a\n")}
}

// starts reports whether a file begins with one of some texts.
func starts(texts ...string) func(path string) bool {
	return func(path string) bool {
		f, err := os.Open(path)
		if err != nil {
			return false
		}
		defer f.Close()
		head := make([]byte, 256)
		n, _ := io.ReadFull(f, head)
		for _, t := range texts {
			if bytes.HasPrefix(head[:n], []byte(t)) {
				return true
			}
		}
		return false
	}
}

// checkOutputs looks, before any work, whether outputs can be written where they are to go, so that nothing is lost: a folder is
// there and takes files, what is replaced is of the output's kind, and none of the inputs or another output, by whatever name.
func checkOutputs(inputs []string, outputs ...output) error {
	for i, o := range outputs {
		if err := o.check(inputs); err != nil {
			return err
		}
		for _, other := range outputs[:i] {
			if place(other.path) == place(o.path) {
				return usageError{fmt.Errorf("%s and %s are both %s", other.flag, o.flag, o.path)}
			}
		}
	}
	return nil
}

func (o output) check(inputs []string) error {
	info, err := os.Stat(o.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("%s: %w", o.flag, err)
	case info.IsDir():
		return fmt.Errorf("%s %s: a folder: want the name of a file", o.flag, o.path)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s %s: no regular file (%v): want the name of one", o.flag, o.path, info.Mode().Type())
	default:
		for _, in := range inputs {
			if other, err := os.Stat(in); err == nil && os.SameFile(info, other) {
				return usageError{fmt.Errorf("%s %s: that is %s, which is read: want another name", o.flag, o.path, in)}
			}
		}
		if info.Size() > 0 && !o.kind.is(o.path) {
			return fmt.Errorf("%s %s: there is a file that is not %s: want another name, or remove it", o.flag, o.path, o.kind.name)
		}
	}
	return takesFiles(o.flag, o.path, filepath.Dir(outfile.Resolve(o.path)))
}

// warnTypes says that an adapter is about to be replaced by one without the types of slots that it has.
func warnTypes(w io.Writer, path string, types []weights.SlotTypes) {
	if a, err := weights.Read(path); err == nil && a.SlotTypes != nil && !slices.Equal(a.SlotTypes, types) {
		fmt.Fprintf(w, "%s has types of slots that what replaces it will not have: --type %s keeps them\n", path, worker.FormatTypes(a.SlotTypes))
	}
}

// takesFiles looks whether a folder is there and files can be made in it.
func takesFiles(flag, path, dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s %s: there is no folder %s", flag, path, dir)
	case err != nil:
		return fmt.Errorf("%s %s: %w", flag, path, err)
	case !info.IsDir():
		return fmt.Errorf("%s %s: %s is no folder", flag, path, dir)
	}
	f, err := os.CreateTemp(dir, ".lesskv-*") // permissions alone don't tell
	if err != nil {
		return fmt.Errorf("%s %s: nothing can be written to the folder %s: %w", flag, path, dir, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// checkFolder looks whether a folder, which need not be there yet, takes files.
func checkFolder(flag, path string) error {
	dir := filepath.Clean(path)
	for {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return takesFiles(flag, path, dir)
		}
		dir = filepath.Dir(dir)
	}
}

// place is where a file lies, whatever the way to it is called.
func place(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	return path
}
