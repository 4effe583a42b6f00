package fake

import (
	"archive/tar"
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/pins"
)

// A Release is a llama.cpp of a few files, which is the pinned one while the test runs, and its three sources.
type Release struct {
	Folder     string // an unpacked release
	Repository string // a bare repository with the tag, where git finds upstream's
	Package    string // the archive that npm packs; without it, npm fails
}

// npm packs what FAKE_NPM names.
const npm = `#!/bin/sh
if ! [ -f "$FAKE_NPM" ]; then
	case "$*" in *--silent*) exit 1;; esac
	printf 'npm error code ENETUNREACH\nnpm error network unreachable\nnpm error A complete log of this run can be found in: a file\n' >&2
	exit 1
fi
for a; do
	case $a in --pack-destination=*) cp "$FAKE_NPM" "${a#*=}/package.tgz";; esac
done
`

// LlamaRelease makes a release of the files. Those in extra are not pinned.
func LlamaRelease(t *testing.T, files, extra map[string]string) *Release {
	t.Helper()
	r := &Release{Folder: t.TempDir(), Repository: filepath.Join(t.TempDir(), "llama.cpp.git"), Package: filepath.Join(t.TempDir(), "package.tgz")}
	pinned := pins.Llama
	t.Cleanup(func() { pins.Llama = pinned })
	pins.Llama.Sums, pins.Llama.Devices = map[string]string{}, map[string]string{}
	for name, text := range files {
		if source.Devices.Wants(name) {
			pins.Llama.Devices[name] = tree.Hash([]byte(text))
		}
		if !source.Devices.Wants(name) || source.Wanted(name) {
			pins.Llama.Sums[name] = tree.Hash([]byte(text))
		}
		r.Write(t, name, text)
	}
	for name, text := range extra {
		r.Write(t, name, text)
	}
	t.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	for name, value := range map[string]string{
		"COUNT": "1", "KEY_0": "url.file://" + r.Repository + ".insteadOf", "VALUE_0": pinned.Repository,
	} {
		t.Setenv("GIT_CONFIG_"+name, value)
	}
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "npm"), []byte(npm), 0o755))
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	t.Setenv("FAKE_NPM", r.Package)
	r.Publish(t)
	pins.Llama.Tree = r.git(t, "rev-parse", "HEAD^{tree}")
	return r
}

// Write writes a file of the folder.
func (r *Release) Write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(r.Folder, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

// Publish makes the repository and the package from what the folder holds.
func (r *Release) Publish(t *testing.T) {
	t.Helper()
	require.NoError(t, os.RemoveAll(r.Repository))
	require.NoError(t, os.RemoveAll(filepath.Join(r.Folder, ".git")))
	r.git(t, "init", "--quiet")
	r.git(t, "add", ".")
	r.git(t, "-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "release")
	r.git(t, "tag", pins.Llama.Tag)
	r.git(t, "clone", "--quiet", "--bare", ".", r.Repository)
	bundle := filepath.Join(t.TempDir(), "bundle")
	r.git(t, "bundle", "create", "--quiet", bundle, "HEAD")
	data, err := os.ReadFile(bundle)
	require.NoError(t, err)
	f, err := os.Create(r.Package)
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	archive := tar.NewWriter(z)
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "package/" + pins.Llama.Bundle, Mode: 0o644, Size: int64(len(data))}))
	_, err = archive.Write(data)
	require.NoError(t, err)
	require.NoError(t, archive.Close())
	require.NoError(t, z.Close())
	require.NoError(t, f.Close())
}

func (r *Release) git(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("git", append([]string{"-C", r.Folder}, args...)...).CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}
