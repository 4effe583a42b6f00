package integration

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
)

// 500 Predicts and 200 models loaded and freed leave the process as large as it was, with LESS off and on. Upstream crashed
// or ran out of memory after some twenty prompts.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute")
	}
	out, err := exec.Command("go", "run", "./soak").CombinedOutput()
	t.Logf("\n%s", out)
	assert.NoError(t, err)
}

// The same under the address sanitizer, in short: the leak sanitizer speaks up at the end.
func TestSoakLeaks(t *testing.T) {
	if testing.Short() {
		t.Skip("links another binary")
	}
	out, err := exec.Command("go", "run", "-asan", "./soak", "-predicts", "11", "-loads", "11", "-growth", "100").CombinedOutput()
	assert.NoError(t, err)
	assert.NotContains(t, string(out), "Sanitizer", "%s", out)
}
