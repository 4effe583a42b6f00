package workspace_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/workspace"
)

const appMod = "module example.com/app\n\ngo 1.22\n\nrequire github.com/go-skynet/go-llama.cpp v0.0.0-20240314183750-6a8041ef6b46\n"

// write makes files below dir; read reads all of them back.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[filepath.ToSlash(rel)] = string(data)
		return err
	}))
	return files
}

func runtime(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a b", "go-llama.cpp")
	write(t, dir, map[string]string{"go.mod": "module github.com/go-skynet/go-llama.cpp\n\ngo 1.21\n"})
	return dir
}

func useWork(dir, runtime string) (string, error) { return workspace.UseWork(dir, runtime, true) }

func TestRoundTrip(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"nothing there":   {"app/go.mod": appMod},
		"a go.work":       {"app/go.mod": appMod, "app/go.work": "go 1.22\n\nuse .\n"},
		"no last newline": {"app/go.mod": strings.TrimSpace(appMod), "app/go.work": "go 1.22\nuse ."},
		"odd formatting":  {"app/go.mod": appMod + "\n\n\n", "app/go.work": "// mine\ngo   1.22\nuse (\n  .   // here\n\n)\n\n"},
		"line endings":    {"app/go.mod": strings.ReplaceAll(appMod, "\n", "\r\n"), "app/go.work": "go 1.22\r\nuse .\r\n"},
		"above":           {"app/go.mod": appMod, "go.work": "go 1.23\n\nuse ./app\n"},
		"git":             {"app/go.mod": appMod, ".git/HEAD": "ref: x\n", ".git/info/exclude": "# mine\n*.o\n"},
		"git, no newline": {"app/go.mod": appMod, ".git/HEAD": "ref: x\n", ".git/info/exclude": "*.o"},
		"git, no exclude": {"app/go.mod": appMod, ".git/HEAD": "ref: x\n"},
		"a submodule":     {"app/go.mod": appMod + "\nreplace github.com/go-skynet/go-llama.cpp => ./go-llama.cpp\n"},
		"of another":      {"app/go.mod": appMod, "b/go.mod": strings.ReplaceAll(appMod, "app", "b") + "replace github.com/go-skynet/go-llama.cpp => ../x\n", "go.work": "go 1.23\n\nuse ./app\nuse ./b"},
	} {
		for mode, use := range map[string]func(dir, runtime string) (string, error){"work": useWork, "replace": workspace.UseReplace} {
			if mode == "replace" && name == "a submodule" {
				continue // refused: TestConflicts
			}
			t.Run(name+"/"+mode, func(t *testing.T) {
				dir, to := t.TempDir(), runtime(t)
				app := filepath.Join(dir, "app")
				write(t, dir, files)

				changed, err := use(app, to)
				require.NoError(t, err)
				tied := read(t, dir)
				require.NotEqual(t, files, tied)
				text, err := os.ReadFile(changed)
				require.NoError(t, err)
				require.Contains(t, string(text), `"`+to+`"`, "a path with a space needs quotes")

				_, err = use(app, to)
				require.NoError(t, err)
				require.Equal(t, tied, read(t, dir), "a second time changes nothing")
				_, err = use(app, runtime(t))
				require.NoError(t, err)
				require.Len(t, strings.Split(read(t, dir)[rel(t, dir, changed)], "lesskv: patches -undo"), 2, "another runtime takes the place of the first")

				undone, err := workspace.Undo(app)
				require.NoError(t, err)
				require.Equal(t, []string{changed}, undone)
				require.Equal(t, files, read(t, dir))

				undone, err = workspace.Undo(app)
				require.NoError(t, err)
				require.Empty(t, undone)
			})
		}
	}
}

// A go.work that is a link stays one: what it leads to is tied.
func TestLinkStays(t *testing.T) {
	dir := t.TempDir()
	app, link := filepath.Join(dir, "app"), filepath.Join(dir, "app", "go.work")
	write(t, dir, map[string]string{"app/go.mod": appMod, "mine/go.work": "go 1.22\n\nuse ../app\n"})
	require.NoError(t, os.Symlink("../mine/go.work", link))
	_, err := useWork(app, runtime(t))
	require.NoError(t, err)
	to, err := os.Readlink(link)
	require.NoError(t, err)
	require.Equal(t, "../mine/go.work", to)
	require.Contains(t, read(t, dir)["mine/go.work"], "go-llama.cpp")
}

func TestOneTieTakesThePlaceOfTheOther(t *testing.T) {
	dir, to := t.TempDir(), runtime(t)
	files := map[string]string{"app/go.mod": appMod, "go.work": "go 1.22\n\nuse ./app\n"}
	write(t, dir, files)
	app := filepath.Join(dir, "app")
	_, err := useWork(app, to)
	require.NoError(t, err)
	work := read(t, dir)

	_, err = workspace.UseReplace(app, to)
	require.NoError(t, err)
	require.Equal(t, files["go.work"], read(t, dir)["go.work"])
	require.Contains(t, read(t, dir)["app/go.mod"], to)
	_, err = useWork(app, to)
	require.NoError(t, err)
	require.Equal(t, work, read(t, dir))
	_, err = workspace.Undo(app)
	require.NoError(t, err)
	require.Equal(t, files, read(t, dir))
}

// A go.work that serves another module, or also another, is not this one's to untie.
func TestReplaceLeavesTheTiesOfOthers(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"of a folder above": {"go.mod": appMod, "app/go.mod": appMod},
		"of both":           {"go.mod": appMod, "app/go.mod": appMod, "go.work": "go 1.22\n\nuse (\n\t.\n\t./app\n)\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, to := t.TempDir(), runtime(t)
			write(t, dir, files)
			_, err := useWork(dir, to)
			require.NoError(t, err)
			work := read(t, dir)["go.work"]
			_, err = workspace.UseReplace(filepath.Join(dir, "app"), to)
			require.NoError(t, err)
			require.Equal(t, work, read(t, dir)["go.work"])
			require.Contains(t, read(t, dir)["app/go.mod"], to)
		})
	}
}

func rel(t *testing.T, dir, path string) string {
	t.Helper()
	r, err := filepath.Rel(dir, path)
	require.NoError(t, err)
	return filepath.ToSlash(r)
}

func TestWhatIsMade(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"go.mod": appMod, ".git/HEAD": "", "build/go-llama.cpp/go.mod": "module github.com/go-skynet/go-llama.cpp\ngo 1.23.1\n"})
	file, err := useWork(dir, filepath.Join(dir, "build", "go-llama.cpp"))
	require.NoError(t, err)
	files := read(t, dir)
	require.Equal(t, filepath.Join(dir, "go.work"), file)
	require.Contains(t, files["go.work"], "\ngo 1.23.1\n\nuse .\nuse ./build/go-llama.cpp // lesskv", "the newest go, and a relative path inside the module")
	require.Contains(t, files[".git/info/exclude"], "\n/go.work\n/go.work.sum\n")

	t.Run("the go command's own file goes with it", func(t *testing.T) {
		write(t, dir, map[string]string{"go.work.sum": "x\n"})
		_, err := workspace.Undo(dir)
		require.NoError(t, err)
		require.NoFileExists(t, filepath.Join(dir, "go.work"))
		require.NoFileExists(t, filepath.Join(dir, "go.work.sum"))
	})
}

func TestWhatTheUserAddedStays(t *testing.T) {
	dir, to := t.TempDir(), runtime(t)
	write(t, dir, map[string]string{"go.mod": appMod})
	file, err := useWork(dir, to)
	require.NoError(t, err)
	made, err := os.ReadFile(file)
	require.NoError(t, err)
	write(t, dir, map[string]string{"go.work": string(made) + "use ./tool\n"})

	_, err = useWork(dir, to)
	require.NoError(t, err)
	require.Contains(t, read(t, dir)["go.work"], "use ./tool\n")
	_, err = workspace.Undo(dir)
	require.NoError(t, err)
	left := read(t, dir)["go.work"]
	require.Contains(t, left, "use ./tool\n")
	require.NotContains(t, left, to)
}

func TestConflicts(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		use   func(dir, runtime string) (string, error)
		want  string
	}{
		"another copy in use": {map[string]string{
			"go.mod": appMod, "go.work": "go 1.22\nuse .\nuse ./fork\n", "fork/go.mod": "module github.com/go-skynet/go-llama.cpp\n",
		}, useWork, "go.work already takes github.com/go-skynet/go-llama.cpp from ./fork"},
		"replaced in go.work": {map[string]string{
			"go.mod": appMod, "go.work": "go 1.22\nuse .\nreplace github.com/go-skynet/go-llama.cpp => ./fork\n",
		}, useWork, "from ./fork"},
		"replaced in go.mod": {map[string]string{
			"go.mod": appMod + "replace github.com/go-skynet/go-llama.cpp => ../fork\n",
		}, workspace.UseReplace, "go.mod already takes github.com/go-skynet/go-llama.cpp from ../fork"},
		"old go.work": {map[string]string{"go.mod": appMod, "go.work": "go 1.20\nuse .\n"}, useWork, "go work edit -go=1.21"},
		"no go line":  {map[string]string{"go.mod": appMod, "go.work": "use .\n"}, useWork, "says go 1.18"},
		"broken":      {map[string]string{"go.mod": appMod, "go.work": "use (\n"}, useWork, "go.work"},
		"no go.mod":   {nil, workspace.UseReplace, "go.mod"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, test.files)
			before := read(t, dir)
			_, err := test.use(dir, runtime(t))
			require.ErrorContains(t, err, test.want)
			require.Equal(t, before, read(t, dir))
		})
	}
}
