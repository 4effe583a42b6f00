//go:build cgo

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/integration/worker"
)

// verifyFiles returns a folder with a model, an adapter and a book, and flags for a verification of seconds.
func verifyFiles(t *testing.T) (dir string, flags []string) {
	t.Helper()
	dir = t.TempDir()
	for from, to := range map[string]string{testdata.Model: "model.gguf", testdata.Lambda: "model.lesskv.gguf"} {
		path, err := testdata.PathIn(dir, from)
		require.NoError(t, err)
		require.NoError(t, os.Rename(path, filepath.Join(dir, to)))
	}
	text, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "book.txt"), text[:9000], 0o644))
	return dir, []string{"verify", "-m", filepath.Join(dir, "model.gguf"), "-d", filepath.Join(dir, "book.txt"), "-c192", "-b41", "--windows=2", "--policy=lambda",
		"--method=sparse,LESS", "--recall=none", "-n4", "--samples=50", "-t2"}
}

// Killed in the middle, asked again, the command finishes its report, and says by its status and in JSON what does not hold.
func TestVerify(t *testing.T) {
	dir, flags := verifyFiles(t)
	env := append(os.Environ(), playCommand+"=1")
	for tree, name := range map[worker.Tree]string{worker.Patched: "LESSKV_WORKER", worker.Unmodified: "LESSKV_WORKER_UNMODIFIED"} {
		path, err := worker.Path(tree)
		require.NoError(t, err)
		env = append(env, name+"="+path)
	}
	binary, err := os.Executable()
	require.NoError(t, err)
	work := filepath.Join(dir, "model.verify", "work")
	killed := exec.Command(binary, append(flags, "--keep")...)
	killed.Dir, killed.Env = dir, env
	require.NoError(t, killed.Start())
	assert.Eventually(t, func() bool {
		pieces, _ := filepath.Glob(filepath.Join(work, "points-*"))
		return len(pieces) > 0
	}, 5*time.Minute, 5*time.Millisecond)
	require.NoError(t, killed.Process.Kill())
	killed.Wait()
	pieces, err := filepath.Glob(filepath.Join(work, "points-*"))
	require.NoError(t, err)
	pieces = slices.DeleteFunc(pieces, func(p string) bool { return strings.HasSuffix(p, ".tmp") }) // of one that was not finished
	before := map[string]time.Time{}
	for _, p := range pieces {
		info, err := os.Stat(p)
		require.NoError(t, err)
		before[p] = info.ModTime()
	}

	status, table, stderr := command("", append(flags, "--keep", "--require", "kl <= 9", "--require", "lambda less 41: top1 > 0.1")...)
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, table, "lambda LESS")
	assert.Contains(t, table, "holds:  kl <= 9: lambda LESS at budget 41")
	for p, at := range before {
		info, err := os.Stat(p)
		require.NoError(t, err)
		assert.Equal(t, at, info.ModTime(), "what was finished is not computed again")
	}
	for _, name := range []string{"report.json", "report.csv", "report.html", "quality.png", "position.png", "layers.png", "held-41.png"} {
		assert.FileExists(t, filepath.Join(dir, "model.verify", name))
	}

	status, out, stderr := command("", append(flags, "--json", "--require", "kl <= 1e-9", "--require", "q8_0: kl < 1")...)
	assert.Equal(t, exitChecks, status)
	assert.Contains(t, stderr, "2 of 5 checks failed")
	var r verify.Report
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	failed := r.Failed()
	require.Len(t, failed, 2)
	assert.Equal(t, "kl <= 1e-9", failed[0].Requirement)
	assert.Equal(t, r.Row(192, 32, 41, "lambda", "LESS").KL.Value, failed[0].Found)
	assert.Equal(t, "nothing that it is about was measured", failed[1].Reason)
	assert.NoDirExists(t, work, "not kept")
}

// The numbers of docs/quality.md are those of a run: its command, with one of its settings, says so again. What two CPUs round differently is less
// than the last digit that the page has, give or take one.
func TestQualityPageIsARun(t *testing.T) {
	if os.Getenv("LESSKV_SOAK") == "" {
		t.Skip("a minute or more: make soak-readme")
	}
	readme, err := os.ReadFile("../../docs/quality.md")
	require.NoError(t, err)
	status, out, stderr := command("", "verify", "-b", "41", "--type=f16", "--ubatch", "512", "--policy=peak", "--method=sparse,LESS", "--recall=none", "-n0", "--samples=50",
		"-q", "-t1", "--json", "-o", t.TempDir())
	require.Equal(t, exitOK, status, stderr)
	var r verify.Report
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	for name, method := range map[string]string{"peak sparse": verify.Sparse, "peak LESS, `gopher-5m.peak-41.lesskv.gguf`": verify.LESS} {
		cells := regexp.MustCompile(`(?m)^\| 41 \(2 %\) \| ` + regexp.QuoteMeta(name) + ` \| 41 \| (\d+) \|.* \| ([\d.]+) \[[\d., ]+\] \|$`).FindSubmatch(readme)
		require.NotNil(t, cells, name)
		kib, err := strconv.Atoi(string(cells[1]))
		require.NoError(t, err)
		kl, err := strconv.ParseFloat(string(cells[2]), 64)
		require.NoError(t, err)
		row := r.Row(2048, 512, 41, "peak", method)
		require.NotNil(t, row, name)
		assert.EqualValues(t, kib, (row.Bytes.Total+512)>>10, name)
		assert.InDelta(t, kl, row.KL.Value, 2e-4, name)
	}
}

// What is best under so many bytes is printed first, and is the whole report.
func TestVerifyBytes(t *testing.T) {
	dir, flags := verifyFiles(t)
	flags = slices.DeleteFunc(flags, func(s string) bool { return s == "-b41" || strings.HasPrefix(s, "--method") })
	status, out, stderr := command("", append(flags, "--bytes=1/4,90KiB", "--type=q8_0", "--type=q4_0,q8_0", "-n0")...)
	require.Equal(t, exitOK, status, stderr)
	for _, want := range []string{"under 192 KiB", "under 90 KiB"} {
		assert.Contains(t, out, want)
	}
	assert.Len(t, regexp.MustCompile(`(?m)^best: +lambda `).FindAllString(out, -1), 2)
	files, err := filepath.Glob(filepath.Join(dir, "model.verify", "*"))
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(dir, "model.verify", "report.json")}, files)
}

func TestVerifyRefused(t *testing.T) {
	dir, flags := verifyFiles(t)
	bad, numbers := filepath.Join(dir, "bad.jsonl"), filepath.Join(dir, "book.tokens")
	require.NoError(t, os.WriteFile(numbers, make([]byte, 8000), 0o644))
	require.NoError(t, os.WriteFile(bad, []byte("{\"prompt\": \"x\"}\n{\"prompts\": 1}\n"), 0o644))
	for name, c := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"no text":        {[]string{"verify", "-m", filepath.Join(dir, "model.gguf")}, exitUsage, "want a text"},
		"argument":       {append(flags, "book.txt"), exitUsage, "a text is given with -d"},
		"budget":         {append(flags, "-b5.5"), exitUsage, "--budget 5.5: want slots a head (1024)"},
		"requirement":    {append(flags, "--require", "speed > 3"), exitUsage, "no measure speed"},
		"method":         {append(flags, "--method=best"), exitUsage, `method "best"`},
		"slots":          {append(flags, "--type=q4_1"), exitUsage, `slots of type "q4_1": want f16, f32, q8_0 or q4_0`},
		"tokens":         {append(flags, "--bytes=102"), exitUsage, "--bytes 102: want a share of the full f16 cache's bytes"},
		"two types":      {append(flags, "--type=q8_0", "--type=q4_0"), exitUsage, "want one type, or --bytes"},
		"bytes, budget":  {append(flags, "--bytes=1/8"), exitUsage, "--budget: without effect"},
		"too few bytes":  {append(flags, "-b1KiB"), exitUsage, "one slot in every head"},
		"windows":        {append(flags, "--windows=0"), exitUsage, "--windows 0"},
		"memory":         {append(flags, "--memory=lots"), exitUsage, "--memory lots"},
		"prompts":        {append(flags, "--prompts", bad), exitUsage, "line 2"},
		"threads":        {append(flags, "-text"), exitUsage, "needs an argument"},
		"token numbers":  {append(flags, "-d", numbers), exitUsage, "want text: token numbers are for train and tune"},
		"no such text":   {[]string{"verify", "-m", filepath.Join(dir, "model.gguf"), "-d", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		"no such model":  {[]string{"verify", "-m", filepath.Join(dir, "none.gguf"), "-d", bad}, exitFailed, "none.gguf"},
		"no model":       {[]string{"verify", "-m", bad, "-d", bad}, exitFailed, "bad.jsonl"},
		"no adapter":     {append(flags, "-w", bad), exitFailed, "bad.jsonl"},
		"short text":     {append(flags, "--windows=500"), exitFailed, "500 windows of 192 tokens"},
		"does not fit":   {append(flags, "--memory=48M"), exitFailed, "the bound is 48 MiB"},
		"unknown unit":   {append(flags, "--memory=1X"), exitUsage, "--memory 1X"},
		"wrong template": {append(flags, "--template=chat"), exitUsage, "without {prompt}"},
	} {
		t.Run(name, func(t *testing.T) {
			status, out, stderr := command("", c.args...)
			assert.Equal(t, c.status, status, stderr)
			assert.Contains(t, stderr, c.says)
			assert.Empty(t, out)
		})
	}
	status, out, _ := command("", append(flags, "--memory=48M", "--json")...)
	assert.Equal(t, exitFailed, status)
	var reason map[string]string
	require.NoError(t, json.Unmarshal([]byte(out), &reason))
	assert.Contains(t, reason["error"], "more memory than the bound")
}

// spoil puts infinite weights, in f16, at the end of a model's last tensor.
func spoil(t *testing.T, path string) {
	t.Helper()
	model, err := os.ReadFile(path)
	require.NoError(t, err)
	copy(model[len(model)-64:], strings.Repeat("\x00\x7c", 32))
	require.NoError(t, os.WriteFile(path, model, 0o644))
}

// Logits that are not finite are in the report, and no check holds.
func TestVerifyNotFinite(t *testing.T) {
	dir, flags := verifyFiles(t)
	spoil(t, filepath.Join(dir, "model.gguf"))
	require.NoError(t, os.Remove(filepath.Join(dir, "model.lesskv.gguf")))
	status, table, stderr := command("", append(flags, "--method=sparse", "--read=64")...)
	assert.Equal(t, exitChecks, status, stderr)
	assert.Contains(t, table, "logits of the full cache that are not finite")
	assert.Contains(t, stderr, "checks failed")
	assert.FileExists(t, filepath.Join(dir, "model.verify", "report.json"))
}

// The first signal asks a command to stop, and the second ends it, where it waits for what may never come.
func TestSecondSignal(t *testing.T) {
	dir, _ := verifyFiles(t)
	model := filepath.Join(dir, "model.gguf")
	for name, args := range map[string][]string{
		"verify": {"verify", "-m", model, "-d", "-"},
		"train":  {"train", "-m", model, "-d", "-"},
		"tune":   {"tune", "-m", model, "-d", "-", "-o", filepath.Join(dir, "new.gguf")},
	} {
		t.Run(name, func(t *testing.T) {
			_, env := trainFiles(t)
			binary, err := os.Executable()
			require.NoError(t, err)
			c := exec.Command(binary, args...)
			c.Env = env
			stdin, err := c.StdinPipe()
			require.NoError(t, err)
			require.NoError(t, c.Start())
			defer c.Process.Kill()
			_, err = stdin.Write(make([]byte, 1<<20)) // more than a pipe holds: it reads, and knows signals by now
			require.NoError(t, err)
			ended := make(chan error, 1)
			go func() { ended <- c.Wait() }()
			for range 600 {
				c.Process.Signal(os.Interrupt)
				select {
				case err := <-ended:
					assert.Error(t, err)
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
			t.Error("signals do not end it")
		})
	}
}
