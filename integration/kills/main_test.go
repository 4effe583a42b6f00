package main

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lesskv/lesskv/patches/usage"
)

// A wrong command line is one, by the exit status too, before anything is killed.
func TestCheck(t *testing.T) {
	assert.NoError(t, check(1, victims))
	assert.Equal(t, 2, usage.Status(check(0, victims)))
	assert.Equal(t, 2, usage.Status(check(1, []string{"train", "everything"})))
}
