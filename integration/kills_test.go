package integration

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
)

// A few kills of each, of those that docs/reliability.md has 200 of.
func TestKills(t *testing.T) {
	out, err := exec.Command("go", "run", "./kills", "-n", "3").CombinedOutput()
	t.Logf("\n%s", out)
	assert.NoError(t, err)
}

// The first of the million tokens.
func TestMillion(t *testing.T) {
	out, err := exec.Command("go", "run", "./million", "-tokens", "16000").CombinedOutput()
	t.Logf("\n%s", out)
	assert.NoError(t, err)
}
