package assemble

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lesskv/lesskv/patches/internal/build"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/layout"
)

// pack makes the Go package in a staging folder and puts it in the place of the old one, which a go.work may name: it is
// never missing. It returns the hashes of its files.
func (a *assembly) pack(ctx context.Context, b *build.Builder, goLlama tree.Tree, objects []string) (map[string]string, error) {
	staging := filepath.Join(string(a.out), ".staging")
	if err := os.RemoveAll(staging); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(staging, 0o755); err != nil {
		return nil, err
	}
	archive := filepath.Join(staging, "libbinding.a")
	if err := b.Archive(ctx, archive, objects); err != nil {
		return nil, err
	}
	hash, err := hashFile(archive)
	if err != nil {
		return nil, err
	}
	// By this name llama.go includes it: an app may have another version of the file, and flags that let cgo find it first.
	if err := goLlama.Add("lesskv_upstream.h", goLlama["binding.h"]); err != nil {
		return nil, err
	}
	delete(goLlama, "binding.h")
	for _, h := range packageHeaders {
		if data, ok := a.sources[less+h]; ok {
			if err := goLlama.Add(h, data); err != nil {
				return nil, err
			}
		}
	}
	if err := goLlama.Add(layout.StampFile, stampFile(hash, a.release.String(), a.recipe.flags(), a.recipe.compiler, a.recipe.extraLibs())); err != nil {
		return nil, err
	}
	for p, data := range goLlama {
		if err := tree.WriteFile(filepath.Join(staging, filepath.FromSlash(p)), data); err != nil {
			return nil, err
		}
	}
	if err := swap(staging, a.out.Package()); err != nil {
		return nil, err
	}
	hashes := goLlama.Hashes()
	hashes["libbinding.a"] = hash
	return hashes, os.RemoveAll(staging)
}

func hashFile(path string) (string, error) {
	data, err := os.ReadFile(path)
	return tree.Hash(data), err
}

// swap puts the folder from in the place of the folder to, and the old one, if there is one, in the place of from.
func swap(from, to string) error {
	if _, err := os.Stat(to); errors.Is(err, fs.ErrNotExist) {
		return os.Rename(from, to)
	}
	err := exchange(from, to)
	if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	// A file system that can't exchange two names.
	old := from + ".old"
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(to, old); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return os.Rename(old, from)
}
