package source_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/fake"
	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/lock"
)

// The sums are those of what is used, and of nothing that was forgotten.
func TestSums(t *testing.T) {
	require.Greater(t, len(pins.Llama.Sums), 200)
	for p, sum := range pins.Llama.Sums {
		require.True(t, source.Wanted(p), p)
		require.Len(t, sum, 64, p)
	}
	for _, p := range []string{"CMakeLists.txt", "LICENSE", "include/llama.h", "src/llama-graph.cpp", "src/models/llama.cpp", "ggml/src/ggml-cpu/ops.cpp"} {
		require.Contains(t, pins.Llama.Sums, p)
	}
	for _, p := range []string{"common/common.cpp", "ggml/src/ggml-cuda/ggml-cuda.cpp", "ggml/src/ggml-cpu/kleidiai/kleidiai.cpp", "ggml/src/ggml-cpu/spacemit/ime.cpp", "src/CMakeLists.txt"} {
		require.False(t, source.Wanted(p), p)
	}
	require.Greater(t, len(pins.Llama.Tests), 200)
	for p, sum := range pins.Llama.Tests {
		require.True(t, source.Tests.Wants(p), p)
		require.Len(t, sum, 64, p)
	}
	for _, p := range []string{"tests/CMakeLists.txt", "tests/test-backend-ops.cpp", "models/ggml-vocab-llama-bpe.gguf", "common/arg.cpp", "vendor/nlohmann/json.hpp"} {
		require.Contains(t, pins.Llama.Tests, p)
	}
	require.Greater(t, len(pins.Llama.Devices), 200)
	for p, sum := range pins.Llama.Devices {
		require.True(t, source.Devices.Wants(p), p)
		require.Len(t, sum, 64, p)
	}
	for _, p := range []string{"CMakeLists.txt", source.RPCServer, "ggml/src/ggml-blas/ggml-blas.cpp", "ggml/src/ggml-cuda/ggml-cuda.cu",
		"ggml/src/ggml-metal/ggml-metal-device.m", "ggml/src/ggml-rpc/ggml-rpc.cpp"} {
		require.Contains(t, pins.Llama.Devices, p)
	}
	for _, p := range []string{"ggml/src/ggml-sycl/ggml-sycl.cpp", "ggml/src/ggml-cpu/ops.cpp", "ggml/src/ggml-rpc/CMakeLists.txt"} {
		require.False(t, source.Devices.Wants(p), p)
	}
}

type bench struct {
	*testing.T
	r   *fake.Release
	log bytes.Buffer
	o   source.Options
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, r: fake.LlamaRelease(t, map[string]string{
		"CMakeLists.txt":  "set(LLAMA_VERSION_MAJOR 0)\nset(LLAMA_VERSION_MINOR 5)\nset(LLAMA_VERSION_PATCH 0)\n",
		"include/llama.h": "// llama.h\n", "src/llama.cpp": "int llama;\n",
	}, map[string]string{"tests/test.cpp": "int test;\n"})}
	b.o = source.Options{Cache: filepath.Join(t.TempDir(), "sources"), Log: &b.log}
	return b
}

// fetch fetches, and returns what the log says.
func (b *bench) fetch() string {
	b.Helper()
	b.log.Reset()
	got, err := source.Fetch(b.Context(), b.o)
	require.NoError(b, err)
	require.True(b, got.Pinned)
	require.Len(b, got.Files, 3)
	require.Equal(b, "int llama;\n", string(got.Files["src/llama.cpp"]))
	require.Equal(b, "llama.cpp v0.5.0", got.String())
	return b.log.String()
}

// fail fetches and wants an error; nothing is kept then.
func (b *bench) fail() error {
	b.Helper()
	_, err := source.Fetch(b.Context(), b.o)
	require.Error(b, err)
	b.keeps()
	return err
}

// keeps wants that the cache holds that, and its lock.
func (b *bench) keeps(names ...string) {
	b.Helper()
	entries, err := os.ReadDir(b.o.Cache)
	require.NoError(b, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	require.ElementsMatch(b, append(names, "lock"), got)
}

func (b *bench) remove(path string) {
	b.Helper()
	require.NoError(b, os.RemoveAll(path))
}

func TestFromGit(t *testing.T) {
	b := newBench(t)
	require.Contains(t, b.fetch(), "cloning "+pins.Llama.Repository+" v0.5.0")
	require.NotContains(t, b.log.String(), "git tree")
	b.keeps("llama.cpp-v0.5.0")

	b.remove(b.r.Repository)
	b.remove(b.r.Package)
	require.Empty(t, b.fetch(), "it is kept")

	kept := filepath.Join(b.o.Cache, "llama.cpp-v0.5.0", "src/llama.cpp")
	require.NoError(t, os.WriteFile(kept, []byte("int evil;\n"), 0o644))
	require.Error(t, b.fetchError(), "what is kept is compared too")
	b.r.Publish(t)
	require.Contains(t, b.fetch(), "fetching it again")
}

func (b *bench) fetchError() error {
	_, err := source.Fetch(b.Context(), b.o)
	return err
}

func TestFromNPM(t *testing.T) {
	b := newBench(t)
	b.remove(b.r.Repository)
	log := b.fetch()
	require.Contains(t, log, "trying npm")
	require.Contains(t, log, "downloading the npm package "+pins.Llama.Package)
	b.keeps("llama.cpp-v0.5.0")
}

// A folder's name is no pattern.
func TestBracketInCache(t *testing.T) {
	b := newBench(t)
	b.remove(b.r.Repository)
	b.o.Cache = filepath.Join(t.TempDir(), "x[1")
	require.Contains(t, b.fetch(), "trying npm")
	b.keeps("llama.cpp-v0.5.0")
}

// A source that has another tree is used if nothing in it differs that is.
func TestOtherTree(t *testing.T) {
	b := newBench(t)
	b.r.Write(t, "tests/test.cpp", "int other;\n")
	b.r.Publish(t)
	require.Contains(t, b.fetch(), "its files will tell")
}

func TestTampered(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.Rename(b.r.Package, b.r.Package+".good"))
	b.r.Write(t, "src/llama.cpp", "int evil;\n")
	b.r.Publish(t)
	err := b.fail()
	var missing *source.NotFoundError
	require.ErrorAs(t, err, &missing)
	for _, e := range []error{missing.Git, missing.NPM} {
		var different *source.DifferentError
		require.ErrorAs(t, e, &different)
		require.Equal(t, []string{"src/llama.cpp"}, different.Files)
	}
	require.ErrorContains(t, err, pins.Llama.Repository+" is not llama.cpp v0.5.0 as it was released: src/llama.cpp")

	require.NoError(t, os.Rename(b.r.Package+".good", b.r.Package))
	require.Contains(t, b.fetch(), "src/llama.cpp; trying npm", "the next one is tried")

	b.r.Write(t, "src/llama.cpp", "int llama;\n")
	b.remove(filepath.Join(b.r.Folder, "include"))
	b.r.Publish(t)
	b.remove(filepath.Join(b.o.Cache, "llama.cpp-v0.5.0"))
	require.ErrorContains(t, b.fail(), "include")
}

// With none of the sources the error names all three, and what each said.
func TestNowhere(t *testing.T) {
	b := newBench(t)
	b.remove(b.r.Repository)
	b.remove(b.r.Package)
	err := b.fail()
	for _, want := range []string{"-llama DIR", "LESSKV_LLAMA", "git: git: exit status 128: ", "npm: npm: exit status 1: network unreachable"} {
		require.ErrorContains(t, err, want)
	}

	t.Setenv("PATH", t.TempDir())
	err = b.fail()
	require.ErrorIs(t, err, exec.ErrNotFound)
	require.ErrorContains(t, err, "git is not in PATH")
	require.ErrorContains(t, err, "npm is not in PATH")
}

// A package that is not what it should be: cut off, empty, or without the release.
func TestBadPackage(t *testing.T) {
	b := newBench(t)
	b.remove(b.r.Repository)
	whole, err := os.ReadFile(b.r.Package)
	require.NoError(t, err)
	for _, data := range [][]byte{whole[:len(whole)/2], {}, []byte("no archive")} {
		require.NoError(t, os.WriteFile(b.r.Package, data, 0o644))
		b.fail()
	}
	bundle := pins.Llama.Bundle
	pins.Llama.Bundle = "llama/elsewhere"
	require.NoError(t, os.WriteFile(b.r.Package, whole, 0o644))
	require.ErrorContains(t, b.fail(), "holds no package/llama/elsewhere")
	pins.Llama.Bundle = bundle
	b.fetch()
}

// What an interrupted run has left is begun anew.
func TestInterrupted(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := b.o
	o.Log = writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "cloning") {
			cancel()
		}
		return len(p), nil
	})
	_, err := source.Fetch(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
	b.keeps()

	left := filepath.Join(b.o.Cache, "fetching") // as a killed run leaves it
	require.NoError(t, os.MkdirAll(filepath.Join(left, "kept/src"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(left, "kept/src/llama.cpp"), []byte("int evil;\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(left, "git"), []byte("half\n"), 0o644))
	b.fetch()
	b.keeps("llama.cpp-v0.5.0")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A host that takes connections and says nothing is no reason to wait for ever: the next source is tried.
func TestSilentHost(t *testing.T) {
	b := newBench(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	t.Setenv("GIT_CONFIG_KEY_0", "url.http://"+l.Addr().String()+"/llama.cpp.insteadOf")
	b.o.Answer = 500 * time.Millisecond
	require.Contains(t, b.fetch(), "no answer from "+pins.Llama.Repository+" in 500ms; trying npm")

	b.remove(filepath.Join(b.o.Cache, "llama.cpp-v0.5.0"))
	b.o.Answer, b.o.Whole = time.Minute, 500*time.Millisecond
	require.Contains(t, b.fetch(), "no answer in full from "+pins.Llama.Repository+" in 500ms; trying npm")

	b.remove(filepath.Join(b.o.Cache, "llama.cpp-v0.5.0"))
	b.remove(b.r.Package)
	require.ErrorIs(t, b.fail(), source.ErrNoAnswer)
}

// What says that it is the release, and is not: the error names the files, and what helps.
func TestFolderThatDiffers(t *testing.T) {
	b := newBench(t)
	b.o.Folder = b.r.Folder
	_, err := source.Folder(b.o)
	require.NoError(t, err)
	b.r.Write(t, "src/llama.cpp", "int newer;\n")
	_, err = source.Folder(b.o)
	require.EqualError(t, err, b.o.Folder+" is not llama.cpp v0.5.0 as it was released: src/llama.cpp; check out the tag: git -C "+b.o.Folder+" checkout v0.5.0")
	b.remove(filepath.Join(b.o.Folder, ".git"))
	_, err = source.Folder(b.o)
	require.ErrorContains(t, err, "take the release's files")
}

func TestPrune(t *testing.T) {
	b := newBench(t)
	b.fetch()
	prune := func(age time.Duration, stay ...string) {
		t.Helper()
		require.NoError(t, source.Prune(t.Context(), b.o, age))
		b.keeps(stay...)
	}
	make := func(name string, age time.Duration) string {
		dir := filepath.Join(b.o.Cache, name)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "src"), 0o755))
		at := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(dir, at, at))
		return dir
	}
	const day = 24 * time.Hour
	current := []string{"llama.cpp-v0.5.0", "llama.cpp-v0.5.0-tests", "llama.cpp-mine", "lesskv"}
	for _, name := range current {
		make(name, 100*day)
	}
	make("llama.cpp-v0.4.0", 31*day)
	make("llama.cpp-v0.4.1-tests", 29*day)
	b.o.Folder = make("llama.cpp-v0.3.9", 100*day)
	aside := t.TempDir()
	require.NoError(t, os.Symlink(aside, filepath.Join(b.o.Cache, "llama.cpp-v0.1.0")))
	current = append(current, "llama.cpp-v0.3.9", "llama.cpp-v0.1.0")

	prune(30*day, append(current, "llama.cpp-v0.4.1-tests")...)
	l, err := lock.Wait(t.Context(), filepath.Join(b.o.Cache, "lock"), func() {})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	b.o.Log = writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	require.ErrorIs(t, source.Prune(ctx, b.o, 0), context.Canceled, "a run is fetching")
	b.o.Log = &b.log
	require.NoError(t, l.Release())
	prune(0, current...)
	require.DirExists(t, aside)

	b.fetch()
	info, err := os.Stat(filepath.Join(b.o.Cache, "llama.cpp-v0.5.0"))
	require.NoError(t, err)
	require.Less(t, time.Since(info.ModTime()), day, "it was used")
	require.NoError(t, source.Prune(t.Context(), source.Options{Cache: filepath.Join(t.TempDir(), "none")}, 0))
}

func TestVersion(t *testing.T) {
	require.Equal(t, "1.20.3", source.Version([]byte("# x\nset(GGML_VERSION_MAJOR 1)\n set(GGML_VERSION_MINOR 20)\nset(GGML_VERSION_PATCH 3)\nset(LLAMA_VERSION_MAJOR 7)\n"), "GGML"))
	require.Empty(t, source.Version([]byte("set(GGML_VERSION_MAJOR 1)\n"), "GGML"))
}
