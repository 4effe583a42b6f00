//go:build cgo

package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo"
	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
)

func TestVersion(t *testing.T) {
	status, out, stderr := command("", "version")
	require.Equal(t, exitOK, status, stderr)
	said := strings.Join(strings.Fields(out), " ") + " " // a long path has more lines
	for _, want := range []string{"lesskv ", " runtime llama.cpp v0.5.0, -m", " archive ", " kernels " + kernels.Level() + ", chosen for this CPU ", " up to date, and the one in this lesskv "} {
		assert.Contains(t, said, want)
	}
	assert.Equal(t, strings.Contains(said, " and -march="), strings.Contains(said, " ggml x86-64-v"), said)
	status, out, _ = command("", "--version")
	assert.Equal(t, exitOK, status)
	assert.Equal(t, "lesskv version "+provenance.Version()+"\n", out)
	status, _, _ = command("", "version", "x")
	assert.Equal(t, exitUsage, status)
}

// What is said of levels is what the runtime chose, whichever the environment names: not what the kernels of the command's own chose, which
// are compiled for other processors.
func TestVersionSaysTheRuntimesLevels(t *testing.T) {
	for _, level := range []string{"", "x86-64", "x86-64-v3"} {
		t.Setenv("LESSKV_LEVEL", level)
		cmd := exec.Command(os.Args[0], "version")
		cmd.Env = append(os.Environ(), playCommand+"=1")
		out, err := cmd.Output()
		require.NoError(t, err)

		program, err := worker.Path(worker.Patched)
		require.NoError(t, err)
		w, err := worker.Start(t.Context(), program)
		require.NoError(t, err)
		model, err := testdata.Path(testdata.Model)
		require.NoError(t, err)
		_, err = w.Open(worker.Config{Model: model, Context: 64, LESS: &worker.LESS{}})
		require.NoError(t, err)
		info, err := w.LESS()
		require.NoError(t, err)
		require.NoError(t, w.Close())

		want := []string{info.Level}
		if info.GGMLLevel != "" {
			want = append(want, info.GGMLLevel)
		}
		var said []string
		for _, line := range regexp.MustCompile(`(?m)^(?:kernels|ggml) +(.*), chosen for this CPU$`).FindAllStringSubmatch(string(out), -1) {
			said = append(said, line[1])
		}
		assert.Equal(t, want, said, level)
	}
}

func TestDoctor(t *testing.T) {
	status, out, stderr := command("", "doctor")
	require.Equal(t, exitOK, status, out+stderr)
	assert.Contains(t, out, "LESS is the unmodified runtime to ")
	assert.NotContains(t, out, "BAD")
	assert.Contains(t, out, "go1.")
	assert.Contains(t, out, "llama.cpp v0.5.0")
}

// A compiler is named as cgo takes it: in quotation marks, where a word of it holds spaces.
func TestDoctorReadsQuotations(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "my gcc")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.Symlink(gcc, filepath.Join(dir, "gcc")))
	want, err := compiler(t.Context(), "NO_SUCH_VARIABLE", "gcc")
	require.NoError(t, err)
	t.Setenv("CC", "'"+dir+"/gcc' -O2")
	got, err := compiler(t.Context(), "CC", "gcc")
	require.NoError(t, err)
	assert.Equal(t, want, got)
	t.Setenv("CC", "'"+dir+"/gcc -O2")
	_, err = compiler(t.Context(), "CC", "gcc")
	require.ErrorContains(t, err, "a quotation does not end")
}

// What is wrong is said, and the status is 3: no compiler, a runtime of other sources, none.
func TestDoctorFinds(t *testing.T) {
	t.Setenv("CXX", "no-such-compiler")
	build := layout.Layout(t.TempDir())
	t.Setenv(layout.Variable, string(build))
	status, out, stderr := command("", "doctor")
	assert.Equal(t, exitChecks, status)
	assert.Contains(t, out, "BAD: no-such-compiler")
	assert.Contains(t, out, "no libbinding.a")
	assert.Contains(t, stderr, "2 of 7 checks failed")

	t.Setenv("CXX", "")
	require.NoError(t, os.MkdirAll(build.Package(), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(build.Sources(), "less"), 0o755))
	write(t, build.Package(), "libbinding.a", "")
	write(t, filepath.Join(build.Sources(), "less"), "adapter.h", "// another version\n")
	status, out, stderr = command("", "doctor")
	assert.Equal(t, exitChecks, status)
	assert.Contains(t, out, "stale, cgo/kernels/adapter.h differs")
	assert.Contains(t, stderr, "1 of 7 checks failed")
	status, out, _ = command("", "version")
	assert.Equal(t, exitOK, status)
	assert.Contains(t, out, "stale")

	require.NoError(t, fs.WalkDir(cgo.Sources, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := cgo.Sources.ReadFile(name)
		require.NoError(t, err)
		return os.WriteFile(filepath.Join(build.Sources(), "less", d.Name()), data, 0o644)
	}))
	status, out, stderr = command("", "doctor") // the archive is another
	assert.Equal(t, exitChecks, status)
	assert.Contains(t, out, "BAD: up to date, but not the one in this lesskv")
	assert.Contains(t, stderr, "1 of 7 checks failed")
}

// It says where llama.cpp is, or where it would come from, in the order in which an assembly looks for it.
func TestDoctorSources(t *testing.T) {
	home, tools := t.TempDir(), t.TempDir()
	for _, name := range []string{"HOME", "XDG_CACHE_HOME"} {
		t.Setenv(name, home)
	}
	tool := func(name string) {
		require.NoError(t, os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/sh\n"), 0o755))
	}
	t.Setenv("PATH", tools)
	t.Setenv(layout.SourcesVariable, "")
	_, err := sources()
	assert.ErrorContains(t, err, "can't be fetched")
	assert.ErrorContains(t, err, "apt-get install git")
	tool("git")
	said, err := sources()
	require.NoError(t, err)
	assert.Contains(t, said, "git fetches it from https://github.com/")
	assert.Contains(t, said, "no npm")
	tool("npm")
	said, err = sources()
	require.NoError(t, err)
	assert.Contains(t, said, ", or npm")

	kept, err := layout.KeptSources()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(kept, home))
	require.NoError(t, os.MkdirAll(kept, 0o755))
	said, err = sources()
	require.NoError(t, err)
	assert.Equal(t, "llama.cpp v0.5.0, in "+kept, said)

	named := t.TempDir()
	t.Setenv(layout.SourcesVariable, named)
	_, err = sources()
	assert.ErrorContains(t, err, "$LESSKV_LLAMA: ")
	write(t, named, "CMakeLists.txt", "")
	said, err = sources()
	require.NoError(t, err)
	assert.Equal(t, named+", which $LESSKV_LLAMA names", said)

	_, err = goCommand(t.Context())
	assert.ErrorContains(t, err, "https://go.dev/dl")
}

// Outside a checkout the command finds the worker of the runtime that it was linked with.
func TestOutsideACheckout(t *testing.T) {
	t.Setenv(layout.Variable, "") // and it is as it was afterwards
	t.Chdir(t.TempDir())
	status, out, stderr := command("", "doctor")
	assert.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "LESS is the unmodified runtime to ")
	status, out, stderr = command("", "version")
	assert.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, linkedFolder()+": up to date")
}
