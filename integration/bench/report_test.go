package bench

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
)

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// A table that could not be printed is an error, whatever the result has.
func TestTableThatFails(t *testing.T) {
	r := &Result{Model: "m", Ubatch: 64, Samples: []Sample{{Method: "less", Context: 512, Phase: Decode, Tokens: 64, Seconds: 1}}}
	assert.ErrorIs(t, r.Table(fullDisk{}), syscall.ENOSPC)
	r.Samples[0].Phases = map[string]float64{"slots": 1}
	assert.ErrorIs(t, r.Table(fullDisk{}), syscall.ENOSPC)
}
