package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
)

// Apps of go-llama.cpp as there are: most have it as a submodule, which a replace names, and build with flags that name its folder.
// Each is tied by patches -app, builds and links as its Makefile does, finds the runtime and not its own copy, and is untied again.
func TestAppsOfEveryShape(t *testing.T) {
	build, err := layout.Find(".")
	require.NoError(t, err)
	const (
		requires = "\nrequire github.com/go-skynet/go-llama.cpp v0.0.0-20240314183750-6a8041ef6b46\n"
		replaces = requires + "\nreplace github.com/go-skynet/go-llama.cpp => ./go-llama.cpp\n"
		other    = "\nrequire example.com/other v0.0.0\n\nreplace example.com/other => ../other\n"
		plain    = "package main\n\nimport llama \"github.com/go-skynet/go-llama.cpp\"\n\nfunc main() {\n\t_, err := llama.New(\"no-such-file\")\n\tprintln(err.Error())\n}\n"
	)
	patches := filepath.Join(t.TempDir(), "patches") // run in the app's environment, and not in the checkout's, as go run is
	out, err := exec.Command("go", "build", "-o", patches, "../patches").CombinedOutput()
	require.NoError(t, err, string(out))
	flags := []string{"CGO_LDFLAGS=-L./go-llama.cpp -L$APP/go-llama.cpp", "CGO_CFLAGS=-I$APP/go-llama.cpp", "C_INCLUDE_PATH=$APP/go-llama.cpp", "LIBRARY_PATH=$APP/go-llama.cpp"}
	// What make leaves in the submodule, of another version: a header and an archive that are no good here.
	copied := map[string]string{
		"app/go-llama.cpp/go.mod": "module github.com/go-skynet/go-llama.cpp\n\ngo 1.19\n", "app/go-llama.cpp/llama.go": "package llama\n",
		"app/go-llama.cpp/binding.h": "#error another version's\n", "app/go-llama.cpp/binding.c": "void *load_model(void) { return 0; }\n",
	}
	for name, test := range map[string]struct {
		files map[string]string
		env   []string
	}{
		"the module": {map[string]string{"app/go.mod": "module app\n\ngo 1.22\n" + requires}, nil},
		"a submodule that was not fetched": {map[string]string{
			"app/go.mod": "module app\n\ngo 1.19\n" + replaces, "app/go-llama.cpp/.keep": "",
		}, flags},
		"the same beside another module": {map[string]string{
			"app/go.mod": "module app\n\ngo 1.21\n" + replaces + other, "app/go-llama.cpp/.keep": "", "app/use.go": "package main\n\nimport _ \"example.com/other/sub\"\n",
			"other/go.mod": "module example.com/other\n\ngo 1.16\n" + strings.ReplaceAll(requires, "20240314183750-6a8041ef6b46", "20230626202628-8e31841dcddc"), "other/sub/x.go": "package sub\n",
		}, flags},
		"a submodule that was made": {with(copied, "app/go.mod", "module app\n\ngo 1.20\n"+replaces), flags},
		"a go.work":                 {with(copied, "app/go.mod", "module app\n\ngo 1.22\n"+replaces, "go.work", "go 1.22\n\nuse ./app\n"), flags},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			app := filepath.Join(dir, "app")
			for path, text := range with(test.files, "app/main.go", plain) {
				path = filepath.Join(dir, path)
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
			}
			env := append(os.Environ(), "GOWORK=", "GOFLAGS=")
			run := func(dir string, env []string, name string, args ...string) (string, error) {
				cmd := exec.Command(name, args...)
				cmd.Dir, cmd.Env = dir, env
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			if _, made := test.files["app/go-llama.cpp/binding.c"]; made {
				out, err := run(filepath.Join(app, "go-llama.cpp"), env, "sh", "-c", "gcc -c binding.c && ar rcs libbinding.a binding.o && rm binding.c")
				require.NoError(t, err, out)
			}
			before := snapshot(t, dir)
			out, err := run(app, env, patches, "-app", app, "-build", filepath.Dir(build.Package()))
			require.NoError(t, err, out)
			assert.Contains(t, out, "uses it")

			built := env
			for _, v := range test.env {
				built = append(built, strings.ReplaceAll(v, "$APP", app))
			}
			out, err = run(app, built, "go", "build", "-o", filepath.Join(dir, "program"), ".")
			require.NoError(t, err, out)
			out, err = run(dir, built, filepath.Join(dir, "program"))
			require.NoError(t, err, out)
			assert.Contains(t, out, "no-such-file: No such file or directory", "the runtime's error; upstream's says less")
			require.NoError(t, os.Remove(filepath.Join(dir, "program")))
			out, err = run(app, env, patches, "-app", app, "-undo")
			require.NoError(t, err, out)
			assert.Equal(t, before, snapshot(t, dir))
		})
	}
}

// goTool runs the go command in a folder, with the workspace that it finds there, and returns what it prints.
func goTool(where string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = where
	cmd.Env = append(os.Environ(), "GOWORK=", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// with returns files with more of them.
func with(files map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	for path, text := range files {
		all[path] = text
	}
	for i := 0; i < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}

// snapshot reads every file below a folder.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	}))
	return files
}
