//go:build cgo

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

func TestPlan(t *testing.T) {
	status, out, stderr := command("", "plan", "--memory=50M", "-c2k,8k,32k", "-b7%, 5%,1024,300KiB,1/64")
	require.Equal(t, exitOK, status, stderr)
	flat := regexp.MustCompile(` +`).ReplaceAllString(out, " ")
	for _, want := range []string{
		"gopher-5m: weights 9.888 MiB, trained for 2048 tokens", "50 MiB, --memory\n", "context cache slots slots state checkpoints scratch process fits\n a head MiB MiB MiB MiB MiB\n", "32768 full f16 all 96.0 - - - 124 no\n", "LESS 5% 102 0.17 0.02 ", "LESS 1024 1024 1.69 0.02 ", "LESS 7% 143 0.24 ", " LESS 1/64 882 1.45 ",
		"To hold 32768 tokens:", "llama.SetContext(32768),\n lesskv.Enable(lesskv.Config{Budget: lesskv.Share(0.07)})", "LESSKV=on LESSKV_BUDGET=7%\n", "lesskv run -c 32768 -b 7%\n",
		"trained for 2048 tokens; beyond them its output gets worse",
	} {
		assert.Contains(t, flat, want)
	}
	_, part, _ := command("", "plan", "--memory=40M", "-c32k", "-b1 / 64")
	for _, want := range []string{"lesskv.Part(1, 64)", "LESSKV_BUDGET='1 / 64'\n", "-b '1 / 64'\n"} {
		assert.Contains(t, part, want)
	}
	for line := range strings.Lines(out) {
		assert.LessOrEqual(t, len(line), 81, line)
	}
}

// The checkpoints that are planned are in the table, in the sum of a row, and in the lines to copy.
func TestPlanCheckpoints(t *testing.T) {
	row := func(args ...string) (checkpoints, process float64, out string) {
		t.Helper()
		status, out, stderr := command("", append([]string{"plan", "--memory=1G", "-c8k", "-b1024"}, args...)...)
		require.Equal(t, exitOK, status, stderr)
		found := regexp.MustCompile(`LESS 1024 +1024 +[0-9.]+ +[0-9.]+ +(?:([0-9.]+)|-) +[0-9.]+ +([0-9.]+) `).FindStringSubmatch(out)
		require.NotNil(t, found, out)
		if found[1] != "" {
			scan(t, found[1], &checkpoints)
		}
		scan(t, found[2], &process)
		return checkpoints, process, out
	}
	none, without, out := row("--checkpoints=0")
	assert.Zero(t, none)
	for _, want := range []string{"Checkpoints: lesskv.None", "LESSKV_CHECKPOINTS=0", "--checkpoints 0"} {
		assert.Contains(t, out, want)
	}
	two, with, out := row()
	assert.Positive(t, two)
	assert.InDelta(t, two, with-without, 0.1)
	assert.Contains(t, out, "2 of them; run keeps none")
	assert.NotContains(t, out, "CHECKPOINTS")
	five, _, out := row("--checkpoints=5")
	assert.InDelta(t, 2.5*two, five, 0.1)
	for _, want := range []string{"Checkpoints: 5", "LESSKV_CHECKPOINTS=5", "--checkpoints 5"} {
		assert.Contains(t, out, want)
	}
}

// The flags and the environment that it advises are command lines of run, whose cache takes what was planned.
func TestPlanAsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("no goroutine of the command's")
	}
	dir := unpacked(t, map[string]string{testdata.Model: "it's.gguf", testdata.Peak102: "it's.lesskv.gguf", testdata.Peak41: "the other.gguf"})
	model, other := filepath.Join(dir, "it's.gguf"), filepath.Join(dir, "the other.gguf")
	for name, test := range map[string]struct {
		args []string
		less string // of a sheet; "" is no such line
		says []string
	}{
		"built in":            {nil, "phi and psi", nil},
		"beside the model":    {[]string{"-m", model, "--type=q8_0"}, "phi and psi", []string{"Keys: lesskv.Q8"}},
		"an adapter":          {[]string{"-m", model, "-w", other}, "phi and psi", []string{fmt.Sprintf("Adapter: %q", other)}},
		"none":                {[]string{"-m", model, "-w", "none"}, "", []string{"Adapter: lesskv.NoAdapter"}},
		"none of built in":    {[]string{"-w", "none"}, "", []string{"Adapter: lesskv.NoAdapter"}},
		"another of built in": {[]string{"-w", other}, "phi and psi", nil},
	} {
		t.Run(name, func(t *testing.T) {
			status, out, stderr := command("", append([]string{"plan", "--memory=1G", "-c2k", "-b5%"}, test.args...)...)
			require.Equal(t, exitOK, status, stderr)
			assert.Equal(t, test.less != "", regexp.MustCompile(`(?m)^LESS +of an adapter: `+test.less).MatchString(out), out)
			for _, want := range test.says {
				assert.Contains(t, out, want)
			}
			planned := regexp.MustCompile(`LESS 5% +102 +([0-9.]+) +([0-9.]+|-) `).FindStringSubmatch(out)
			require.NotNil(t, planned, out)
			functions := regexp.MustCompile(`phi and psi, rank 8, ([0-9.]+) KiB`).FindStringSubmatch(out)
			flags := words(t, regexp.MustCompile(`flags +lesskv (.*)`).FindStringSubmatch(out)[1])
			for _, v := range words(t, regexp.MustCompile(`environment +(.*)`).FindStringSubmatch(out)[1]) {
				name, value, _ := strings.Cut(v, "=")
				t.Setenv(name, value)
			}
			bare := []string{"run"}
			if i := slices.Index(flags, "-m"); i >= 0 {
				bare = append(bare, flags[i:i+2]...)
			}
			for _, args := range [][]string{flags, bare} {
				if args = append(args, "-t1", "-n2"); slices.Contains(test.args, model) {
					args = append(args, "--ubatch=32")
				}
				status, _, report := command("x", args...)
				require.Equal(t, exitOK, status, report)
				got := regexp.MustCompile(`(?m)^cache +([0-9.]+) (KiB|MiB)`).FindStringSubmatch(report)
				require.NotNil(t, got, report)
				var slots, state, kernels, whole float64
				scan(t, planned[1], &slots)
				scan(t, got[1], &whole)
				if got[2] == "KiB" {
					whole /= 1024
				}
				if functions != nil {
					scan(t, planned[2], &state)
					scan(t, functions[1], &kernels)
				}
				assert.InDelta(t, whole, slots+state+kernels/1024, 0.016) // three numbers of two places
			}
		})
	}
}

// Where the default saves nothing, no smaller budget is advised in its place; where it does not fit and a smaller one does, that is said.
func TestPlanShortContext(t *testing.T) {
	for _, context := range []string{"1k", "2k"} {
		status, out, stderr := command("", "plan", "-w", "none", "-c"+context, "--memory=1G")
		require.Equal(t, exitOK, status, stderr)
		assert.Contains(t, out, "LESS by default saves\nnext to nothing: it keeps 1024 slots a head")
		assert.NotContains(t, out, "LESSKV=on")
	}
	status, out, stderr := command("", "plan", "-w", "none", "-c1k", "--memory=1G", "-b64")
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "LESSKV_BUDGET=64", "which was asked for")
	status, out, stderr = command("", "plan", "-w", "none", "-c32k", "--memory=40M")
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "LESSKV_BUDGET=5%")
	assert.Contains(t, out, "The default, 4854 slots a head, does not fit.")
}

// words splits a line as a shell does.
func words(t *testing.T, line string) []string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+line).Output()
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// Of an adapter it says what is in it.
func TestPlanAllocation(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Model: "m.gguf", testdata.Peak102: "both.gguf"})
	both, err := weights.Read(filepath.Join(dir, "both.gguf"))
	require.NoError(t, err)
	m, err := weights.ReadModel(filepath.Join(dir, "m.gguf"))
	require.NoError(t, err)
	alone := weights.New(m, weights.Trained{Policy: "peak", Ubatch: 1, Context: 1})
	for want, a := range map[string]*weights.Adapter{"of an adapter: budgets by head\n": alone, "of an adapter: phi and psi, rank 8, 23.25 KiB, budgets by head\n": both} {
		a.Budget = []float32{1, 1, 0, 0, 2, 2, 0, 0, 0, 4, 0, 0}
		file := filepath.Join(dir, "a.gguf")
		require.NoError(t, a.Write(file))
		status, out, stderr := command("", "plan", "-m", filepath.Join(dir, "m.gguf"), "-w", file)
		require.Equal(t, exitOK, status, stderr)
		assert.Contains(t, out, want)
	}
	plain := func(args ...string) string {
		status, out, stderr := command("", append([]string{"plan", "-m", filepath.Join(dir, "m.gguf"), "-c", "2k", "-b", "102"}, args...)...)
		require.Equal(t, exitOK, status, stderr)
		return out
	}
	alone.Budget, alone.SlotTypes = nil, memory.SlotTypes(m, nil)
	alone.SlotTypes[0].Key, alone.SlotTypes[5].Value = gguf.F32, gguf.F32
	file := filepath.Join(dir, "a.gguf")
	require.NoError(t, alone.Write(file))
	out := plain("-w", file)
	assert.Contains(t, out, "of an adapter: slots of q8_0,0.k=f32,5.v=f32\n")
	assert.Contains(t, out, "LESS 102     102   0.24 ", "bytes of each layer: 102 x 2 x (6 x 144 + 2 x 188)")
	out = plain("-w", file, "--type", "q8_0")
	assert.NotContains(t, out, "slots of")
	assert.Contains(t, out, "LESS 102     102   0.17 ")
	status, _, stderr := command("", "plan", "-m", filepath.Join(dir, "m.gguf"), "--type", "q8_0,0=f16")
	assert.Equal(t, exitUsage, status)
	assert.Contains(t, stderr, "want the same in all layers")
}

func TestPlanRefused(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Model: "m.gguf"})
	bloom, err := tinymodels.Find("bloom")
	require.NoError(t, err)
	alibi := filepath.Join(dir, "bloom.gguf")
	require.NoError(t, bloom.Write(alibi, gguf.F32, 1))
	model := filepath.Join(dir, "m.gguf")
	for name, test := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"nothing fits":  {[]string{"--memory=1M"}, exitChecks, "nothing fits into 1 MiB"},
		"argument":      {[]string{"m.gguf"}, exitUsage, "given with -m"},
		"memory":        {[]string{"--memory=lots"}, exitUsage, "--memory lots: want bytes"},
		"context":       {[]string{"-c0"}, exitUsage, "--context 0: want 1 token"},
		"contexts":      {[]string{"-c18014398509481985k"}, exitUsage, "want a number of tokens"},
		"budget":        {[]string{"-b0%"}, exitUsage, "--budget 0%: want slots"},
		"types":         {[]string{"--type=f64"}, exitUsage, "want f16, f32"},
		"picture":       {[]string{"-m", model, "-o", model}, exitUsage, "want a name that ends in .png"},
		"not served":    {[]string{"-m", alibi}, exitFailed, "ALiBi"},
		"no model":      {[]string{"-m", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		"no adapter":    {[]string{"-w", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		"small budget":  {[]string{"-b1KiB"}, exitUsage, "one slot in every head take"},
		"one slot":      {[]string{"-b1"}, exitUsage, "--budget 1 at a context of 2048: 1 slots a head, of which policy peak keeps 0 by score"},
		"folder":        {[]string{"-o", filepath.Join(dir, "no", "p.png")}, exitFailed, "there is no folder"},
		"picture there": {[]string{"-o", write(t, dir, "other.png", "text")}, exitFailed, "not a PNG picture"},
	} {
		status, _, stderr := command("", append([]string{"plan"}, test.args...)...)
		assert.Equal(t, test.status, status, "%s: %s", name, stderr)
		assert.Contains(t, stderr, test.says, name)
	}
}

func TestPlanPicture(t *testing.T) {
	for _, name := range []string{"p.png", "p.svg"} {
		path := filepath.Join(t.TempDir(), name)
		for _, memory := range []string{"60M", "1T"} {
			status, _, stderr := command("", "plan", "--memory="+memory, "-c2k,8k", "-o", path)
			require.Equal(t, exitOK, status, stderr)
			assert.True(t, pictureFile(path).is(path))
		}
	}
}

// Without -m or --memory there is the built-in model and what the machine has.
func TestPlanHere(t *testing.T) {
	status, out, stderr := command("", "plan")
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "available on this machine")
	assert.Regexp(t, `The full cache of 2048 tokens fits. LESS leaves [45]\.\d+ MiB to others`, out)
	_, out, _ = command("", "plan", "-c2k", "-b2048", "--type=f16")
	assert.Contains(t, out, "fits, and LESS with these budgets takes no less.\n")
	assert.NotContains(t, out, "flags")
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}
