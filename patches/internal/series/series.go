// Package series applies a series of git format-patch files to a source tree: strictly, every line of context at its
// place, so that a patch that was made for another version is an error and never a guess.
package series

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"

	"github.com/lesskv/lesskv/patches/internal/tree"
)

// A Patch is one file of a series.
type Patch struct {
	Name    string // its path, for messages
	Subject string
	Files   []*gitdiff.File
}

// An Error says where a series failed.
type Error struct {
	Patch string // the patch file
	File  string // the file that it changes; "" if the patch itself is at fault
	Hunk  int    // counted from 1 in that file; 0 if it is not a hunk's fault
	Line  int64  // line of the file that was looked at, from 1; 0 as above
	Want  string // what the patch expects there
	Found string // what is there
	Err   error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Patch)
	if e.File != "" {
		fmt.Fprintf(&b, ": does not apply to %s", e.File)
	}
	if e.Hunk > 0 {
		fmt.Fprintf(&b, ", hunk %d", e.Hunk)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Want != e.Found {
		fmt.Fprintf(&b, ": line %d is %q, want %q", e.Line, e.Found, e.Want)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Read parses the *.patch files of a folder of fsys, in the order of their names. No files is an empty series.
func Read(fsys fs.FS, dir string) ([]Patch, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var patches []Patch
	for _, name := range names {
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		p, err := Parse(name, data)
		if err != nil {
			return nil, err
		}
		patches = append(patches, p)
	}
	return patches, nil
}

// Parse reads one patch: a mail header with From and Subject, a text that says why the patch exists, and the changes.
func Parse(name string, data []byte) (Patch, error) {
	fail := func(err error) (Patch, error) { return Patch{}, &Error{Patch: name, Err: err} }
	files, preamble, err := gitdiff.Parse(bytes.NewReader(data))
	if err != nil {
		return fail(err)
	}
	if len(files) == 0 {
		return fail(errors.New("no changes in it; want the output of git format-patch"))
	}
	header, err := gitdiff.ParsePatchHeader(preamble)
	if err != nil {
		return fail(err)
	}
	switch {
	case header.Author == nil:
		return fail(errors.New("no From line; want the output of git format-patch"))
	case header.Title == "":
		return fail(errors.New("no Subject line; want the output of git format-patch"))
	case strings.TrimSpace(header.Body) == "":
		return fail(errors.New("no text under the subject; it must say why the patch exists"))
	}
	return Patch{Name: name, Subject: header.Title, Files: files}, nil
}

// Apply applies the patches in order. A failure is an *Error, and the tree is then to be thrown away.
func Apply(t tree.Tree, patches []Patch) error {
	for _, p := range patches {
		for _, f := range p.Files {
			if err := apply(t, f); err != nil {
				return failure(p.Name, f, t[f.OldName], err)
			}
		}
	}
	return nil
}

func apply(t tree.Tree, f *gitdiff.File) error {
	var old []byte
	if f.IsNew {
		if _, ok := t[f.NewName]; ok {
			return errors.New("the patch creates a file that is there already")
		}
	} else {
		data, ok := t[f.OldName]
		if !ok {
			return errors.New("there is no such file")
		}
		old = data
	}
	var out bytes.Buffer
	if err := gitdiff.Apply(&out, bytes.NewReader(old), f); err != nil {
		return err
	}
	if f.IsDelete || f.IsRename {
		delete(t, f.OldName)
	}
	if !f.IsDelete {
		t[f.NewName] = out.Bytes()
	}
	return nil
}

func failure(patch string, f *gitdiff.File, old []byte, err error) error {
	e := &Error{Patch: patch, File: cmp.Or(f.OldName, f.NewName), Err: err}
	var at *gitdiff.ApplyError
	if !errors.As(err, &at) {
		return e
	}
	e.Hunk, e.Line, e.Err = at.Fragment, at.Line, at.Unwrap()
	lines := slices.Collect(strings.Lines(string(old)))
	if at.Fragment > 0 && at.FragmentLine > 0 && at.Line <= int64(len(lines)) {
		e.Want = strings.TrimSuffix(f.TextFragments[at.Fragment-1].Lines[at.FragmentLine-1].Line, "\n")
		e.Found = strings.TrimSuffix(lines[at.Line-1], "\n")
	}
	return e
}
