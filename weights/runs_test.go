package weights

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Layers are read as they are written, and in any order.
func TestLayers(t *testing.T) {
	for text, layers := range map[string][]int{"0": {0}, "0-3,5": {0, 1, 2, 3, 5}, "1,3,7-8": {1, 3, 7, 8}, "510-511": {510, 511}} {
		assert.Equal(t, text, FormatLayers(layers))
		got, err := ParseLayers(text)
		require.NoError(t, err, text)
		assert.Equal(t, layers, got, text)
	}
	assert.Empty(t, FormatLayers(nil))
	got, err := ParseLayers("5, 2 - 3,0-2")
	require.NoError(t, err)
	assert.Equal(t, []int{0, 1, 2, 3, 5}, got)
	for text, want := range map[string]string{
		"": "want numbers", "x": "want numbers", "0,": "want numbers", "-1": "want numbers", "+1": "want numbers", "1-": "want numbers", "2-1": "want numbers",
		"1-2-3": "want numbers", "0-512": "layer 512: a model has 512 layers at most", "2000000000": "layer 2000000000", "99999999999999999999": "want numbers",
	} {
		_, err := ParseLayers(text)
		require.ErrorIs(t, err, ErrValue, text)
		assert.ErrorContains(t, err, want, text)
	}
}
