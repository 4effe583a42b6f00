// Package tree holds a source tree in memory: read it, change it, write it out so that only what differs is touched.
package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/lesskv/lesskv/weights/outfile"
)

// A Tree is files by slash-separated path.
type Tree map[string][]byte

// Add puts one file into the tree; a file that is there already is an error.
func (t Tree) Add(path string, data []byte) error {
	if _, ok := t[path]; ok {
		return fmt.Errorf("%s: two sources of the same name", path)
	}
	t[path] = data
	return nil
}

// AddFS copies the files of fsys that keep names: it gets a path in fsys and answers the path in the tree, "" to leave
// the file out.
func (t Tree) AddFS(fsys fs.FS, keep func(path string) string) error {
	return fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		to := keep(path)
		if to == "" {
			return nil
		}
		data, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		return t.Add(to, data)
	})
}

// Paths returns the paths in order.
func (t Tree) Paths() []string {
	paths := make([]string, 0, len(t))
	for p := range t {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

// Hashes returns the SHA-256 of every file, in hex.
func (t Tree) Hashes() map[string]string {
	h := make(map[string]string, len(t))
	for p, data := range t {
		h[p] = Hash(data)
	}
	return h
}

// Hash is the SHA-256 of data in hex.
func Hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Sync makes dir hold the files of the tree and no others. Files that are right already are not touched, the rest are
// replaced as a whole, so that an interruption leaves every file either old or new.
func (t Tree) Sync(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if _, ok := t[filepath.ToSlash(rel)]; !ok || !d.Type().IsRegular() {
			return os.Remove(path)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, p := range t.Paths() {
		path := filepath.Join(dir, filepath.FromSlash(p))
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, t[p]) {
			continue
		}
		if err := WriteFile(path, t[p]); err != nil {
			return err
		}
	}
	return nil
}

// WriteFile writes a file, which is there whole or not at all; its folder is made.
func WriteFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return outfile.WriteBytes(path, data)
}
