//go:build cgo

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/weights/outfile"
)

// unchanged remembers every file below a folder, and returns a check that they are as they were and that none came.
func unchanged(t *testing.T, dir string) (check func()) {
	read := func() map[string]string {
		all := map[string]string{}
		require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			all[path] = string(data)
			return err
		}))
		return all
	}
	before := read()
	return func() {
		t.Helper()
		after := read()
		for path, data := range before {
			assert.True(t, data == after[path], "%s was changed", path)
		}
		for path := range after {
			assert.Contains(t, before, path, "it was made")
		}
	}
}

// An output never replaces what a command reads, nor a file of another kind, whatever it is called, and what can't be written is
// found out before any work: the commands end at once, and nothing on the disk has changed.
func TestOutputs(t *testing.T) {
	if testing.Short() {
		t.Skip("no goroutine of the command's")
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for from, to := range map[string]string{testdata.Model: "model.gguf", testdata.H2O102: "part.gguf", testdata.Peak102: "old.gguf"} {
		path, err := testdata.PathIn(dir, from)
		require.NoError(t, err)
		require.NoError(t, os.Rename(path, in(to)))
	}
	held, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(in("texts"), 0o755))
	require.NoError(t, os.MkdirAll(in("work.verify/work"), 0o755))
	require.NoError(t, os.MkdirAll(in("foreign.verify"), 0o755))
	require.NoError(t, os.MkdirAll(in("checkpoints"), 0o755))
	for name, data := range map[string]string{
		"book.txt": string(held[:9000]), "texts/a.txt": string(held[:9000]), "texts/figure.svg": "<svg></svg>", "thesis.json": `{"years": 4}`, "photo.jpg": "\xff\xd8\xff",
		"work.verify/work/mine.txt": "mine", "foreign.verify/report.md": "# Mine", "picture.png": "no picture", "page.md": "no marks",
		"marked.md": "<!-- lesskv bench: the table below is written by it -->\n<!-- lesskv bench: end -->\n", "results-context.png": "no picture", "targets/smollm2-135m.json": "[",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(in(name)), 0o755))
		require.NoError(t, os.WriteFile(in(name), []byte(data), 0o644))
	}
	require.NoError(t, os.Symlink("model.gguf", in("symlink.gguf")))
	require.NoError(t, os.Link(in("model.gguf"), in("hardlink.gguf")))
	require.NoError(t, os.Symlink(".", in("here")))

	model, text := in("model.gguf"), in("book.txt")
	train := func(args ...string) []string { return append([]string{"train", "-m", model, "-d", text}, args...) }
	merge := func(out string) []string { return []string{"merge", "-o", out, in("part.gguf")} }
	speed := func(args ...string) []string {
		return append([]string{"bench", "--method", "less", "-c0"}, append(args, model)...)
	}
	check := func(args ...string) []string { return append([]string{"verify", "-m", model, "-d", text}, args...) }
	imported := func(out string) []string {
		return []string{"import", "-m", model, "--heavy=1", "-o", out, in("checkpoints")}
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"train, the model":                   {train("-o", model), exitUsage, "which is read"},
		"train, another spelling of it":      {train("-o", in("texts/../here/model.gguf")), exitUsage, "which is read"},
		"train, a symbolic link to it":       {train("-o", in("symlink.gguf")), exitUsage, "which is read"},
		"train, a hard link to it":           {train("-o", in("hardlink.gguf")), exitUsage, "which is read"},
		"train, its text":                    {train("-o", text), exitUsage, "which is read"},
		"train, a picture over a text":       {train("-d", in("texts"), "--plot", in("texts/figure.svg")), exitUsage, "which is read"},
		"train, a file of another kind":      {train("-o", in("photo.jpg")), exitFailed, "not an adapter"},
		"train, a picture that is none":      {train("--plot", in("picture.png")), exitFailed, "not a PNG picture"},
		"train, a folder":                    {train("-o", dir), exitFailed, "a folder"},
		"train, a device":                    {train("-o", os.DevNull), exitFailed, "no regular file"},
		"train, below a file":                {train("-o", filepath.Join(text, "a.gguf")), exitFailed, "not a directory"},
		"train, no such folder":              {train("-o", in("nowhere/a.gguf")), exitFailed, "there is no folder"},
		"train, no folder for the picture":   {train("--plot", in("nowhere/a.png")), exitFailed, "there is no folder"},
		"train, one name for both":           {train("-o", in("new.png"), "--plot", in("here/new.png")), exitUsage, "are both"},
		"train, recordings in a file":        {train("--recordings", text), exitFailed, "is no folder"},
		"train, no such text":                {[]string{"train", "-m", model, "-d", in("none.txt")}, exitFailed, "none.txt"},
		"merge, the model":                   {merge(model), exitFailed, "not an adapter"},
		"merge, one of its parts":            {merge(in("part.gguf")), exitUsage, "which is read"},
		"merge, no such folder":              {merge(in("nowhere/a.gguf")), exitFailed, "there is no folder"},
		"import, the model":                  {imported(model), exitUsage, "which is read"},
		"import, a text":                     {imported(text), exitFailed, "not an adapter"},
		"bench, the model":                   {speed("-o", model), exitUsage, "which is read"},
		"bench, the adapter":                 {speed("--adapter", in("part.gguf"), "-o", in("part.gguf")), exitUsage, "which is read"},
		"bench, JSON of another kind":        {speed("-o", in("thesis.json")), exitFailed, "not a result of lesskv bench"},
		"bench, no such folder":              {speed("-o", in("nowhere/a.json")), exitFailed, "there is no folder"},
		"bench, no folder for the picture":   {speed("--plot", in("nowhere/a.png")), exitFailed, "there is no folder"},
		"bench, a picture of another format": {speed("--plot", in("a.pdf")), exitUsage, "ends in .png"},
		"bench, a file beside the targets":   {[]string{"bench", "--targets", in("results"), "--into", in("marked.md")}, exitFailed, "not a PNG picture"},
		"bench, a page without marks":        {[]string{"bench", "--targets", in("results"), "--into", in("page.md")}, exitUsage, "want the marks"},
		"bench, results that are none":       {[]string{"bench", "--targets", in("targets")}, exitFailed, "smollm2-135m.json"},
		"verify, a file for a folder":        {check("-o", text), exitFailed, "is no folder"},
		"verify, below a file":               {check("-o", filepath.Join(text, "report")), exitFailed, "not a directory"},
		"verify, a page of another":          {check("-o", in("foreign.verify")), exitFailed, "not lesskv verify's"},
		"verify, its text":                   {[]string{"verify", "-m", model, "-d", in("foreign.verify/report.md"), "-o", in("foreign.verify")}, exitUsage, "which is read"},
		"verify, a work folder of another":   {check("-c192", "-b41", "-o", in("work.verify")), exitFailed, "mine.txt"},
	} {
		t.Run(name, func(t *testing.T) {
			same := unchanged(t, dir)
			status, stdout, stderr := command("", c.args...)
			assert.Equal(t, c.status, status, stderr)
			assert.Contains(t, stderr, c.says)
			assert.Empty(t, stdout)
			assert.NotContains(t, stderr, "windows of", "refused before the model runs")
			same()
		})
	}

	// What is of the kind is replaced, an empty file too; another name of an input is no input once it is another file.
	require.NoError(t, os.WriteFile(in("empty.gguf"), nil, 0o644))
	for _, out := range []string{in("old.gguf"), in("empty.gguf"), in("new.gguf")} {
		status, _, stderr := command("", merge(out)...)
		assert.Equal(t, exitOK, status, stderr)
		assert.True(t, adapterFile.is(out))
	}
}

// A folder that takes no files is found out before the work.
func TestOutputsReadOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "locked")
	require.NoError(t, os.Mkdir(dir, 0o555))
	if os.Geteuid() == 0 {
		dir = "/proc" // where root can't make files either
	}
	err := checkOutputs(nil, output{"--output", filepath.Join(dir, "a.gguf"), adapterFile})
	assert.ErrorContains(t, err, "nothing can be written to the folder "+dir)
	assert.ErrorContains(t, checkFolder("--output", filepath.Join(dir, "a", "b")), "nothing can be written to the folder "+dir)
}

// A result of bench may be replaced by the next, as a picture may.
func TestOutputsOfKind(t *testing.T) {
	dir := t.TempDir()
	result, picture := filepath.Join(dir, "a.json"), filepath.Join(dir, "a.png")
	r := &bench.Result{Model: "m", Time: time.Now(), Ubatch: 512, Samples: []bench.Sample{{Method: "less", Context: 512, Phase: bench.Decode, Tokens: 4, Seconds: 8}},
		Memory: []bench.Memory{{Method: "less", Context: 512, Cache: 300 << 10}}}
	require.NoError(t, r.Write(result))
	require.NoError(t, bench.Plot(picture, r), "one point is a picture too")
	assert.True(t, resultFile.is(result))
	assert.True(t, pictureFile(picture).is(picture))
	assert.NoError(t, checkOutputs([]string{dir}, output{"--output", result, resultFile}, output{"--plot", picture, pictureFile(picture)}))
}

// remover is an output for progress: its first line removes a folder.
type remover struct {
	dir string
	bytes.Buffer
}

func (r *remover) Write(p []byte) (int, error) {
	os.RemoveAll(r.dir)
	return r.Buffer.Write(p)
}

// What was measured is printed before it is written to files, which may fail: the folder goes while the command measures.
func TestPrintedFirst(t *testing.T) {
	dir, flags := verifyFiles(t)
	text := filepath.Join(dir, "book.txt")
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"bench":  {[]string{"bench", "-t1", "-r1", "-c0", "--method", "less", "--dir", t.TempDir(), "-o", "out/a.json", "--plot", "out/a.png", filepath.Join(dir, "model.gguf")}, "decoding, tokens/s"},
		"train":  {append([]string{"train", "-m", filepath.Join(dir, "model.gguf"), "-d", text, "-o", filepath.Join(dir, "a.gguf"), "--plot", "out/a.png"}, quickly...), "best step"},
		"tune":   {append(tuneQuickly(dir), "-o", filepath.Join(dir, "b.gguf"), "--plot", "out/a.png"), "this allocation"},
		"verify": {append(slices.Clone(flags), "-t1", "-o", "out"), "sparse"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			require.NoError(t, os.Mkdir(out, 0o755))
			for i, a := range c.args {
				if a == "out" || strings.HasPrefix(a, "out/") {
					c.args[i] = filepath.Join(filepath.Dir(out), a)
				}
			}
			progress := &remover{dir: out}
			if name == "verify" { // its folder has the work too: the report's place is taken instead
				progress.dir = filepath.Join(out, "no such folder")
				require.NoError(t, os.Mkdir(outfile.Part(filepath.Join(out, "report.csv")), 0o755))
			}
			var stdout bytes.Buffer
			status := execute(t.Context(), c.args, strings.NewReader(""), &stdout, progress)
			assert.Equal(t, exitFailed, status, progress.String())
			assert.Contains(t, stdout.String(), c.says)
			assert.Contains(t, progress.String(), filepath.Base(out))
		})
	}
}

// A disk that is full, or a pipe that nobody reads, is an error of every command that prints.
func TestOutputThatFails(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Model: "model.gguf", testdata.Peak102: "adapter.gguf"})
	model, adapter := filepath.Join(dir, "model.gguf"), filepath.Join(dir, "adapter.gguf")
	for _, args := range [][]string{
		{"plan", "-m", model}, {"inspect", model}, {"inspect", "-m", model, adapter}, {"version"}, {"merge", "-o", filepath.Join(dir, "merged.gguf"), adapter},
	} {
		var stderr bytes.Buffer
		assert.Equal(t, exitFailed, execute(t.Context(), args, strings.NewReader(""), fullDisk{}, &stderr), args)
		assert.Contains(t, stderr.String(), "no space left", args)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// usurper is an output that puts a folder in the place of a file once something was printed.
type usurper struct {
	bytes.Buffer
	says, place string
}

func (u *usurper) Write(p []byte) (int, error) {
	n, err := u.Buffer.Write(p)
	if bytes.Contains(u.Bytes(), []byte(u.says)) {
		err = errors.Join(err, os.MkdirAll(u.place, 0o755))
	}
	return n, err
}

// The adapter, too, is written after what is printed of it, and what led to it is kept if that fails.
func TestAdapterWrittenLast(t *testing.T) {
	dir, _ := verifyFiles(t)
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"train": {append([]string{"train", "-m", filepath.Join(dir, "model.gguf"), "-d", filepath.Join(dir, "book.txt"), "--plot", "none"}, quickly...), "best step"},
		"tune":  {append(tuneQuickly(dir), "--plot", "none"), "this allocation"},
	} {
		t.Run(name, func(t *testing.T) {
			output := filepath.Join(t.TempDir(), "a.gguf")
			stdout := &usurper{says: c.says, place: output}
			var stderr bytes.Buffer
			args := append(c.args, "-o", output)
			assert.Equal(t, exitFailed, execute(t.Context(), args, strings.NewReader(""), stdout, &stderr), stderr.String())
			assert.DirExists(t, output+".work")
			require.NoError(t, os.Remove(output))
			assert.Equal(t, exitOK, execute(t.Context(), args, strings.NewReader(""), io.Discard, &stderr), stderr.String())
			assert.FileExists(t, output)
		})
	}
}

// What training keeps below a folder of texts is none of them: the same command goes on after an interruption.
func TestListTexts(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.txt", "b/c.go", "out.gguf.work/plan.json", "out.gguf.work/layer-000.json", "kept/0123/plan.json", ".git/config", "b/.hidden"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o644))
	}
	all, err := listTexts([]string{dir, filepath.Join(dir, ".git", "config"), "-"}, filepath.Join(dir, "b", "..", "out.gguf")+".work", filepath.Join(dir, "kept"))
	require.NoError(t, err)
	assert.Equal(t, []document{
		{filepath.Join(dir, "a.txt"), true}, {filepath.Join(dir, "b", "c.go"), true}, {filepath.Join(dir, ".git", "config"), false}, {"-", false},
	}, all)
}

// A link to a folder is that folder, and links in a folder are what they lead to: once, also where they lead back.
func TestListTextsLinks(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"texts/a.txt", "texts/b/b.txt", "other/c.txt", "other/out.work/layer.json", "d.txt"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("text"), 0o644))
	}
	for link, to := range map[string]string{
		"link": "texts", "texts/c": "../other", "texts/d.txt": "../d.txt", "texts/again.txt": "a.txt", "texts/b/up": "..", "texts/none.txt": "none", "texts/own.txt": "own.txt", "texts/null": "/dev/null", "file": "d.txt",
	} {
		require.NoError(t, os.Symlink(to, filepath.Join(dir, link)))
	}
	for _, root := range []string{"link", "texts"} {
		all, err := listTexts([]string{filepath.Join(dir, root)}, filepath.Join(dir, "other", "out.work"))
		require.NoError(t, err)
		in := func(name string) document { return document{filepath.Join(dir, root, name), true} }
		assert.Equal(t, []document{in("a.txt"), in("b/b.txt"), in("c/c.txt"), in("d.txt")}, all)
	}
	all, err := listTexts([]string{filepath.Join(dir, "file")})
	require.NoError(t, err)
	assert.Equal(t, []document{{filepath.Join(dir, "file"), false}}, all)
	_, err = listTexts([]string{filepath.Join(dir, "texts", "none.txt")})
	assert.ErrorIs(t, err, os.ErrNotExist)
}
