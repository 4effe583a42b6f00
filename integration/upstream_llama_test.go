package integration

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/outfile"
)

// upstreamsTests is the folder that holds llama.cpp's own tests and what they need, as they were released: it is fetched like
// llama.cpp itself.
func upstreamsTests(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "run", pins.Self+"/patches/internal/source/tests")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	require.NoError(t, err, said.String())
	return strings.TrimSpace(string(out))
}

// An upstreamsRun is a run of one of llama.cpp's tests.
type upstreamsRun struct {
	name string
	args []string
	says string // what an output must hold, where a test that does nothing ends well too
}

// upstreamsRuns are the tests that are run, and how: GOPHER, MODELS and DUMMIES are the model of this repository, the folder of
// upstream's vocabularies, and a folder that the run before fills with models.
var upstreamsRuns = []upstreamsRun{
	{"test-alloc", nil, ""},
	{"test-autorelease", []string{"GOPHER"}, "compute buffer size"},
	// every other test of operations compares the CPU with another device
	{"test-backend-ops", []string{"test", "-b", "CPU", "-o", "RMS_NORM,SILU,SCALE"}, "tests passed"},
	{"test-barrier", nil, ""},
	{"test-batch-alloc", nil, ""},
	{"test-c", nil, ""},
	{"test-col2im-1d", nil, ""},
	{"test-gguf", nil, ""},
	{"test-grammar-integration", nil, "All tests passed"},
	{"test-grammar-parser", nil, ""},
	{"test-json-schema-to-grammar", nil, ""},
	{"test-llama-archs", []string{"-s", "1", "-a", "^(llama|qwen3)$"}, "OK"},
	{"test-llama-archs", []string{"-s", "1", "-o", "DUMMIES/"}, ""},
	{"test-llama-grammar", nil, ""},
	{"test-model-load-cancel", []string{"GOPHER"}, "cancelled model load"},
	{"test-opt", nil, "tests passed"},
	{"test-quantize-fns", nil, ""},
	{"test-recurrent-state-rollback", []string{"-t", "1", "-m", "DUMMIES/qwen35-dense.gguf"}, ""},
	{"test-recurrent-state-rollback", []string{"-t", "1", "-m", "DUMMIES/nemotron_h-dense.gguf"}, ""},
	{"test-recurrent-state-rollback", []string{"-t", "1", "-m", "DUMMIES/deepseek4-moe.gguf"}, ""},
	{"test-recurrent-state-rollback", []string{"-t", "1", "-m", "DUMMIES/kimi-k3-moe.gguf"}, ""},
	{"test-rope", nil, ""},
	{"test-sampling", nil, ""},
	{"test-save-load-state", []string{"-t", "1", "--models", "DUMMIES"}, "All tests passed."}, // its log's last line, the sum, may be lost at exit
	{"test-state-restore-fragmented", []string{"-t", "1", "-m", "GOPHER"}, "SUCCESS"},
	// as upstream does it, but for the number of threads: eight texts at a time are enough
	{"test-thread-safety", []string{"-m", "GOPHER", "-p", "The meaning of life is", "-n", "32", "-c", "256", "-ub", "32", "-np", "4", "-t", "1"}, ""},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-bert-bge.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-command-r.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-deepseek-coder.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-deepseek-llm.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-falcon.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-gemma-4.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-gpt-2.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-llama-bpe.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-llama-spm.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-mpt.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-phi-3.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-qwen2.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-qwen35.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-refact.gguf"}, "Tests passed"},
	{"test-tokenizer-0", []string{"MODELS/ggml-vocab-starcoder.gguf"}, "Tests passed"},
	{"test-tokenizer-1-spm", []string{"MODELS/ggml-vocab-llama-spm.gguf"}, ""},
	{"test-unicode", nil, ""},
}

// quickRuns are those that make test runs too. The others, which make soak has with them, are of ggml's operations, which no patch touches, or
// linked with upstream's common library, which takes longer to compile than all of these.
var quickRuns = []string{"test-alloc", "test-c", "test-gguf", "test-grammar-parser", "test-llama-grammar", "test-sampling", "test-unicode"}

// docs/compatibility.md has a row for each of llama.cpp's tests, and says of those that are run, and of no others, that they are.
func TestUpstreamsLlamaTable(t *testing.T) {
	page, err := os.ReadFile("../docs/compatibility.md")
	require.NoError(t, err)
	want, got := map[string]string{}, map[string]string{}
	for p := range pins.Llama.Tests {
		if name, ok := strings.CutPrefix(p, "tests/test-"); ok && !strings.Contains(name, "/") {
			name = "test-" + strings.TrimSuffix(name, filepath.Ext(name))
			if ext := filepath.Ext(p); ext == ".sh" || ext == ".py" {
				name += ext
			}
			want[name] = "not run"
		}
	}
	for _, r := range upstreamsRuns {
		require.Contains(t, want, r.name)
		want[r.name] = "soak"
		if slices.Contains(quickRuns, r.name) {
			want[r.name] = "run"
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(test-[^`]+)` \\| (run|soak|not run) \\| [^|]+ \\|$").FindAllStringSubmatch(string(page), -1) {
		assert.NotContains(t, got, row[1], "stands twice")
		got[row[1]] = row[2]
	}
	assert.Equal(t, want, got)
}

// llama.cpp's own tests hold on the patched tree, in make test the quick ones. Those that are not run, docs/compatibility.md lists with the reason.
func TestUpstreamsLlamaTests(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles llama.cpp's tests")
	}
	t.Parallel()
	runs := upstreamsRuns
	if !soak() {
		runs = slices.DeleteFunc(slices.Clone(runs), func(r upstreamsRun) bool { return !slices.Contains(quickRuns, r.name) })
	}
	build, err := layout.Find(".")
	require.NoError(t, err)
	programs, models := upstreamsPrograms(t, build, runs)
	gopher, err := filepath.Abs(gopher)
	require.NoError(t, err)
	dummies, err := os.MkdirTemp(string(build), "upstream-models-*") // 900 MB: /tmp may be memory
	require.NoError(t, err)
	defer os.RemoveAll(dummies)
	dummies, err = filepath.Abs(dummies)
	require.NoError(t, err)
	places := strings.NewReplacer("GOPHER", gopher, "MODELS", models, "DUMMIES", dummies)
	work := t.TempDir() // some write files where they run
	for _, r := range runs {
		args := make([]string, len(r.args))
		for i, a := range r.args {
			args[i] = places.Replace(a)
		}
		t.Run(strings.Join(append([]string{r.name}, r.args...), " "), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(programs, r.name), args...)
			cmd.Dir = work
			cmd.Env = append(os.Environ(), "LC_ALL=C")
			out, err := cmd.CombinedOutput()
			said := string(out[max(0, len(out)-4000):])
			t.Logf("%v of a processor's time", cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
			require.NoError(t, err, said)
			require.Contains(t, string(out), r.says, said)
		})
	}
}

// upstreamsPrograms compiles the tests of the runs, and in make soak upstream's common library, which most of them are linked with and the
// runtime is not, against the patched tree's headers, and links them with its archive. The objects stay in the build folder: they are made
// again when anything that they are made of has changed. It returns the programs' folder and the vocabularies'.
func upstreamsPrograms(t *testing.T, build layout.Layout, runs []upstreamsRun) (programs, models string) {
	t.Helper()
	release := upstreamsTests(t)
	cc, cxx := tool("CC", "gcc"), tool("CXX", "g++")
	flags := []string{"-w", "-O0", "-g0", "-pthread", "-fPIC"}

	key := sha256.New()
	for _, c := range []string{cc, cxx} {
		out, err := exec.Command(c, "--version").Output()
		require.NoError(t, err)
		key.Write(out)
	}
	io.WriteString(key, strings.Join(flags, " "))
	hash := func(root string, dirs ...string) {
		for _, d := range dirs {
			require.NoError(t, filepath.WalkDir(filepath.Join(root, d), func(path string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() || root != release && !strings.HasSuffix(path, ".h") {
					return err
				}
				data, err := os.ReadFile(path)
				io.WriteString(key, path)
				key.Write(data)
				return err
			}))
		}
	}
	hash(release, "tests", "common", "vendor/cpp-httplib", "vendor/nlohmann", "vendor/sheredom")
	hash(build.Sources(), "include", "src", "ggml/include", "ggml/src")

	all := filepath.Join(string(build), "upstream")
	dir := filepath.Join(all, hex.EncodeToString(key.Sum(nil))[:16])
	old, err := filepath.Glob(filepath.Join(all, "*"))
	require.NoError(t, err)
	for _, path := range old {
		if path != dir {
			require.NoError(t, os.RemoveAll(path))
		}
	}
	// Copies: a #include "../src/X.h" of a checkout's test would find the checkout's, not the patched one.
	sources := filepath.Join(dir, "release")
	for _, d := range []string{"tests", "common"} {
		require.NoError(t, os.RemoveAll(filepath.Join(sources, d)))
		require.NoError(t, os.CopyFS(filepath.Join(sources, d), os.DirFS(filepath.Join(release, d))))
	}
	info := filepath.Join(sources, "common", "lesskv-build-info.cpp") // upstream's build makes it
	require.NoError(t, os.WriteFile(info, []byte(`#include "build-info.h"
int llama_build_number(void) { return 0; }
const char * llama_commit(void) { return ""; }
const char * llama_compiler(void) { return ""; }
const char * llama_build_target(void) { return ""; }
const char * llama_build_info(void) { return ""; }
void llama_print_build_info(const char *, FILE *) {}
`), 0o644))
	flags = append(flags, "-I"+filepath.Join(sources, "common"))
	for _, d := range []string{"include", "src", "ggml/include", "ggml/src"} {
		flags = append(flags, "-I"+filepath.Join(build.Sources(), d))
	}
	flags = append(flags, "-I"+filepath.Join(release, "vendor"))

	var group errgroup.Group
	group.SetLimit(limits.CPUs())
	object := func(source string) string {
		path := filepath.Join(dir, filepath.Base(filepath.Dir(source))+"-"+filepath.Base(source)+".o")
		group.Go(func() error {
			if _, err := os.Stat(path); err == nil {
				return nil
			}
			command, args := cxx, []string{"-std=c++17"}
			if filepath.Ext(source) == ".c" {
				command, args = cc, nil
			}
			return outfile.Make(path, func(part string) error {
				return execute(t, command, append(append(args, flags...), "-c", source, "-o", part)...)
			})
		})
		return path
	}
	var common []string
	if soak() { // no quick run is linked with it
		// Nearly all of the time goes into headers: in two units they are read twice, for 50 sources.
		common = append(common, object(filepath.Join(release, "vendor", "cpp-httplib", "httplib.cpp")))
		var units [2]strings.Builder
		i := 0
		require.NoError(t, fs.WalkDir(os.DirFS(filepath.Join(sources, "common")), ".", func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil || filepath.Ext(path) != ".cpp":
			case path == "json.cpp": // specialises templates that the others use
				common = append(common, object(filepath.Join(sources, "common", path)))
			default:
				fmt.Fprintf(&units[i%len(units)], "#include %q\n", path)
				i++
			}
			return err
		}))
		for i := range units {
			source := filepath.Join(sources, "common", fmt.Sprintf("lesskv-all-%d.cpp", i))
			require.NoError(t, os.WriteFile(source, []byte(units[i].String()), 0o644))
			common = append(common, object(source))
		}
	}
	tests := map[string]string{}
	for _, r := range runs {
		source := filepath.Join(sources, "tests", r.name+".cpp")
		if r.name == "test-c" {
			source = filepath.Join(sources, "tests", r.name+".c")
		}
		if _, ok := tests[r.name]; !ok {
			tests[r.name] = object(source)
		}
	}
	require.NoError(t, group.Wait())

	var archives []string
	if common != nil {
		archives = []string{filepath.Join(dir, "common.a")}
		require.NoError(t, os.RemoveAll(archives[0]))
		require.NoError(t, execute(t, tool("AR", "ar"), slices.Concat([]string{"rcs"}, archives, common)...))
	}
	archives = append(archives, filepath.Join(build.Package(), "libbinding.a"))
	libs := []string{"-pthread", "-lm", "-ldl"}
	if runtime.GOOS == "darwin" {
		libs = []string{"-lm", "-framework", "Accelerate"}
	}
	programs = t.TempDir()
	for name, object := range tests {
		args := slices.Concat([]string{"-o", filepath.Join(programs, name), object}, archives, libs)
		group.Go(func() error { return execute(t, cxx, args...) })
	}
	require.NoError(t, group.Wait())
	return programs, filepath.Join(release, "models")
}
