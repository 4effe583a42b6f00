package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/patches/layout"
)

// The check can fail: with one sign flipped in a kernel, verify says that the build is not what it claims to be.
func TestVerifyFindsBrokenKernels(t *testing.T) {
	text, err := os.ReadFile("testdata/heldout.txt")
	require.NoError(t, err)
	build, err := layout.Find(".")
	require.NoError(t, err)
	measure := func(t *testing.T, worker string) *verify.Report {
		r, err := verify.Run(context.Background(), verify.Plan{
			Model: gopher, Adapters: []string{adapterPath("peak-41")}, Text: string(text[:4000]), Windows: 1, Contexts: []int{192},
			Budgets: []verify.Budget{verify.Tokens(41)}, Policies: []string{"peak"}, Methods: []string{verify.LESS},
			Generate: -1, Recall: []string{}, Samples: 50, Worker: worker,
		})
		require.NoError(t, err)
		return r
	}
	workerObjects := compile(t, build, t.TempDir(), workerSources(t, build), "-O1")
	whole := measure(t, "")
	require.Empty(t, whole.Failed())
	for _, c := range []struct{ name, file, sign, flipped, finds string }{
		{"a query's scale", "attend.c", "s->tile[d] * t->ub->scale", "s->tile[d] * -t->ub->scale", verify.NothingEvicted},
		{"the state's part", "attend.c", "wa * acc[c] + wb * value[c]", "wa * acc[c] - wb * value[c]", verify.Reference},
		{"folding", "state.c", "H[c] += p * v[c]", "H[c] -= p * v[c]", verify.Reference},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source, err := os.ReadFile(filepath.Join(build.Sources(), "less", c.file))
			require.NoError(t, err)
			require.Equal(t, 1, strings.Count(string(source), c.sign), "the line that this test breaks is not there any more")
			broken := filepath.Join(t.TempDir(), c.file)
			require.NoError(t, os.WriteFile(broken, []byte(strings.Replace(string(source), c.sign, c.flipped, 1)), 0o644))
			dir := t.TempDir()
			path := filepath.Join(dir, "worker")
			objects := slices.Concat(workerObjects, compile(t, build, dir, []string{broken}, "-O2")) // before the archive, which gives the rest
			link := slices.Concat([]string{"-o", path}, objects, []string{filepath.Join(build.Package(), "libbinding.a"), "-pthread", "-lm", "-ldl"})
			require.NoError(t, execute(t, tool("CXX", "g++"), link...))

			r := measure(t, path)
			var found []string
			for _, f := range r.Failed() {
				found = append(found, f.Method)
				assert.NotEmpty(t, f.Reason)
			}
			assert.Contains(t, found, c.finds)
			assert.NotContains(t, found, verify.Off, "it is not used when LESS is off")
			good, bad := whole.Row(192, 32, 41, "peak", verify.LESS), r.Row(192, 32, 41, "peak", verify.LESS)
			assert.Greater(t, bad.KL.Value, good.KL.Value)
			checks := r.Check(verify.Must(fmt.Sprintf("kl <= %g", good.KL.Value)))
			assert.False(t, checks[len(checks)-1].OK, "nor does a threshold hold that the good one meets")
		})
	}
}
