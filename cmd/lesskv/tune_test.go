//go:build cgo

package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tune"
)

// The last line says what is in the output: beside an allocation, the phi and psi that were named.
func TestTuneTable(t *testing.T) {
	for adapter, want := range map[string]string{
		"":             "o.gguf: the allocation, which weighs nothing in memory\n",
		"trained.gguf": "o.gguf: the allocation, and phi and psi of trained.gguf\n",
	} {
		o := tuneOptions{output: "o.gguf", Options: tune.Options{Adapter: adapter}}
		var out strings.Builder
		require.NoError(t, o.table(&out, &tune.Result{}))
		assert.Contains(t, out.String(), want)
	}
}
