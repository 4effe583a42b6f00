package train

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
)

type closer struct{ err error }

func (c closer) Close() error { return c.err }

// What closing says of a file that was written is not lost, nor what went wrong before it.
func TestCloseWritten(t *testing.T) {
	quota, before := errors.New("disk quota exceeded"), errors.New("before")
	var err error
	closeWritten(closer{quota}, &err)
	assert.Equal(t, quota, err)
	closeWritten(closer{before}, &err)
	assert.Equal(t, quota, err)
	err = nil
	closeWritten(closer{}, &err)
	assert.NoError(t, err)
}
