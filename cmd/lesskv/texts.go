//go:build cgo

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
)

// A document is a file of text; "-" is standard input.
type document struct {
	path   string
	inside bool // a folder that was named: what is no text is left out
}

// tokenFile ends the names of files of int32 token numbers, little-endian, which train and tune take beside text.
const tokenFile = ".tokens"

// listTexts lists what -d names, without the folders that the command itself keeps below.
func listTexts(paths []string, folders ...string) (all []document, err error) {
	own := map[string]bool{}
	for _, dir := range folders {
		if dir != "" {
			own[place(dir)] = true
		}
	}
	for _, path := range paths {
		if path == "-" {
			all = append(all, document{path: path})
			continue
		}
		w := textWalk{own: own, seen: map[string]bool{}}
		if err := w.add(path, false); err != nil {
			return nil, fmt.Errorf("--data: %w", err)
		}
		all = append(all, w.found...)
	}
	return all, nil
}

// textWalk lists a folder, and what links in it lead to. What several of these lead to is listed once.
type textWalk struct {
	own, seen map[string]bool // by place
	found     []document
}

func (w *textWalk) add(path string, inside bool) error {
	info, err := os.Stat(path)
	switch {
	case inside && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP)): // a link to nothing, or to itself
		return nil
	case err != nil:
		return err
	case inside && !info.IsDir() && !info.Mode().IsRegular():
		return nil
	}
	if inside || info.IsDir() { // else it may be a pipe, as /dev/stdin
		end, err := filepath.EvalSymlinks(path)
		if err != nil {
			return err
		}
		if end = place(end); inside && (w.own[place(path)] || w.own[end] || w.seen[end]) {
			return nil
		}
		w.seen[end] = true
	}
	if !info.IsDir() {
		w.found = append(w.found, document{path, inside})
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err := w.add(filepath.Join(path, e.Name()), true); err != nil {
			return err
		}
	}
	return nil
}

// read returns a file's content; nil where it is no text, as a picture or an archive in a folder.
func (d document) read() ([]byte, error) {
	data, err := os.ReadFile(d.path)
	if err != nil || d.inside && filepath.Ext(d.path) != tokenFile && !utf8.Valid(data) {
		return nil, err
	}
	return data, nil
}

// content returns what is read of a document; nil where it is no text.
func (d document) content(stdin io.Reader) ([]byte, error) {
	if d.path == "-" {
		return io.ReadAll(stdin)
	}
	return d.read()
}

// inputs are what a command reads: the model and its texts. An output of before in a folder of texts is no text, and may be replaced.
func inputs(model string, texts []document, outputs []output) []string {
	all := []string{model}
	for _, d := range texts {
		if d.inside && slices.ContainsFunc(outputs, func(out output) bool { return place(out.path) == place(d.path) }) {
			if data, err := d.read(); err != nil || data == nil {
				continue
			}
		}
		all = append(all, d.path)
	}
	return all
}

// slotsOf returns the slots of a KV head in windows of c.Context tokens. Of the default budget it is half a window at most, so that something is
// evicted.
func slotsOf(b budget, c memory.Cache, m *weights.Model) (int, error) {
	c.Budget = b.Budget
	n, err := memory.Slots(m, c)
	switch {
	case err != nil:
		return 0, usageError{fmt.Errorf("--budget %s: %w", b.text, err)}
	case b.Budget == memory.Budget{}:
		n = min(n, c.Context/2)
	}
	return n, nil
}

// readTexts returns the tokens of all documents, one after the other, each behind the token that starts a sequence.
func readTexts(r *activations.Runtime, stdin io.Reader, texts []document) ([]int32, error) {
	var all []int32
	for _, d := range texts {
		data, err := d.content(stdin)
		switch {
		case err != nil:
			return nil, err
		case data == nil && d.inside:
			continue
		}
		if filepath.Ext(d.path) == tokenFile {
			if len(data)%4 != 0 {
				return nil, fmt.Errorf("%s: %d bytes: want int32 numbers", d.path, len(data))
			}
			for ; len(data) > 0; data = data[4:] {
				all = append(all, int32(binary.LittleEndian.Uint32(data)))
			}
			continue
		}
		tokens, err := r.Tokenize(string(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.path, err)
		}
		all = append(append(all, r.Start()...), tokens...)
	}
	return all, nil
}
