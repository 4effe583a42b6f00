package verify

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// A piece that was kept in another format has another name, so that it is measured again.
func TestPiecesOfAnotherFormat(t *testing.T) {
	v := &verifier{}
	name := v.key("window", 1)
	workFormat++
	t.Cleanup(func() { workFormat-- })
	assert.NotEqual(t, name, v.key("window", 1))
}
