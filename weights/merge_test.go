package weights

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMerge(t *testing.T) {
	whole, a, b := random(), random(), random()
	a.Kernels[1], b.Kernels[0], b.Kernels[2] = Kernels{}, Kernels{}, Kernels{}
	merged, err := Merge(b, a)
	require.NoError(t, err)
	assert.Equal(t, whole, merged)
	assert.True(t, a.Kernels[1].Empty(), "what was merged is unchanged")

	_, err = Merge(a, random())
	assert.ErrorIs(t, err, ErrMerge)
	assert.ErrorContains(t, err, "layer 0")
	b.Trained.Heavy++
	_, err = Merge(a, b)
	assert.ErrorIs(t, err, ErrMerge)
	assert.ErrorContains(t, err, "adapter 2: training")
	_, err = Merge()
	assert.ErrorIs(t, err, ErrMerge)
}
