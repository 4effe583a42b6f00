package main

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The page's numbers are those that the command has measured.
func TestPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/fidelity.json")
	require.NoError(t, err)
	var r Report
	require.NoError(t, json.Unmarshal(data, &r))
	page, err := os.ReadFile("../../docs/fidelity.md")
	require.NoError(t, err)
	assert.Equal(t, string(page), string(r.page()), "go run ./integration/fidelity -page writes it anew")
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			assert.LessOrEqual(t, x.Bytes, s.KiB<<10, "everything counted")
		}
	}
}
