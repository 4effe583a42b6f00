package integration

import (
	archive "archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/zip"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
)

// An app of go-llama.cpp takes the steps of README.md, as they are written there, with this module from a proxy. Only -build is
// added: what is compiled is not compiled anew.
func TestReadmeApp(t *testing.T) {
	build, err := layout.Find(".")
	require.NoError(t, err)
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(readme), "\n## In your app\n")
	require.True(t, ok)
	steps := regexp.MustCompile(`(?m)^\d\. `).Split(section, -1)[1:]
	require.Len(t, steps, 3)
	commands := regexp.MustCompile(`(?m)^       (go .*)$`).FindAllStringSubmatch(steps[0], -1)
	require.NotEmpty(t, commands)
	code := regexp.MustCompile("(?s)```go\n(.*?\n   \\)\n)(.*?)```").FindStringSubmatch(steps[1])
	require.NotNil(t, code)
	imports, statements := code[1], code[2]

	dir := t.TempDir()
	mod, err := os.ReadFile("app/go.mod")
	require.NoError(t, err)
	sum, err := os.ReadFile("app/go.sum")
	require.NoError(t, err)
	model, err := os.ReadFile(gopher)
	require.NoError(t, err)
	main := "package main\n\n" + imports + "\nfunc main() {" + statements + `
	if err != nil {
		panic(err)
	}
	defer model.Free()
	reply, err := model.Predict("func main() {\n", llama.SetTokens(16))
	if err != nil {
		panic(err)
	}
	print(reply)
}
`
	for name, data := range map[string][]byte{"go.mod": mod, "go.sum": sum, "main.go": []byte(main), "model.gguf": model} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}

	version, env := publish(t)
	try := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	run := func(name string, args ...string) string {
		out, err := try(name, args...)
		require.NoError(t, err, "%s %s\n%s", name, strings.Join(args, " "), out)
		return out
	}
	run("go", "get", "github.com/lesskv/lesskv/plugin@"+version)
	out, err := try("go", "build", "-o", "app", ".")
	assert.Error(t, err)
	assert.Regexp(t, `common\.h.*(No such file|not found)`, out, "the runtime is not there") // by gcc, by clang
	assert.Contains(t, steps[0], "fails with `common.h: No such file or directory`")
	for _, c := range commands {
		args := strings.Fields(strings.ReplaceAll(c[1], "VERSION", version))
		if strings.Contains(c[1], "/patches@") {
			args = append(args, "-build", filepath.Dir(build.Package()))
		}
		run(args[0], args[1:]...)
	}
	run("go", "build", "-o", "app", ".")
	out = run(filepath.Join(dir, "app"))
	assert.Contains(t, out, "sparse only", "model.lesskv.gguf is not there")
}

// What an app downloads is little more than the model that is built in (9.2 MiB): what only a checkout needs is in modules of its own.
func TestModuleZip(t *testing.T) {
	var z bytes.Buffer
	require.NoError(t, zip.Create(&z, module.Version{Path: pins.Self, Version: "v0.0.1"}, moduleFiles(t, "..")))
	t.Logf("%.1f MiB", float64(z.Len())/(1<<20))
	assert.Less(t, z.Len(), 13<<20)
	r, err := archive.NewReader(bytes.NewReader(z.Bytes()), int64(z.Len()))
	require.NoError(t, err)
	for _, f := range r.File {
		for _, dir := range []string{"checkout", "recall"} {
			assert.NotContains(t, f.Name, "/integration/testdata/"+dir+"/")
		}
	}
}

// publish makes a module proxy that holds this module as it lies here, under a version of its own, and returns that version
// with the environment that an app needs. The module cache is a new one, filled from the user's.
func publish(t *testing.T) (version string, env []string) {
	t.Helper()
	files := moduleFiles(t, "..")
	byName := map[string]zip.File{}
	var names []string
	for _, f := range files {
		byName[f.Path()] = f
		names = append(names, f.Path())
	}
	sum, err := dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return byName[name].Open() })
	require.NoError(t, err)
	digest := sha256.Sum256([]byte(sum))
	version = "v0.1.0-test" + hex.EncodeToString(digest[:6])

	proxy := t.TempDir()
	at := filepath.Join(proxy, pins.Self, "@v", version)
	require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
	mod, err := os.ReadFile("../go.mod")
	require.NoError(t, err)
	for name, data := range map[string][]byte{
		at + ".mod": mod, at + ".info": fmt.Appendf(nil, `{"Version":%q}`, version), filepath.Join(filepath.Dir(at), "list"): []byte(version + "\n"),
	} {
		require.NoError(t, os.WriteFile(name, data, 0o644))
	}
	z, err := os.Create(at + ".zip")
	require.NoError(t, err)
	require.NoError(t, zip.Create(z, module.Version{Path: pins.Self, Version: version}, files))
	require.NoError(t, z.Close())

	out, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY").Output()
	require.NoError(t, err)
	user := strings.Fields(string(out))
	return version, []string{
		"GOWORK=", "GOPRIVATE=", "GONOPROXY=", "GONOSUMDB=", "GOFLAGS=-modcacherw", "GOMODCACHE=" + t.TempDir(), "GOSUMDB=off",
		"GOPROXY=file://" + proxy + ",file://" + filepath.ToSlash(user[0]) + "/cache/download," + user[1],
	}
}

// moduleFiles are the files of the module in dir that are, or could be, under version control.
func moduleFiles(t *testing.T, dir string) (files []zip.File) {
	t.Helper()
	var names []string
	if out, err := exec.Command("git", "-C", dir, "ls-files", "-co", "--exclude-standard", "-z").Output(); err == nil {
		names = strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	} else { // no checkout, or no git
		require.NoError(t, fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && (name == "build" || name == ".git") {
				return fs.SkipDir
			}
			names = append(names, name)
			return err
		}))
	}
	for _, name := range names {
		if info, err := os.Lstat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() {
			files = append(files, moduleFile{dir, name})
		}
	}
	return files
}

type moduleFile struct{ dir, name string }

func (f moduleFile) Path() string                 { return f.name }
func (f moduleFile) Lstat() (fs.FileInfo, error)  { return os.Lstat(filepath.Join(f.dir, f.name)) }
func (f moduleFile) Open() (io.ReadCloser, error) { return os.Open(filepath.Join(f.dir, f.name)) }
