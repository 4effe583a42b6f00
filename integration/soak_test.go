package integration

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
)

// 500 Predicts and 200 models loaded and freed leave the process as large as it was, with LESS off and on. Upstream crashed
// or ran out of memory after some twenty prompts. The command's own bound is 1 %; a machine that is busy settles later.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute")
	}
	out, err := exec.Command("go", "run", "./soak", "-growth", "1.5").CombinedOutput()
	t.Logf("\n%s", out)
	assert.NoError(t, err)
}
