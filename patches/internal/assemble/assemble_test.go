package assemble_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/assemble"
	"github.com/lesskv/lesskv/patches/internal/fake"
	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/workspace"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/lock"
)

const llamaPatch = `From 0 Mon Sep 17 00:00:00 2001
From: A <a@example.com>
Subject: [PATCH] hook

So that there is a hook.
---
 src/llama.cpp | 1 +

diff --git a/src/llama.cpp b/src/llama.cpp
--- a/src/llama.cpp
+++ b/src/llama.cpp
@@ -1,2 +1,3 @@
 #include "llama.h"
+#include "lesskv.h"
 int llama;
`

const goPatch = `From 0 Mon Sep 17 00:00:00 2001
From: A <a@example.com>
Subject: [PATCH] two

So that it is two.
---
diff --git a/llama.go b/llama.go
--- a/llama.go
+++ b/llama.go
@@ -1,3 +1,3 @@
 package llama
 
-const N = 1
+const N = 2
`

// A bench is a checkout, an app, a module proxy and a toolchain, all of them tiny.
type bench struct {
	*testing.T
	dir   string // the checkout
	app   string
	log   bytes.Buffer
	did   func() []string
	llama *fake.Release
	o     assemble.Options
	code  fstest.MapFS // cgo/
	sers  fstest.MapFS
}

// Under -short, as make test has the race detector, are those tests alone in which runs or compilers meet.
func newBench(t *testing.T) *bench {
	if testing.Short() && !slices.Contains([]string{"TestBothTrees", "TestInterruptedAndResumed", "TestTwoAtOnce", "TestLockIsHeld"}, t.Name()) {
		t.Skip("nothing runs beside it")
	}
	goCache, err := exec.Command("go", "env", "GOCACHE").Output()
	require.NoError(t, err)
	t.Setenv("GOCACHE", string(bytes.TrimSpace(goCache)))
	t.Setenv("XDG_CACHE_HOME", t.TempDir()) // the user's cache directory on Linux
	t.Setenv("HOME", t.TempDir())           // and on macOS, with the configuration
	t.Setenv("XDG_CONFIG_HOME", "")
	config, err := os.UserConfigDir()
	require.NoError(t, err)
	telemetry := filepath.Join(config, "go", "telemetry") // the go command leaves a process that writes here while the test ends
	require.NoError(t, os.MkdirAll(telemetry, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(telemetry, "mode"), []byte("off"), 0o644))
	proxy := fake.Proxy(t)
	b := &bench{T: t, dir: t.TempDir(), app: t.TempDir(), did: fake.Toolchain(t)}

	llama := pins.GoLlama
	t.Cleanup(func() { pins.GoLlama = llama })
	pins.GoLlama = fake.Module(t, proxy, llama.Path, "v1.0.0", map[string]string{
		"llama.go": "package llama\n\nconst N = 1\n", "binding.h": "// binding\n", "binding.cpp": "upstream's\n", "Makefile": "all:\n",
		"patches/1902.patch": "x\n", "examples/main.go": "package main\n\nfunc main() {}\n",
	})
	b.llama = fake.LlamaRelease(t, map[string]string{
		"CMakeLists.txt":                      cmake("LLAMA", "0.5.0"),
		"ggml/CMakeLists.txt":                 cmake("GGML", "0.25.1"),
		"LICENSE":                             "MIT\n",
		"include/llama.h":                     "// llama.h\n",
		"src/llama.cpp":                       "#include \"llama.h\"\nint llama;\n",
		"src/models/models.h":                 "// models.h\n",
		"src/models/falcon.cpp":               "int falcon;\n",
		"src/models/gpt2.cpp":                 "int gpt2;\n",
		"ggml/include/ggml.h":                 "// ggml.h\n",
		"ggml/src/ggml.c":                     "int ggml;\n",
		"ggml/src/ggml-cpu/quants.c":          "int quants;\n",
		"ggml/src/ggml-cpu/arch/x86/quants.c": "int x86;\n",
		"ggml/src/ggml-cpu/arch/arm/quants.c": "int arm;\n",
		// of backends that a run must ask for
		"ggml/src/ggml-backend-reg.cpp":                                        "int registry;\n",
		"ggml/src/ggml-common.h":                                               "// ggml-common.h\n",
		"ggml/src/ggml-rpc/ggml-rpc.cpp":                                       "int rpc;\n",
		"ggml/src/ggml-rpc/transport-apple.cpp":                                "#error not wanted\n",
		"tools/rpc/rpc-server.cpp":                                             "int server;\n",
		"ggml/src/ggml-blas/ggml-blas.cpp":                                     "int blas;\n",
		"ggml/src/ggml-cuda/acc.cu":                                            "int acc;\n",
		"ggml/src/ggml-cuda/template-instances/fattn-tile-instance-dkq40.cu":   "int tile;\n",
		"ggml/src/ggml-cuda/template-instances/fattn-vec-instance-f16-f16.cu":  "int pair;\n",
		"ggml/src/ggml-cuda/template-instances/fattn-vec-instance-q5_0-f16.cu": "#error not wanted\n",
		"ggml/src/ggml-vulkan/ggml-vulkan.cpp":                                 "int vulkan;\n",
		"ggml/src/ggml-vulkan/vulkan-shaders/add.comp":                         "int add; // longer than that of mul_mm, which has more variants\n",
		"ggml/src/ggml-vulkan/vulkan-shaders/mul_mm.comp":                      "int mul;\n",
		"ggml/src/ggml-vulkan/vulkan-shaders/types.glsl":                       "// types\n",
		"ggml/src/ggml-vulkan/vulkan-shaders/feature-tests/bfloat16.comp":      "#error not wanted\n",
		"ggml/src/ggml-vulkan/vulkan-shaders/vulkan-shaders-gen.cpp":           shaderProgram,
		"ggml/src/ggml-metal/ggml-metal-device.m":                              "int metal;\n",
		"ggml/src/ggml-metal/ggml-metal-impl.h":                                "// impl.h\n",
		"ggml/src/ggml-metal/kernels/common.h":                                 "#pragma once\n#include \"ggml-metal-impl.h\"\n__embed_ggml-common.h__\n",
		"ggml/src/ggml-metal/kernels/quantize.h":                               "#pragma once\n#include \"common.h\"\n// quantize.h\n",
		"ggml/src/ggml-metal/kernels/fa.metal":                                 "#include \"common.h\"\nkernel fa;\n",
		"ggml/src/ggml-metal/kernels/cpy.metal":                                "#include \"common.h\"\n#include \"quantize.h\"\nkernel cpy;\n",
	}, map[string]string{
		"common/common.cpp":                  "#error not wanted\n",
		"tools/mtmd/mtmd.cpp":                "#error not wanted\n",
		"ggml/src/ggml-cpu/kleidiai/k.cpp":   "#error not wanted\n",
		"ggml/src/ggml-cpu/spacemit/ime.cpp": "#error not wanted\n",
	})
	b.code = fstest.MapFS{
		"kernels/lesskv.h":     {Data: []byte("// lesskv.h\n")},
		"kernels/attend.c":     {Data: []byte("#include \"lesskv.h\"\nint attend;\n")},
		"kernels/select.c":     {Data: []byte("#include \"lesskv.h\"\nint select;\n")},
		"kernels/kernels.go":   {Data: []byte("package kernels\n")},
		"llama/binding.cpp":    {Data: []byte("#include \"binding.h\"\nint binding;\n")},
		"llama/worker.cpp":     {Data: []byte("#include \"worker_wire.h\"\nint worker;\n")},
		"llama/worker_wire.h":  {Data: []byte("// wire\n")},
		"llama/lesskv-llama.h": {Data: []byte("// lesskv-llama.h\n")},
	}
	b.sers = fstest.MapFS{
		"llama.cpp/0001-hook.patch":   {Data: []byte(llamaPatch)},
		"go-llama.cpp/0001-two.patch": {Data: []byte(goPatch)},
	}
	b.write(filepath.Join(b.dir, "go.mod"), "module "+pins.Self+"\n\ngo 1.22\n")
	b.write(filepath.Join(b.app, "go.mod"), "module example.com/app\n\ngo 1.22\n")
	b.o = assemble.Options{
		Dir: b.dir, Trees: "all", Preset: "native", Jobs: 2, Series: b.sers, Sources: b.code, Log: &b.log,
	}
	return b
}

// cmake is how a release says its version.
func cmake(of, version string) string {
	v := strings.Split(version, ".")
	return fmt.Sprintf("set(%s_VERSION_MAJOR %s)\nset(%[1]s_VERSION_MINOR %[3]s)\nset(%[1]s_VERSION_PATCH %[4]s)\n", of, v[0], v[1], v[2])
}

func (b *bench) write(path, text string) {
	b.Helper()
	require.NoError(b, os.WriteFile(path, []byte(text), 0o644))
}

// files writes files below dir; all reads them all.
func (b *bench) files(dir string, files map[string]string) {
	b.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(b, os.MkdirAll(filepath.Dir(path), 0o755))
		b.write(path, text)
	}
}

func (b *bench) all(dir string) map[string]string {
	b.Helper()
	files := map[string]string{}
	require.NoError(b, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[path] = b.read(path)
		}
		return err
	}))
	return files
}

// goMust runs the go command in dir, in the environment as it is.
func (b *bench) goMust(dir string, args ...string) {
	b.Helper()
	out, err := exec.Command("go", append([]string{"-C", dir}, args...)...).CombinedOutput()
	require.NoError(b, err, string(out))
}

func (b *bench) read(names ...string) string {
	b.Helper()
	data, err := os.ReadFile(filepath.Join(names...))
	require.NoError(b, err)
	return string(data)
}

// run assembles and returns what the log says.
func (b *bench) run() string {
	b.Helper()
	b.log.Reset()
	require.NoError(b, assemble.Run(b.Context(), b.o))
	return b.log.String()
}

// fail assembles and wants an error.
func (b *bench) fail(want string) error {
	b.Helper()
	err := assemble.Run(b.Context(), b.o)
	require.ErrorContains(b, err, want, b.log.String())
	return err
}

func (b *bench) layout() layout.Layout { return layout.Layout(filepath.Join(b.dir, "build")) }

// arch is the source of ggml's folder for this machine.
func (b *bench) arch() string {
	if exec.Command("sh", "-c", `[ "$(go env GOARCH)" = arm64 ]`).Run() == nil {
		return "ggml/src/ggml-cpu/arch/arm/quants.c"
	}
	return "ggml/src/ggml-cpu/arch/x86/quants.c"
}

func TestBothTrees(t *testing.T) {
	b := newBench(t)
	b.run()
	require.ElementsMatch(t, []string{
		"archive libbinding.a", "link lesskv-worker", "link lesskv-worker-unmodified",
		"ggml/src/ggml-cpu/quants.c", b.arch(), "ggml/src/ggml.c", "ggml/src/ggml-backend-reg.cpp", "src/models/lesskv-all.cpp", // once for both trees
		"less/attend.c", "less/binding.cpp", "less/select.c",
		"less/worker.cpp", "less/worker.cpp", // with -DLESSKV and without
		"src/llama.cpp", "src/llama.cpp", // patched and not
	}, b.did())

	l := b.layout()
	require.Contains(t, b.read(l.Sources(), "src/llama.cpp"), "lesskv.h")
	require.NotContains(t, b.read(l.UnmodifiedSources(), "src/llama.cpp"), "lesskv.h")
	require.NoFileExists(t, filepath.Join(l.UnmodifiedSources(), "less/attend.c"))
	require.Equal(t, "#include \"falcon.cpp\"\n#include \"gpt2.cpp\"\n", b.read(l.Sources(), "src/models/lesskv-all.cpp")[len("// Generated: every model in one unit.\n"):])
	require.Equal(t, "#define LLAMA_VERSION \"0.5.0\"\n#define LLAMA_COMMIT \"llama.cpp v0.5.0\"\n", b.read(l.Sources(), "src/llama-version.h"))
	require.Contains(t, b.read(l.UnmodifiedSources(), "ggml/src/ggml-version.h"), "0.25.1")
	stamp, err := l.Stamp()
	require.NoError(t, err)
	require.Equal(t, "llama.cpp v0.5.0", stamp.Runtime)
	require.Len(t, stamp.Archive, 64)
	for _, said := range []string{stamp.Archive, stamp.Flags, stamp.Compiler} { // as the Go package says
		require.NotEmpty(t, said)
		require.Contains(t, b.read(l.Package(), layout.StampFile), strconv.Quote(said))
	}
	_, err = layout.Layout(t.TempDir()).Stamp()
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Contains(t, b.read(l.Sources(), "less/lesskv-cpu-features.h"), "LESSKV_CPU_FEATURES")
	require.Contains(t, b.read(l.Package(), "llama.go"), "N = 2")
	require.FileExists(t, filepath.Join(l.Package(), "examples/main.go"))
	require.FileExists(t, filepath.Join(l.Package(), "lesskv-llama.h"))
	for _, left := range []string{"binding.cpp", "Makefile", "patches"} {
		require.NoFileExists(t, filepath.Join(l.Package(), left))
	}
	archive := b.read(l.Package(), "libbinding.a")
	require.Contains(t, archive, "less_binding.cpp-")
	require.NotContains(t, archive, "less_worker.cpp-")
	require.Contains(t, b.read(l.Worker()), "int select;")
	require.NotContains(t, b.read(l.Worker()), "int binding;", "it calls back into Go")
	require.NotContains(t, b.read(l.UnmodifiedWorker()), "int select;")
	require.NoDirExists(t, filepath.Join(string(l), ".staging"))

	out, err := goCommand(b.dir, "list", "-m", "-f", "{{.Dir}}", pins.GoLlama.Path)
	require.NoError(t, err, out)
	require.Equal(t, l.Package()+"\n", out)
}

// goCommand runs the go command in the workspace of dir.
func goCommand(dir string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestSecondRunDoesNothing(t *testing.T) {
	b := newBench(t)
	b.run()
	b.did()
	t.Setenv("GOPROXY", "off") // and needs nothing
	t.Setenv("GOMODCACHE", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	require.NoError(t, os.RemoveAll(b.llama.Repository))
	require.Contains(t, b.run(), "is up to date")
	require.Empty(t, b.did())
}

// -strict finds a warning of our own sources in a runtime that is there, and compiles nothing again where there is none; llama.cpp's are
// its own.
func TestStrict(t *testing.T) {
	b := newBench(t)
	binding := b.code["llama/binding.cpp"]
	b.code["llama/binding.cpp"] = &fstest.MapFile{Data: []byte("#include \"binding.h\"\n#warning unused\n")}
	b.run()
	b.o.Strict = true
	b.did()
	b.fail("#warning unused")
	require.Empty(t, b.did())
	b.o.Strict = false
	require.Contains(t, b.run(), "is up to date", "a user's build is none the worse")

	b.code["llama/binding.cpp"] = binding
	b.run()
	b.did()
	b.o.Strict = true
	b.run()
	require.Equal(t, []string{"archive libbinding.a", "link lesskv-worker", "link lesskv-worker-unmodified"}, b.did())
	for _, strict := range []bool{true, false} {
		b.o.Strict = strict
		require.Contains(t, b.run(), "is up to date")
	}
}

func TestOneKernel(t *testing.T) {
	b := newBench(t)
	b.run()
	b.did()
	stamp := b.read(b.layout().Package(), "zz_lesskv_build.go")

	b.code["kernels/select.c"] = &fstest.MapFile{Data: []byte("#include \"lesskv.h\"\nlong select;\n")}
	b.run()
	require.Equal(t, []string{"archive libbinding.a", "less/select.c", "link lesskv-worker"}, b.did())
	require.NotEqual(t, stamp, b.read(b.layout().Package(), "zz_lesskv_build.go"), "or the go command would not link anew")

	b.code["kernels/lesskv.h"] = &fstest.MapFile{Data: []byte("// another\n")}
	b.run()
	require.Equal(t, []string{"archive libbinding.a", "less/attend.c", "less/select.c", "link lesskv-worker", "src/llama.cpp"}, b.did())

	b.code["llama/worker.cpp"] = &fstest.MapFile{Data: []byte("long worker;\n")}
	b.run()
	require.Equal(t, []string{"archive libbinding.a", "less/worker.cpp", "less/worker.cpp", "link lesskv-worker", "link lesskv-worker-unmodified"}, b.did())
}

// A policy is of one object with the list of them: nothing refers to it, and a linker would leave it in the archive.
func TestPoliciesAreOneUnit(t *testing.T) {
	b := newBench(t)
	b.code["kernels/policy.c"] = &fstest.MapFile{Data: []byte("int list;\n")}
	b.code["kernels/policy_new.c"] = &fstest.MapFile{Data: []byte("int one;\n")}
	b.run()
	did := b.did()
	require.Contains(t, did, "less/lesskv-policies.c")
	require.NotContains(t, did, "less/policy.c")
	require.NotContains(t, did, "less/policy_new.c")
	require.Equal(t, "// Generated: every policy in one unit.\n#include \"policy.c\"\n#include \"policy_new.c\"\n", b.read(b.layout().Sources(), "less/lesskv-policies.c"))
	require.NoFileExists(t, filepath.Join(b.layout().UnmodifiedSources(), "less/lesskv-policies.c"))
}

func TestStampChangesTheCompiledPackage(t *testing.T) {
	b := newBench(t)
	export := func() string {
		b.run()
		out, err := goCommand(b.dir, "list", "-export", "-f", "{{.BuildID}}", pins.GoLlama.Path)
		require.NoError(t, err, out)
		return out[bytes.LastIndexByte([]byte(out), '/'):] // the hash of the contents, which is what a link depends on
	}
	first := export()
	b.code["kernels/select.c"] = &fstest.MapFile{Data: []byte("long select;\n")}
	require.NotEqual(t, first, export())
}

func TestRepairs(t *testing.T) {
	b := newBench(t)
	b.run()
	b.did()
	for _, path := range []string{
		filepath.Join(b.layout().Package(), "libbinding.a"), filepath.Join(b.layout().Sources(), "src/llama.cpp"),
		b.layout().UnmodifiedWorker(),
	} {
		want := b.read(path)
		b.write(path, "changed")
		require.Contains(t, b.run(), path+" is not as it was made")
		require.Equal(t, want, b.read(path))
		require.NoError(t, os.Remove(path))
		b.run()
		require.Equal(t, want, b.read(path))
	}
	require.NotContains(t, b.did(), "src/llama.cpp", "the objects were still there")
}

func TestPatchThatDoesNotApply(t *testing.T) {
	b := newBench(t)
	b.sers["llama.cpp/0001-hook.patch"] = &fstest.MapFile{Data: bytes.Replace([]byte(llamaPatch), []byte(" int llama;"), []byte(" int lama;"), 1)}
	b.fail(`llama.cpp/0001-hook.patch: does not apply to src/llama.cpp, hunk 1: conflict: fragment line does not match src line: line 2 is "int llama;", want "int lama;"`)
	require.NoFileExists(t, filepath.Join(b.dir, "go.work"))
}

func TestOldRuntimeStaysWhileTheNewOneFails(t *testing.T) {
	b := newBench(t)
	b.run()
	b.code["kernels/select.c"] = &fstest.MapFile{Data: []byte("#error typing\n")}
	b.fail("less/select.c")
	out, err := goCommand(b.dir, "list", "-m", pins.GoLlama.Path)
	require.NoError(t, err, out)
	require.FileExists(t, filepath.Join(b.layout().Package(), "libbinding.a"))
}

func TestInterruptedAndResumed(t *testing.T) {
	b := newBench(t)
	b.code["kernels/slow.c"] = &fstest.MapFile{Data: []byte("#sleep\n")}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			models, _ := filepath.Glob(filepath.Join(b.layout().Objects(), "src_models_lesskv-all.cpp-*.deps"))
			if len(models) > 0 {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	require.ErrorIs(t, assemble.Run(ctx, b.o), context.Canceled)
	require.NoFileExists(t, filepath.Join(b.dir, "go.work"))
	first := b.did()
	require.NotEmpty(t, first)

	b.code["kernels/slow.c"] = &fstest.MapFile{Data: []byte("int slow;\n")}
	b.run()
	second := b.did()
	require.Contains(t, second, "less/slow.c")
	require.NotContains(t, second, "src/models/lesskv-all.cpp", "it was compiled before the interruption")
	require.Contains(t, first, "src/models/lesskv-all.cpp")
}

func TestTwoAtOnce(t *testing.T) {
	b := newBench(t)
	errs := make(chan error)
	logs := [2]bytes.Buffer{}
	for i := range logs {
		o := b.o
		o.Log = &logs[i]
		go func() { errs <- assemble.Run(context.Background(), o) }()
	}
	require.NoError(t, <-errs)
	require.NoError(t, <-errs)
	both := logs[0].String() + logs[1].String()
	require.Contains(t, both, "is up to date")
	require.Equal(t, 1, bytes.Count([]byte(fmt.Sprint(b.did())), []byte("link lesskv-worker-unmodified")))
}

func TestUnmodifiedAlone(t *testing.T) {
	b := newBench(t)
	b.o.Trees = "unmodified"
	b.sers["llama.cpp/0001-hook.patch"] = &fstest.MapFile{Data: bytes.Replace([]byte(llamaPatch), []byte(" int llama;"), []byte(" int lama;"), 1)}
	b.run()
	require.FileExists(t, b.layout().UnmodifiedWorker())
	require.NoDirExists(t, b.layout().Package())
	require.NoFileExists(t, filepath.Join(b.dir, "go.work"), "there is nothing to link to")
}

func TestClean(t *testing.T) {
	b := newBench(t)
	b.run()
	b.write(filepath.Join(b.dir, "go.work.sum"), "x\n")
	require.NoError(t, assemble.Clean(t.Context(), b.o))
	left, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "go.mod", left[0].Name())
	require.NoError(t, assemble.Clean(t.Context(), b.o), "twice")

	b.did()
	b.run()
	require.Contains(t, b.did(), "src/models/lesskv-all.cpp", "from scratch")
}

func TestFolderThatIsSomeoneElses(t *testing.T) {
	b := newBench(t)
	b.o.Build = t.TempDir()
	b.write(filepath.Join(b.o.Build, "thesis.tex"), "x\n")
	b.fail("is not empty and was not made by this program")
	require.ErrorContains(t, assemble.Clean(t.Context(), b.o), "is not empty")
	require.Equal(t, "x\n", b.read(b.o.Build, "thesis.tex"))
}

// A go.work that names a missing folder breaks the go command, but not this program.
func TestBuildFolderDeletedByHand(t *testing.T) {
	b := newBench(t)
	b.run()
	require.NoError(t, os.RemoveAll(string(b.layout())))
	out, err := goCommand(b.dir, "list", "-m")
	require.Error(t, err, out)
	t.Chdir(b.dir)
	t.Setenv("GOWORK", "")
	b.run()
	out, err = goCommand(b.dir, "list", "-m")
	require.NoError(t, err, out)
}

// Where cgo would not take the package, nothing is made; what is not a package may lie anywhere.
func TestPathThatCgoRefuses(t *testing.T) {
	b := newBench(t)
	b.o.Build = filepath.Join(t.TempDir(), "it's", "build")
	err := b.fail(`holds '\''`)
	var refused *assemble.PathError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "-build DIR")
	require.Empty(t, b.did())
	require.NoDirExists(t, b.o.Build)
	require.NoFileExists(t, filepath.Join(b.dir, "go.work"))
	b.o.Trees = "unmodified"
	b.run()
}

func TestApp(t *testing.T) {
	b := newBench(t)
	b.forApp(b.app)
	mod := b.read(b.app, "go.mod")
	require.Contains(t, b.run(), filepath.Join(b.app, "go.work")+" uses it")
	out, err := goCommand(b.app, "list", "-m", "-f", "{{.Dir}}", pins.GoLlama.Path)
	require.NoError(t, err, out)
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	require.Contains(t, out, filepath.Join(cache, "lesskv"))
	found, err := layout.Find(b.app)
	require.NoError(t, err)
	require.Equal(t, found.Package()+"\n", out)

	b.did()
	other := b.o
	other.App = t.TempDir()
	b.write(filepath.Join(other.App, "go.mod"), mod)
	require.NoError(t, assemble.Run(t.Context(), other))
	require.Empty(t, b.did(), "two apps share a runtime")

	require.NoError(t, assemble.Undo(b.o))
	require.NoFileExists(t, filepath.Join(b.app, "go.work"))
	require.DirExists(t, found.Package(), "the other app needs it")

	b.o.Replace = true
	b.run()
	require.Contains(t, b.read(b.app, "go.mod"), "replace "+pins.GoLlama.Path+" => "+found.Package())
	require.NoError(t, assemble.Undo(b.o))
	require.Equal(t, mod, b.read(b.app, "go.mod"))

	b.code["kernels/select.c"] = &fstest.MapFile{Data: []byte("long select;\n")}
	b.run()
	require.NotContains(t, b.read(b.app, "go.mod"), found.Package(), "other sources are another runtime")
}

// A runtime stays as long as a known app is tied to it, a run is at work in it, or, without -prune, something was built from it
// of late; what else lies in the cache directory stays anyway.
func TestPrune(t *testing.T) {
	b := newBench(t)
	b.forApp(b.app)
	old := b.o
	b.run()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	runtimes := func() []string {
		list, err := filepath.Glob(filepath.Join(cache, "lesskv", "????????????????", "go-llama.cpp"))
		require.NoError(t, err)
		return list
	}
	first := layout.Layout(filepath.Dir(runtimes()[0]))
	others := []string{filepath.Join(cache, "lesskv", "testdata", "x"), filepath.Join(cache, "lesskv", "0123456789abcdef", "x")}
	for _, path := range others {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		b.write(path, "")
	}
	age := func(l layout.Layout, by time.Duration) {
		for _, path := range []string{filepath.Join(string(l), ".apps.json"), filepath.Join(l.Package(), "libbinding.a")} {
			require.NoError(t, os.Chtimes(path, time.Now().Add(-by), time.Now().Add(-by)))
		}
	}
	const long = 31 * 24 * time.Hour

	// another version for another app: the first is in use
	b.code["kernels/select.c"] = &fstest.MapFile{Data: []byte("long select;\n")}
	b.o.App = t.TempDir()
	b.write(filepath.Join(b.o.App, "go.mod"), "module example.com/other\n\ngo 1.22\n")
	age(first, long)
	b.run()
	require.Len(t, runtimes(), 2)
	require.NoError(t, assemble.Prune(t.Context(), b.o))
	require.Len(t, runtimes(), 2)
	require.Contains(t, b.log.String(), string(first)+" stays: "+b.app+" uses it")

	// untied, and read of late
	require.NoError(t, assemble.Undo(old))
	age(first, 20*24*time.Hour)
	b.run()
	require.Len(t, runtimes(), 2)

	// and long ago, but a run is at work in it
	l, err := lock.Wait(t.Context(), first.Lock(), func() {})
	require.NoError(t, err)
	age(first, long)
	require.Contains(t, b.run(), string(first)+" stays: another run is at work in it")
	require.NoError(t, l.Release())
	require.Contains(t, b.run(), string(first)+" is deleted")
	require.Len(t, runtimes(), 1)
	require.NoDirExists(t, string(first))

	// one of which no list tells: -prune alone
	second := layout.Layout(filepath.Dir(runtimes()[0]))
	require.NoError(t, os.Remove(filepath.Join(string(second), ".apps.json")))
	require.NoError(t, os.Chtimes(filepath.Join(second.Package(), "libbinding.a"), time.Time{}, time.Now().Add(-long)))
	b.code["kernels/select.c"] = &fstest.MapFile{Data: []byte("short select;\n")}
	b.run()
	require.Len(t, runtimes(), 2)
	oldRelease := filepath.Join(cache, "lesskv", "sources", "llama.cpp-v0.0.1")
	require.NoError(t, os.MkdirAll(oldRelease, 0o755))
	require.NoError(t, assemble.Prune(t.Context(), b.o))
	require.Len(t, runtimes(), 1)
	require.NoDirExists(t, string(second))
	require.NoDirExists(t, oldRelease)
	for _, path := range others {
		require.FileExists(t, path)
	}
}

// forApp lets run assemble for the app in dir, and the go command heed a go.work.
func (b *bench) forApp(dir string) {
	b.Setenv("GOWORK", "")
	b.o.App, b.o.Trees, b.o.Dir = dir, "patched", b.TempDir()
}

const llamaMod = "module example.com/app\n\ngo 1.22\n\nrequire github.com/go-skynet/go-llama.cpp v1.0.0\n"

// A tie is what it says, or an error that says why the go command does not heed it. What the error advises helps, and -undo
// leaves the files as they were.
func TestLinkThatDoesNotHold(t *testing.T) {
	for name, test := range map[string]struct {
		files   map[string]string // beside and above app/
		env     [2]string
		replace bool
		want    []string
		mend    func(b *bench, app string)
	}{
		"go.work above does not list the app": {
			files: map[string]string{"go.work": "go 1.22\n\nuse ./other\n", "other/go.mod": "module example.com/other\n\ngo 1.22\n"},
			want:  []string{"DIR/go.work does not list that folder", "go work use DIR/app"},
			mend:  func(b *bench, app string) { b.goMust(app, "work", "use", app) },
		},
		"nor with -replace": {
			files: map[string]string{"go.work": "go 1.22\n"}, replace: true,
			want: []string{"DIR/go.work does not list that folder", "go work use DIR/app; or build with GOWORK=off"},
			mend: func(b *bench, _ string) { b.Setenv("GOWORK", "off") },
		},
		"GOWORK=off": {
			env:  [2]string{"GOWORK", "off"},
			want: []string{"GOWORK=off makes it ignore every go.work", "Unset GOWORK", "or link with -replace"},
			mend: func(b *bench, _ string) { b.Setenv("GOWORK", "") },
		},
		"GOWORK=off and then -replace": {
			env:  [2]string{"GOWORK", "off"},
			want: []string{"or link with -replace"},
			mend: func(b *bench, _ string) { b.o.Replace = true },
		},
		"GOWORK=elsewhere": {
			files: map[string]string{"else/go.work": "go 1.22\n\nuse ../app\n"}, env: [2]string{"GOWORK", "DIR/else/go.work"},
			want: []string{"GOWORK names DIR/else/go.work instead", "Unset GOWORK"},
			mend: func(b *bench, _ string) { b.Setenv("GOWORK", "") },
		},
		"GOFLAGS=-mod=mod": {
			env:  [2]string{"GOFLAGS", "-modcacherw -mod=mod"},
			want: []string{"GOFLAGS=-mod=mod and a go.work exclude each other", "says \"-mod may only be set to readonly or vendor", "Take -mod=mod out of GOFLAGS", "-replace"},
			mend: func(b *bench, _ string) { b.o.Replace = true },
		},
		"GOFLAGS=-mod=vendor": {
			env:  [2]string{"GOFLAGS", "-modcacherw -mod=vendor"},
			want: []string{"GOFLAGS=-mod=vendor asks for DIR/app/vendor, which is not there", "GOFLAGS=-mod=readonly", "go work vendor"},
			mend: func(b *bench, _ string) { b.Setenv("GOFLAGS", "-modcacherw -mod=readonly") },
		},
		"GOFLAGS=-mod=vendor and a folder": {
			files: vendored, env: [2]string{"GOFLAGS", "-modcacherw -mod=vendor"},
			want: []string{"DIR/app/vendor goes before it", "says \"ambiguous import", "go work vendor"},
			mend: func(b *bench, app string) { b.goMust(app, "work", "vendor") },
		},
		"-replace and a vendor folder": {
			files: vendored, replace: true,
			want: []string{"DIR/app/vendor goes before it", "says \"inconsistent vendoring", "GOFLAGS=-mod=readonly", "go mod vendor"},
			mend: func(b *bench, _ string) { b.Setenv("GOFLAGS", "-modcacherw -mod=readonly") },
		},
		"-replace and a vendor folder and then a copy": {
			files: vendored, replace: true,
			want: []string{"run go mod vendor"},
			mend: func(b *bench, app string) { b.goMust(app, "mod", "vendor") },
		},
		"another go.mod": {
			files: map[string]string{"app/other.mod": llamaMod}, replace: true, env: [2]string{"GOFLAGS", "-modcacherw -modfile=other.mod"},
			want: []string{"GOFLAGS=-modfile=other.mod goes before go.mod", "Take -modfile out"},
			mend: func(b *bench, _ string) { b.Setenv("GOFLAGS", "-modcacherw") },
		},
		"what nobody thought of": {
			files:   map[string]string{"app/other.mod": llamaMod, "overlay.json": `{"Replace": {"go.mod": "other.mod"}}`},
			replace: true, env: [2]string{"GOFLAGS", "-modcacherw -overlay=DIR/overlay.json"},
			want: []string{"takes it from", "@v1.0.0: something else goes before it", "go env GOFLAGS"},
			mend: func(b *bench, _ string) { b.Setenv("GOFLAGS", "-modcacherw") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			dir := t.TempDir()
			app := filepath.Join(dir, "app")
			b.files(dir, map[string]string{"app/go.mod": llamaMod, "app/main.go": appMain})
			b.goMust(app, "mod", "download", pins.GoLlama.Path) // go.sum
			b.files(dir, test.files)
			b.forApp(app)
			b.o.Replace = test.replace
			if test.env[0] != "" {
				t.Setenv(test.env[0], strings.ReplaceAll(test.env[1], "DIR", dir))
			}
			before := b.all(dir)

			var e *workspace.NotUsedError
			require.ErrorAs(t, b.fail(""), &e, b.log.String())
			for _, want := range test.want {
				require.ErrorContains(t, e, strings.ReplaceAll(want, "DIR", dir))
			}
			require.Equal(t, app, e.Dir)
			require.NotContains(t, b.log.String(), "uses it")
			require.FileExists(t, filepath.Join(e.Want, "libbinding.a"))
			require.NoError(t, assemble.Undo(b.o))
			require.Equal(t, before, b.all(dir))

			b.fail("")
			test.mend(b, app)
			require.Contains(t, b.run(), " uses it\n")
			out, err := exec.Command("go", "-C", app, "build", "-o", os.DevNull, ".").CombinedOutput()
			require.NoError(t, err, string(out))
		})
	}
}

const appMain = "package main\n\nimport llama \"github.com/go-skynet/go-llama.cpp\"\n\nvar _ [llama.N - 2]int // not upstream's 1\n\nfunc main() {}\n"

// vendored is the app after go mod vendor, before it was tied.
var vendored = map[string]string{
	"app/vendor/modules.txt":                                "# github.com/go-skynet/go-llama.cpp v1.0.0\n## explicit; go 1.21\ngithub.com/go-skynet/go-llama.cpp\n",
	"app/vendor/github.com/go-skynet/go-llama.cpp/llama.go": "package llama\n\nconst N = 1\n",
}

// What looks as if it were in the way, and is not.
func TestLinkThatHolds(t *testing.T) {
	for name, test := range map[string]struct {
		files   map[string]string
		env     [2]string
		replace bool
	}{
		"no requirement yet":         {files: map[string]string{"app/go.mod": "module example.com/app\n\ngo 1.22\n"}},
		"a vendor folder":            {files: vendored},
		"a fork in go.mod":           {files: map[string]string{"app/go.mod": llamaMod + "replace github.com/go-skynet/go-llama.cpp => ./fork\n", "app/fork/go.mod": "module github.com/go-skynet/go-llama.cpp\n"}},
		"go.work above":              {files: map[string]string{"go.work": "go 1.22\n\nuse ./app\n"}},
		"-mod=mod and an odd go.mod": {files: map[string]string{"app/go.mod": strings.ReplaceAll(llamaMod, " v1", "    v1")}, env: [2]string{"GOFLAGS", "-mod=mod"}, replace: true},
		"GOWORK=off with -replace":   {env: [2]string{"GOWORK", "off"}, replace: true},
		"offline":                    {env: [2]string{"GOPROXY", "off"}},
		"offline with -replace":      {env: [2]string{"GOPROXY", "off"}, replace: true},
		"-mod=readonly and a folder": {files: vendored, env: [2]string{"GOFLAGS", "-mod=readonly"}, replace: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			dir := t.TempDir()
			link := filepath.Join(t.TempDir(), "link") // to the app, and to the cache
			require.NoError(t, os.Symlink(dir, link))
			cache := filepath.Join(t.TempDir(), "link")
			require.NoError(t, os.Symlink(t.TempDir(), cache))
			t.Setenv("XDG_CACHE_HOME", cache)
			b.forApp(filepath.Join(link, "app"))
			b.files(dir, map[string]string{"app/go.mod": llamaMod})
			b.files(dir, test.files)
			b.run() // so that nothing is fetched below
			require.NoError(t, assemble.Undo(b.o))
			b.o.Replace = test.replace
			if test.env[0] != "" {
				t.Setenv(test.env[0], test.env[1])
				t.Setenv("GOMODCACHE", t.TempDir())
			}
			before := b.all(dir)
			require.Contains(t, b.run(), " uses it\n")
			require.NoError(t, assemble.Undo(b.o))
			require.Equal(t, before, b.all(dir))
		})
	}
}

// Where the go command can't say, that is no fault of the tie.
func TestLinkThatCannotBeSeen(t *testing.T) {
	b := newBench(t)
	b.forApp(b.app)
	b.o.Replace = true
	log := b.run()
	require.NotContains(t, log, "go.mod uses it")
	require.Contains(t, log, "can't say yet")
	require.Contains(t, log, "is replaced but not required; to add it:\n\tgo get "+pins.GoLlama.Path)
}

func TestWhereToAssemble(t *testing.T) {
	b := newBench(t)
	b.o.Dir = b.app
	b.fail("is not in a checkout of " + pins.Self + ": name your app's folder with -app DIR")
	b.o.App = filepath.Join(b.app, "none")
	b.fail("-app wants the folder of the app's go.mod")
}

func TestMissingCompiler(t *testing.T) {
	b := newBench(t)
	t.Setenv("CXX", "no-such-compiler")
	b.fail("apt-get install g++")
}

func TestCorruptModule(t *testing.T) {
	b := newBench(t)
	b.run()
	require.NoError(t, assemble.Clean(t.Context(), b.o))
	file := filepath.Join(os.Getenv("GOMODCACHE"), filepath.FromSlash(pins.GoLlama.String()), "llama.go")
	require.NoError(t, os.Chmod(file, 0o644))
	b.write(file, "package evil\n")
	b.fail("llama.go is not what was downloaded")
}

// A folder goes before everything. What was assembled of the pinned release is the same wherever it came from; another version
// is tried, and says so.
func TestFolderWithLlama(t *testing.T) {
	b := newBench(t)
	b.run()
	b.did()
	b.o.Llama = b.llama.Folder
	require.Contains(t, b.run(), "is up to date")

	b.llama.Write(t, "ggml/src/ggml.c", "int evil;\n")
	var different *source.DifferentError
	require.ErrorAs(t, b.fail("ggml/src/ggml.c"), &different)
	require.Equal(t, []string{"ggml/src/ggml.c"}, different.Files)
	require.Empty(t, b.did())

	b.llama.Write(t, "CMakeLists.txt", cmake("LLAMA", "0.6.1"))
	require.Equal(t, 1, strings.Count(b.run(), "warning: "+b.llama.Folder+" is llama.cpp 0.6.1"))
	require.Contains(t, b.did(), "ggml/src/ggml.c")
	require.Contains(t, b.read(b.layout().Package(), "zz_lesskv_build.go"), "llama.cpp 0.6.1 (untested)")
	require.Contains(t, b.run(), "is up to date")
	b.o.Backends = "rpc"
	require.Equal(t, 1, strings.Count(b.run(), "warning: "), "with the sources of a backend too")
	require.Contains(t, b.did(), "ggml/src/ggml-rpc/ggml-rpc.cpp")

	b.o.Llama = t.TempDir()
	b.fail("holds no llama.cpp")
}

func TestTwoSourcesOfOneName(t *testing.T) {
	b := newBench(t)
	b.code["llama/lesskv.h"] = &fstest.MapFile{}
	b.fail("less/lesskv.h: two sources of the same name")
}

func TestEmptySeries(t *testing.T) {
	b := newBench(t)
	b.o.Series = fstest.MapFS{"llama.cpp": {Mode: fs.ModeDir}, "go-llama.cpp": {Mode: fs.ModeDir}}
	b.run()
	require.Contains(t, b.read(b.layout().Package(), "llama.go"), "N = 1")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestLockIsHeld(t *testing.T) {
	b := newBench(t)
	l, err := assemble.Acquire(t.Context(), b.layout(), func() {})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := b.o.Log
	b.o.Log = writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "another run is at work") {
			cancel()
		}
		return log.Write(p)
	})
	require.ErrorIs(t, assemble.Run(ctx, b.o), context.Canceled)
	require.Contains(t, b.log.String(), "another run is at work")
	require.Empty(t, b.did())
	require.NoError(t, l.Release())
}
