package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	lesskv "github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/limits"
)

// The worker under the address sanitizer, with llama.cpp, and every source of ours under the undefined-behaviour one too, does what an
// app does: it decodes prompts and tokens under every policy, with and without kernels, windows, strided inputs layers that share or differ, and on the device, copies, cuts,
// saves, restores, aborts. The sanitizers end the process at the first fault, and at its end if memory has leaked.
func TestSanitizers(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the runtime again")
	}
	t.Parallel()
	path := sanitizedRuntime(t).Worker()

	type setting struct {
		name  string
		model string
		less  worker.LESS
	}
	settings := []setting{
		{"h2o, kernels", gopher, worker.LESS{Policy: "h2o", Budget: 41, Adapter: "testdata/gopher-5m.h2o-41.lesskv.gguf"}},
		{"peak, kernels", gopher, worker.LESS{Policy: "peak", Budget: 41, Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf"}},
		{"h2o, q8_0", gopher, worker.LESS{Policy: "h2o", Budget: 3, TypeK: "q8_0", TypeV: "q8_0"}},
		{"h2o, kernels, q4_0", gopher, worker.LESS{Policy: "h2o", Budget: 41, TypeK: "q4_0", TypeV: "q4_0", Adapter: "testdata/gopher-5m.h2o-41.lesskv.gguf"}},
		{"the plain loops", gopher, worker.LESS{Policy: "h2o", Budget: 41, Reference: true}},
		{"on the device, kernels", gopher, worker.LESS{Policy: "peak", Budget: 41, Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf", OnDevice: true}},
		{"on the device, micro-batches beyond the recent", gopher, worker.LESS{Policy: "h2o", Budget: 16, TypeK: "f32", OnDevice: true}},
		{"on the device, by head", gopher, worker.LESS{Policy: "h2o", Slots: byHead, Adapter: "testdata/gopher-5m.h2o-41.lesskv.gguf", OnDevice: true}},
		{"on the device, sliding windows, layers that share", tiny(t, "gemma3n"), worker.LESS{Policy: "peak", Budget: 40, OnDevice: true}},
		{"on the device, sinks", tiny(t, "granite-swa"), worker.LESS{Policy: "h2o", Budget: 40, OnDevice: true}},
		{"on the device, Mamba 2 beside attention", tiny(t, "falcon-h1"), worker.LESS{Policy: "lambda", Budget: 40, OnDevice: true}},
		{"sliding windows", tiny(t, "gemma3"), worker.LESS{Policy: "h2o", Budget: 40}},
		{"soft-cap", tiny(t, "gemma2"), worker.LESS{Policy: "peak", Budget: 40}},
		{"strided", tiny(t, "falcon"), worker.LESS{Policy: "peak", Budget: 40}},
		{"layers that share", tiny(t, "gemma3n"), worker.LESS{Policy: "h2o", Budget: 40}},
		{"layers that share, the plain loops", tiny(t, "gemma3n"), worker.LESS{Policy: "peak", Budget: 40, Reference: true}},
		{"heads of two sizes, quantised", tiny(t, "gemma4-64"), worker.LESS{Policy: "peak", Budget: 40, TypeK: "q8_0", TypeV: "q4_0"}},
		{"layers that differ", tiny(t, "openelm"), worker.LESS{Policy: "h2o", Budget: 40}},
		{"delta net, quantised", tiny(t, "qwen35"), worker.LESS{Policy: "peak", Budget: 40, TypeK: "q4_0", TypeV: "q8_0"}},
		{"short convolutions, sliding windows", tiny(t, "lfm2-window"), worker.LESS{Policy: "h2o", Budget: 40}},
		{"Mamba 2 beside attention", tiny(t, "falcon-h1"), worker.LESS{Policy: "h2o", Budget: 40}},
	}
	for _, policy := range lesskv.PolicyNames() {
		settings = append(settings, setting{policy + ", f32", gopher, worker.LESS{Policy: policy, Budget: 16, TypeK: "f32", TypeV: "f32"}})
	}
	for _, c := range settings {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			defer cancel()
			w, err := worker.Start(ctx, path)
			require.NoError(t, err)
			closed := false
			defer func() {
				if !closed {
					w.Close()
				}
			}()

			info, err := w.Open(worker.Config{Model: c.model, Context: 512, Ubatch: 24, Sequences: 2, LESS: &c.less})
			require.NoError(t, err)
			tokens := randomTokens(120, info.Vocab)

			_, err = w.Decode(0, 0, tokens[:80], worker.Last)
			require.NoError(t, err)
			for i := 80; i < 86; i++ {
				_, err = w.Decode(0, i, tokens[i:i+1], worker.Last)
				require.NoError(t, err)
			}
			state, err := w.Save(0)
			require.NoError(t, err)
			assert.NoError(t, w.SeqCopy(0, 1, worker.End, worker.End))
			_, err = w.Decode(1, 86, tokens[86:], worker.None)
			require.NoError(t, err)
			_, err = w.Load(1, state)
			assert.NoError(t, err)
			_, err = w.Load(1, state[:len(state)/2])
			assert.Error(t, err)
			assert.Error(t, w.SeqRemove(1, 3, worker.End), "what is folded cannot be taken back")
			require.NoError(t, w.AbortAfter(20))
			_, err = w.Decode(1, 86, tokens[86:], worker.None)
			assert.Error(t, err)
			require.NoError(t, w.AbortAfter(-1))
			assert.NoError(t, w.Clear())
			_, err = w.Decode(1, 0, tokens[:50], worker.None)
			assert.NoError(t, err)

			closed = true
			assert.NoError(t, w.Close(), "a sanitizer has found something")
		})
	}
}

// What go-llama.cpp's calls do in C++, under the same sanitizers: the plugin's tests.
func TestSanitizedBinding(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the runtime again")
	}
	t.Parallel()
	sanitized := sanitizedRuntime(t)
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	work := filepath.Join(t.TempDir(), "go.work")
	require.NoError(t, os.WriteFile(work, fmt.Appendf(nil, "go 1.24.0\n\nuse %q\nuse %q\n", root, sanitized.Package()), 0o644))
	skipped, short := notSanitized, "-short=false"
	if !soak() {
		skipped, short = slices.Concat(notSanitized, longSanitized), "-short"
	}
	cmd := exec.Command("go", "test", "-v", "-asan", "-vet=off", "-timeout=60m", "-count=1", short, "-skip", "^("+strings.Join(skipped, "|")+")$", "github.com/lesskv/lesskv/plugin")
	cmd.Env = append(os.Environ(), "GOWORK="+work, "ASAN_OPTIONS=allocator_may_return_null=1") // as malloc does
	out, err := cmd.CombinedOutput()
	assert.NoError(t, err, "%s", out)
}

// notSanitized are tests of the plugin that measure memory or address space, of which a sanitizer takes its part, that preload a library where
// the sanitizer's must be first, or do what others do: a hundred times, or in a dozen processes with other limits.
var notSanitized = []string{"TestNUMA", "TestCheckpointPeak", "TestLoadStatePeak", "TestBudgetBeyondMemory", "TestSpeculativeSamplesAmongTheLikely",
	"TestCheckpointBeyondMemory", "TestThreadsOfAControlGroup", "TestSaveStateIsOnTheDisk"}

// longSanitized are tests that make soak alone sanitizes: thousands of tokens, of which other tests have some.
var longSanitized = []string{"TestLESSEndsAtTheTrainedContext", "TestSpeculativeSamples", "TestSamplingFollowsItsReference"}

// sanitizedRuntime assembles the patched runtime under the sanitizers, in a folder of the build folder: the second time only what has
// changed is compiled. All of llama.cpp is under them in make soak.
func sanitizedRuntime(t *testing.T) layout.Layout {
	t.Helper()
	build, err := layout.Find(".")
	require.NoError(t, err)
	path, err := filepath.Abs(filepath.Join(string(build), "sanitized"))
	require.NoError(t, err)
	sanitized := layout.Layout(path)
	what := "part"
	if soak() {
		what = "all"
	}

	// What is not under them is compiled already.
	require.NoError(t, os.MkdirAll(sanitized.Objects(), 0o755))
	lock, err := os.OpenFile(sanitized.Lock(), os.O_CREATE, 0o600) // a folder with things in it and without this is somebody else's
	require.NoError(t, err)
	require.NoError(t, lock.Close())
	objects, err := os.ReadDir(build.Objects())
	require.NoError(t, err)
	for _, o := range objects {
		if err := os.Link(filepath.Join(build.Objects(), o.Name()), filepath.Join(sanitized.Objects(), o.Name())); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Log(err) // it is compiled again
			break
		}
	}
	app := t.TempDir() // what it is for; without one, this checkout would use it
	require.NoError(t, os.WriteFile(filepath.Join(app, "go.mod"), []byte("module app\n\ngo 1.24.0\n"), 0o644))
	cmd := exec.Command("go", "run", "./patches", "-app", app, "-build", path, "-sanitize", what)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOWORK=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return sanitized
}

// workerSources are the files of the verification worker.
func workerSources(t *testing.T, build layout.Layout) []string {
	t.Helper()
	sources, err := build.Own("worker*.cpp")
	require.NoError(t, err)
	return sources
}

// compile compiles sources of the patched runtime that are cgo/'s, or copies of such, and returns the objects, in dir.
func compile(t *testing.T, build layout.Layout, dir string, sources []string, flags ...string) (objects []string) {
	t.Helper()
	flags = append(flags, "-DLESSKV", "-pthread", "-I", filepath.Join(build.Sources(), "less"), "-I", build.Package()) // binding.h
	for _, d := range []string{"include", "src", "ggml/include", "ggml/src"} {
		flags = append(flags, "-isystem", filepath.Join(build.Sources(), d))
	}
	if runtime.GOARCH == "amd64" {
		flags = append(flags, "-march=native")
	}
	if runtime.GOOS == "linux" {
		flags = append(flags, "-D_GNU_SOURCE")
	}

	cc, cxx := tool("CC", "gcc"), tool("CXX", "g++")
	var g errgroup.Group
	g.SetLimit(limits.CPUs())
	for _, source := range sources {
		object := filepath.Join(dir, filepath.Base(source)+".o")
		objects = append(objects, object)
		args := append([]string{"-c", source, "-o", object}, flags...)
		command := cxx
		if strings.HasSuffix(source, ".c") {
			command, args = cc, append(args, "-std=c11")
		} else {
			args = append(args, "-std=c++17")
		}
		g.Go(func() error { return execute(t, command, args...) })
	}
	require.NoError(t, g.Wait())
	return objects
}

func tool(variable, name string) string {
	if v := os.Getenv(variable); v != "" {
		return v
	}
	return name
}

func execute(t *testing.T, name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Logf("%s %s\n%s", name, strings.Join(args, " "), out)
	}
	return err
}
