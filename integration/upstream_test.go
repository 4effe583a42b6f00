package integration

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/gguf"
)

// caches are the environments in which upstream's own programs run.
var caches = map[string][]string{
	"off": {"LESSKV=off"},
	"on":  {"LESSKV=on", "LESSKV_BUDGET=64", "LESSKV_ADAPTER=none"},
}

// moduleDir is where the go command keeps a module, as it was published.
func moduleDir(t *testing.T, module pins.Module) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", module.String())
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	require.NoError(t, err)
	var found struct{ Dir string }
	require.NoError(t, json.Unmarshal(out, &found))
	return found.Dir
}

// assembled is upstream's package on the new runtime. The named files must be those of the published module.
func assembled(t *testing.T, unchanged ...string) string {
	t.Helper()
	build, err := layout.Find(".")
	require.NoError(t, err)
	for _, name := range unchanged {
		want, err := os.ReadFile(filepath.Join(moduleDir(t, pins.GoLlama), name))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(build.Package(), name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "%s is not upstream's", name)
	}
	return build.Package()
}

// says4 writes a model that answers 4 to everything: the only one that upstream's tests, which ask what 2+2 is, pass with
// that a test can make. Its residual stream is constant, and one row of its output matrix is not zero.
func says4(t *testing.T) string {
	t.Helper()
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	dir := t.TempDir()
	plain, err := m.WriteIn(dir, gguf.F32, 1)
	require.NoError(t, err)
	f, err := gguf.Open(plain)
	require.NoError(t, err)
	defer f.Close()
	pieces, err := gguf.GetArray[string](f, "tokenizer.ggml.tokens")
	require.NoError(t, err)

	values := map[string][]float32{}
	fill := func(name string, x float32) []float32 {
		info, ok := f.Tensor(name)
		require.True(t, ok, name)
		v := make([]float32, info.Elements())
		for i := range v {
			v[i] = x
		}
		values[name] = v
		return v
	}
	embedding := fill("token_embd.weight", 1)
	output := fill("output.weight", 0)
	width := len(embedding) / len(pieces)
	for i, p := range pieces {
		if p == "4" {
			for j := range width {
				output[i*width+j] = 1
			}
		}
	}
	for _, layer := range []string{"blk.0.", "blk.1.", "blk.2.", "blk.3."} {
		fill(layer+"attn_output.weight", 0)
		fill(layer+"ffn_down.weight", 0)
	}
	path := filepath.Join(dir, "says4.gguf")
	require.NoError(t, m.WriteChanged(path, gguf.F32, 1, values))
	return path
}

// Upstream's ginkgo suite, as published, with LESS off and on. None of its specs is skipped.
func TestUpstreamsTests(t *testing.T) {
	dir := assembled(t, "llama_test.go", "llama_suite_test.go")
	binary := filepath.Join(t.TempDir(), "upstream.test")
	require.NoError(t, execute(t, "go", "test", "-c", "-o", binary, pins.GoLlama.Path))
	model := says4(t)
	for name, env := range caches {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(binary, "-ginkgo.v", "-ginkgo.no-color")
			cmd.Dir = dir
			cmd.Env = append(append(os.Environ(), env...), "TEST_MODEL="+model)
			var out []byte
			var err error
			onOneCPU(t, func() { out, err = cmd.CombinedOutput() }) // the specs ask for no number of threads
			assert.NoError(t, err, "%s", out)
			assert.Contains(t, string(out), "5 Passed | 0 Failed | 0 Pending | 0 Skipped")
		})
	}
}

// Upstream's example, as published, writes what lesskv run does with the same options.
func TestUpstreamsExample(t *testing.T) {
	assembled(t, "examples/main.go")
	dir := t.TempDir()
	example, lesskv := filepath.Join(dir, "example"), filepath.Join(dir, "lesskv")
	require.NoError(t, execute(t, "go", "build", "-o", example, pins.GoLlama.Path+"/examples"))
	require.NoError(t, execute(t, "go", "build", "-o", lesskv, "../cmd/lesskv"))
	const question = "// ListenAndServe listens on the TCP network address srv.Addr and then\n// calls Serve to handle requests on incoming connections.\n"
	run := func(stdin string, env []string, name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), env...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		require.NoError(t, err)
		return string(out)
	}
	texts := map[string]string{}
	for name, env := range caches {
		out := run(question+"\n", env, example, "-m", gopher, "-t", "1", "-n", "120", "-s", "7")
		_, out, ok := strings.Cut(out, "Sending "+question+"\n")
		require.True(t, ok, out)
		got, embeddings, ok := strings.Cut(out, "Embeddings: [")
		require.True(t, ok, out)
		assert.Len(t, strings.Fields(embeddings[:strings.Index(embeddings, "]")]), 256, "n_embd")

		cache := []string{"--less=off"}
		if name == "on" {
			cache = []string{"--budget=64", "--adapter=none"}
		}
		want := run(question+"\n", nil, lesskv, append([]string{"run", "-q", "-m", gopher, "-t", "1", "-n", "120", "-s", "7", "-c", "128",
			"--top-k", "90", "--top-p", "0.86", "--stop", "llama"}, cache...)...)
		assert.Equal(t, strings.TrimSuffix(want, "\n"), got, name)
		texts[name] = got
	}
	assert.NotEqual(t, texts["off"], texts["on"], "the second cache has evicted")
}

// An app in a module of its own is switched to the runtime and back, and its files are then what they were.
func TestApp(t *testing.T) {
	build, err := layout.Find(".")
	require.NoError(t, err)
	dir := t.TempDir()
	files := map[string][]byte{}
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		files[name], err = os.ReadFile(filepath.Join("app", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), files[name], 0o644))
	}
	_, err = goTool(dir, "build", "-o", "app", ".")
	require.Error(t, err, "upstream's module has no llama.cpp")

	out, err := goTool("..", "run", "./patches", "-app", dir, "-build", filepath.Dir(build.Package()), "-tree", "all")
	require.NoError(t, err, out)
	out, err = goTool(dir, "build", "-o", "app", ".")
	require.NoError(t, err, out)
	model, err := filepath.Abs(gopher)
	require.NoError(t, err)
	replies := map[string]string{}
	for name, env := range caches {
		cmd := exec.Command(filepath.Join(dir, "app"), "-m", model)
		cmd.Env = append(os.Environ(), env...)
		cmd.Stdin = strings.NewReader("package main\nfunc main() {\n")
		out, err := cmd.Output()
		require.NoError(t, err)
		replies[name] = string(out)
	}
	assert.Greater(t, len(replies["off"]), 200)
	assert.NotEqual(t, replies["off"], replies["on"])

	out, err = goTool("..", "run", "./patches", "-app", dir, "-undo")
	require.NoError(t, err, out)
	require.NoError(t, os.Remove(filepath.Join(dir, "app")))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, len(files))
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got), name)
	}
}

// Everything that upstream's package exports is there, with the signature that it has: what compiles against it still does.
func TestUpstreamsDeclarations(t *testing.T) {
	want, got := declarations(t, moduleDir(t, pins.GoLlama)), declarations(t, assembled(t))
	require.Greater(t, len(want), 80)
	for name, text := range want {
		if have, ok := got[name]; assert.True(t, ok, "%s is gone", name) {
			assert.Equal(t, text, have, name)
		}
	}
}

// declarations returns what the package in dir exports: functions and methods with their signatures, fields with their
// types, variables with theirs, where they are written.
func declarations(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	fset := token.NewFileSet()
	text := func(node any) string {
		var b strings.Builder
		require.NoError(t, format.Node(&b, fset, node))
		return b.String()
	}
	for _, name := range []string{"llama.go", "options.go"} {
		file, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, 0)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				key := d.Name.Name
				if d.Recv != nil {
					key = text(d.Recv.List[0].Type) + "." + key
				}
				if d.Name.IsExported() {
					all[key] = text(d.Type)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if !s.Name.IsExported() {
							continue
						}
						structure, ok := s.Type.(*ast.StructType)
						if !ok {
							all[s.Name.Name] = text(s.Type)
							continue
						}
						all[s.Name.Name] = "struct"
						for _, field := range structure.Fields.List {
							for _, n := range field.Names {
								if n.IsExported() {
									all[s.Name.Name+"."+n.Name] = text(field.Type)
								}
							}
						}
					case *ast.ValueSpec:
						for _, n := range s.Names {
							if n.IsExported() {
								all[n.Name] = "value"
								if s.Type != nil {
									all[n.Name] = text(s.Type)
								}
							}
						}
					}
				}
			}
		}
	}
	return all
}
