package integration

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// 500 Predicts and 200 models loaded and freed, in make test half of that, leave the process within 1 % of what it was, with LESS off and on.
// Upstream crashed or ran out of memory after some twenty prompts.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute")
	}
	cmd := exec.Command("go", "run", "./soak")
	if !soak() {
		cmd.Args = append(cmd.Args, "-predicts", "250", "-loads", "100")
	}
	// The process is a small one, in which what each further processor has for itself would count.
	cmd.Env = append(plainHeap(), "GOMAXPROCS=2")
	out, err := cmd.CombinedOutput()
	t.Logf("\n%s", out)
	assert.NoError(t, err)
}

// plainHeap is the environment without what sets glibc's heap.
func plainHeap() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "MALLOC_") || strings.HasPrefix(v, "GLIBC_TUNABLES=")
	})
}

// The runtime leaves the C heap of its program alone until a model is loaded with LESS on.
func TestHeapIsTheProgramsOwn(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"", "before: glibc's own\noff: glibc's own\non: set\n"},
		{"MALLOC_ARENA_MAX=2", "before: glibc's own\noff: glibc's own\non: glibc's own\n"},
	} {
		cmd := exec.Command("go", "run", "./heap")
		cmd.Env = plainHeap()
		if c.env != "" {
			cmd.Env = append(cmd.Env, c.env)
		}
		out, err := cmd.Output()
		assert.NoError(t, err)
		if strings.Contains(string(out), "not glibc's") {
			t.Skip("no other heap is ever set")
		}
		assert.Equal(t, c.want, string(out), c.env)
	}
}
