package integration

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
)

// 500 Predicts and 200 models loaded and freed leave the process within 1 % of what it was, with LESS off and on. Upstream
// crashed or ran out of memory after some twenty prompts.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute")
	}
	out, err := exec.Command("go", "run", "./soak").CombinedOutput()
	t.Logf("\n%s", out)
	assert.NoError(t, err)
}
