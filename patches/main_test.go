package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/bluekeyes/go-gitdiff/gitdiff"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/series"
	"github.com/lesskv/lesskv/patches/usage"
)

func TestArguments(t *testing.T) {
	for _, test := range []struct {
		args   []string
		want   string
		status int
	}{
		{[]string{"-tree", "both"}, "want all, patched or unmodified", 2},
		{[]string{"-preset", "fast"}, "want native or portable", 2},
		{[]string{"-app", ".", "-clean"}, "-undo unlinks an app", 2},
		{[]string{"-prune", "-app", "."}, "-prune goes alone", 2},
		{[]string{"-replace"}, "-replace is for apps", 2},
		{[]string{"-install", "-app", "."}, "-install goes without -app", 2},
		{[]string{"-install", "-tree", "patched"}, "-install goes without -app", 2},
		{[]string{"build"}, "everything is a flag", 2},
		{[]string{"-nonsense"}, "-nonsense", 2},
		{[]string{"-app", "no-such-folder", "-undo"}, "the app's go.mod", 1},
	} {
		var log bytes.Buffer
		err := run(t.Context(), test.args, &log)
		require.ErrorContains(t, err, test.want, "%v", test.args)
		require.Equal(t, test.status, usage.Status(err), "%v", test.args)
	}
	require.Zero(t, usage.Status(run(t.Context(), []string{"-help"}, io.Discard)))
}

// A warning in cgo/ is an error for make test, and for nobody else.
func TestWhoIsStrict(t *testing.T) {
	for target, strict := range map[string]bool{"test": true, "demo": false, "runtime": false} {
		cmd := exec.Command("make", "-n", "-C", "..", target)
		cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=") // of the make that runs the tests
		out, err := cmd.Output()
		require.NoError(t, err)
		require.Contains(t, string(out), "go run ./patches")
		require.Equal(t, strict, strings.Contains(string(out), "go run ./patches -strict"), "make %s", target)
	}
}

// Whose tests run with which devices depends on the backend: a list of them is refused.
func TestOneBackendAtATime(t *testing.T) {
	for list, ok := range map[string]bool{"rpc": true, "rpc,blas": false, "rpc blas": false, "cpu,rpc": false} {
		cmd := exec.Command("make", "-n", "-C", "..", "test-devices", "DEVICES="+list)
		cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=") // of the make that runs the tests
		out, err := cmd.CombinedOutput()
		require.Equal(t, ok, err == nil, "%s", out)
		require.Equal(t, !ok, strings.Contains(string(out), "one backend a run"), "%s", out)
	}
}

func TestExplain(t *testing.T) {
	full := fmt.Errorf("copying: %w", &os.PathError{Op: "write", Path: "build/x", Err: syscall.ENOSPC})
	require.ErrorContains(t, explain(full), "the disk is full")
	require.ErrorContains(t, explain(full), "build/x")
	require.ErrorContains(t, explain(fmt.Errorf("x: %w", context.Canceled)), "interrupted")
	require.EqualError(t, explain(os.ErrExist), os.ErrExist.Error())
}

// The patches that this program carries are all well-formed, and README.md says what each is for. Whether they apply, an
// assembly shows.
func TestSeries(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	named := regexp.MustCompile(`(?m)^\| (\S+\.patch) \|`).FindAllSubmatch(readme, -1)
	var table, files []string
	for _, n := range named {
		table = append(table, string(n[1]))
	}
	for _, name := range []string{"llama.cpp", "go-llama.cpp", "ggml-rpc"} {
		patches, err := series.Read(patches, name)
		require.NoError(t, err)
		require.NotEmpty(t, patches)
		for _, p := range patches {
			files = append(files, p.Name)
		}
	}
	require.Equal(t, files, table)
}

// No patch takes back what one before it has added: what the series does to a file is said once.
func TestSeriesSaysOnce(t *testing.T) {
	added := map[string]map[int64]string{} // of each file, which lines the patches so far have added
	for _, name := range []string{"llama.cpp", "go-llama.cpp", "ggml-rpc"} {
		patches, err := series.Read(patches, name)
		require.NoError(t, err)
		for _, p := range patches {
			for _, f := range p.Files {
				added[f.NewName] = apply(t, added[f.NewName], p.Name, f)
			}
		}
	}
}

// apply follows added lines through a patch of their file.
func apply(t *testing.T, before map[int64]string, patch string, f *gitdiff.File) map[int64]string {
	after := map[int64]string{}
	line, shift := int64(1), int64(0) // of the old file; how much further down it is in the new one
	copied := func(end int64) {
		for at, by := range before {
			if line <= at && at < end {
				after[at+shift] = by
			}
		}
		line = end
	}
	for _, hunk := range f.TextFragments {
		copied(hunk.OldPosition)
		for _, l := range hunk.Lines {
			switch l.Op {
			case gitdiff.OpContext:
				copied(line + 1)
			case gitdiff.OpDelete:
				require.Empty(t, before[line], "%s takes back %q", patch, l.Line)
				line, shift = line+1, shift-1
			case gitdiff.OpAdd:
				after[line+shift], shift = patch, shift+1
			}
		}
	}
	copied(math.MaxInt64)
	return after
}
