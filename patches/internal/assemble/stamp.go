package assemble

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/pins"
)

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
	Files  map[string]string `json:"files"`            // SHA-256 by path in the build folder
	Strict bool              `json:"strict,omitempty"` // our own sources gave no warning
}

func (a *assembly) stampPath(k kind) string {
	return filepath.Join(string(a.out), "."+k.String()+".json")
}

// inputs is the hash of everything that a tree is made from.
func (a *assembly) inputs(k kind) string {
	in := map[string]any{
		"format": format, "go-llama.cpp": pins.GoLlama, "llama.cpp": a.llamaHashes(),
		"target": a.tools, "flags": [][]string{common, ggml, llama, ours, a.recipe.isa},
		"sources": a.less(k).Hashes(),
	}
	for key, id := range a.recipe.identity {
		in[fmt.Sprint("identity", key)] = id
	}
	if k == patched {
		in["series"] = a.series
	}
	if a.recipe.sanitize != sanitizeNothing {
		in["sanitize"] = []any{a.recipe.sanitize, a.recipe.sanitize.flags(""), a.recipe.sanitize.flags(less)}
	}
	if len(a.recipe.levels) > 0 {
		in["levels"] = []any{a.recipe.levels, entries}
	}
	for name, m := range a.recipe.backends {
		in["backend "+name] = []any{m.flags, m.libs, m.identity}
	}
	data, err := json.Marshal(in)
	if err != nil {
		panic(err) // strings, numbers, and structs of them
	}
	return tree.Hash(data)
}

// llamaHashes are those of llama.cpp's sources, which need not be there yet if they are the pinned ones.
func (a *assembly) llamaHashes() map[string]string {
	hashes := pins.Llama.Sums
	if a.release != nil {
		hashes = a.release.Files.Hashes()
	}
	if len(a.backends) == 0 {
		return hashes
	}
	devices := pins.Llama.Devices
	if a.devices != nil {
		devices = a.devices.Files.Hashes()
	}
	hashes = maps.Clone(hashes)
	maps.Copy(hashes, chosenFiles(devices, a.recipe.backends))
	return hashes
}

// less returns the sources of cgo/ that belong into a tree: all of them, or the worker alone, with what chooses among
// ggml's loops.
func (a *assembly) less(k kind) tree.Tree {
	t := tree.Tree{}
	for p, data := range a.sources {
		if k == patched || isWorker(p) || isLevelChoice(p) {
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
		if err != nil || json.Unmarshal(data, &s) != nil || s.Inputs != a.inputs(k) || a.Strict && !s.Strict {
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
