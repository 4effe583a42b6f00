//go:build cgo

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// command runs a command line and returns its exit status and output.
func command(stdin string, args ...string) (status int, stdout, stderr string) {
	var out, err bytes.Buffer
	status = execute(context.Background(), args, strings.NewReader(stdin), &out, &err)
	return status, out.String(), err.String()
}

// greedy runs run with its output fixed, on one thread: two would wait for the scheduler on a busy machine.
func greedy(stdin string, args ...string) (status int, stdout, stderr string) {
	return command(stdin, append([]string{"run", "-t1", "--temp=0"}, args...)...)
}

func TestRun(t *testing.T) {
	status, text, report := greedy("", "-n150", "func main() {")
	require.Equal(t, exitOK, status, report)
	assert.NotEmpty(t, text)
	assert.NotContains(t, text, "full cache", "the report is not part of the text")
	for _, want := range []string{
		"generated   150 tokens", "tokens/s", "ended by -n", "peak, 102 of 2048 tokens: 25 heavy (1 pinned), 77 recent\n            phi and psi of rank 8",
		"102 kept", "folded", "full cache  6 MiB",
	} {
		assert.Contains(t, report, want)
	}

	status, again, report := greedy("", "-n150", "-q", "func main() {")
	assert.Equal(t, exitOK, status)
	assert.Equal(t, text, again)
	assert.Empty(t, report)
}

func TestRunWithout(t *testing.T) {
	status, text, report := greedy("", "-n5", "--less=off", "func main() {")
	assert.Equal(t, exitOK, status, report)
	assert.NotEmpty(t, text)
	assert.Contains(t, report, "6 MiB: the full cache of 2048 tokens, without LESS")
}

func TestRunFlags(t *testing.T) {
	for want, args := range map[string][]string{
		"h2o, 77 of 2048 tokens: 38 heavy (1 pinned), 39 recent\n            phi and psi":  {"--policy=h2o", "--budget=77"},
		"lambda, 204 of 2048 tokens: 4 heavy (1 pinned), 200 recent\n            sparse":   {"--policy=lambda", "--budget=10%"},
		"peak, 1024 of 2048 tokens: 30 heavy (0 pinned), 994 recent\n            sparse":   {"--heavy=30", "--pinned=0", "--adapter=none"},
		"peak, 102 of 512 tokens: 25 heavy (1 pinned), 77 recent\n            phi and psi": {"-c512", "--type=f32"},
		"ended by a stop word":                          {"--stop=nil"},
		"n_ctx_seq             = 2048":                  {"-v"},
		"context 256":                                   {"-c256"},
		"ended by the context\nLESS":                    {"-n-1", "-c256"},
		"the full cache of 2048 tokens, without LESS\n": {"--less=off", "--budget=5"},
		"6 seen, 6 kept, 0 folded":                      {"-n3", "func main()"},
	} {
		if args[len(args)-1][0] == '-' {
			args = append(args, "return nil; return nil; return")
		}
		args = append([]string{"-n20"}, args...)
		status, _, report := greedy("", args...)
		assert.Equal(t, exitOK, status, report)
		assert.Contains(t, report, want, args)
	}
}

// The prompt's three sources give the same text; one newline at the end of a file or of standard input is not part of it.
func TestRunPrompt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "prompt.txt")
	require.NoError(t, os.WriteFile(file, []byte("func main() {\n"), 0o644))
	_, want, _ := greedy("", "-n12", "func main() {")
	for name, run := range map[string]func() (int, string, string){
		"file":        func() (int, string, string) { return greedy("", "-n12", "-f", file) },
		"stdin":       func() (int, string, string) { return greedy("func main() {", "-n12") },
		"stdin by -f": func() (int, string, string) { return greedy("func main() {\n", "-n12", "-f-") },
	} {
		status, got, report := run()
		assert.Equal(t, exitOK, status, report)
		assert.Equal(t, want, got, name)
	}
}

func TestRunRefused(t *testing.T) {
	dir := t.TempDir()
	wrong := filepath.Join(dir, "wrong.gguf")
	require.NoError(t, os.WriteFile(wrong, []byte("not a model"), 0o644))
	h2o, err := testdata.PathIn(dir, testdata.H2O102)
	require.NoError(t, err)
	for name, test := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"unknown command":  {[]string{"walk"}, exitUsage, `unknown command "walk"`},
		"unknown flag":     {[]string{"run", "--fast", "x"}, exitUsage, "unknown flag: --fast"},
		"two prompts":      {[]string{"run", "func", "main"}, exitUsage, "2 arguments"},
		"prompt and file":  {[]string{"run", "-f", "x", "y"}, exitUsage, "give one of the two"},
		"empty prompt":     {[]string{"run", ""}, exitUsage, "the prompt is empty"},
		"empty stdin":      {[]string{"run"}, exitUsage, "the prompt is empty"},
		"-n":               {[]string{"run", "-n-2", "x"}, exitUsage, "--tokens -2"},
		"no tokens":        {[]string{"run", "-n0", "x"}, exitUsage, "--tokens 0"},
		"budget":           {[]string{"run", "--budget", "0", "x"}, exitUsage, "--budget 0: want slots a head (1024)"},
		"no such file":     {[]string{"run", "-f", filepath.Join(dir, "none"), ""}, exitUsage, "give one of the two"},
		"no such prompt":   {[]string{"run", "-f", filepath.Join(dir, "none")}, exitFailed, "none: no such file"},
		"no such model":    {[]string{"run", "-m", filepath.Join(dir, "none"), "x"}, exitFailed, "none: No such file"},
		"no model":         {[]string{"run", "-m", wrong, "x"}, exitFailed, "is not a GGUF file"},
		"policy":           {[]string{"run", "--policy", "newest", "x"}, exitUsage, strings.Join(kernels.PolicyNames(), ", ")},
		"no adapter":       {[]string{"run", "--adapter", wrong, "x"}, exitFailed, "wrong.gguf"},
		"adapter's policy": {[]string{"run", "--policy", "lambda", "--adapter", h2o, "x"}, exitUsage, "was trained with policy h2o, the configuration says lambda"},
		"too long":         {[]string{"run", strings.Repeat("x ", 3000)}, exitFailed, "the context holds 2048"},
		"context is full":  {[]string{"run", "-t1", "-n3000", "--temp=0", "-c256", "func"}, exitFailed, "2048 tokens is full"},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := command("", test.args...)
			assert.Equal(t, test.status, status, stderr)
			assert.Contains(t, stderr, test.says)
			assert.True(t, test.status != exitFailed || strings.Count(stderr, "failed loading model") <= 1, "said once: %s", stderr)
			if name != "context is full" {
				assert.Empty(t, stdout)
			}
		})
	}
}

// Layers are not quietly left on the CPU.
func TestRunWithoutDevices(t *testing.T) {
	if lesskv.HasDevices() {
		t.Skip("this runtime has a backend for devices")
	}
	status, stdout, stderr := command("", "run", "-n1", "--gpu-layers=2", "x")
	assert.Equal(t, exitFailed, status, stderr)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "-backend")
	assert.Contains(t, stderr, "LESSKV_RPC")
}

// interruptor raises SIGINT at its fifth token.
type interruptor struct{ n int }

func (w *interruptor) Write(p []byte) (int, error) {
	if w.n++; w.n == 5 {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func TestRunInterrupted(t *testing.T) {
	var out interruptor
	var stderr bytes.Buffer
	status := execute(context.Background(), []string{"run", "-n2000", "package main"}, strings.NewReader(""), &out, &stderr)
	assert.Equal(t, exitInterrupted, status, stderr.String())
	assert.Contains(t, stderr.String(), "ended by an interrupt")
	assert.Less(t, out.n, 1000, "long before the end")
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestRunOutputFails(t *testing.T) {
	var stderr bytes.Buffer
	status := execute(context.Background(), []string{"run", "-t1", "-n20", "x"}, strings.NewReader(""), brokenPipe{}, &stderr)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stderr.String(), "broken pipe")
	assert.Contains(t, stderr.String(), "1 tokens,", "it ends at the first token")
}
