package weights

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/gguf"
)

// The layers of a description are runs of numbers, and two parts of one adapter may have any.
func TestDescribe(t *testing.T) {
	for want, layers := range map[string][]int{
		"made by lesskv train, layers 0 to 2, quickly":                       {0, 1, 2},
		"made by lesskv train, layers 5 to 5, quickly":                       {5},
		"made by lesskv train, layers 0 to 0 and 3 to 4 and 9 to 9, quickly": {0, 3, 4, 9},
	} {
		assert.Equal(t, want, Describe(layers, "quickly"))
		made := described.FindStringSubmatch(want)
		require.NotNil(t, made, want)
		assert.Equal(t, "quickly", made[1])
	}
}

func TestMerge(t *testing.T) {
	whole, a, b := random(), random(), random()
	a.Kernels[1], b.Kernels[0], b.Kernels[2] = Kernels{}, Kernels{}, Kernels{}
	merged, err := Merge(b, a)
	require.NoError(t, err)
	assert.Equal(t, whole, merged)
	assert.True(t, a.Kernels[1].Empty(), "what was merged is unchanged")

	sized(a, tiny, 4, 3, 0, 2)
	merged, err = Merge(b, a)
	require.NoError(t, err, "each layer has its own size")
	assert.Equal(t, []int{8, 4}, []int{merged.Kernels[1].Rank, merged.Kernels[2].Rank})

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

// Types of slots are those of the adapters that have some, which are the same.
func TestMergeSlotTypes(t *testing.T) {
	a, b := random(), New(tiny, trained)
	b.SlotTypes = SameSlotTypes(SlotTypes{gguf.F16, gguf.F32}, tiny.Layers)
	merged, err := Merge(a, b)
	require.NoError(t, err)
	assert.Equal(t, b.SlotTypes, merged.SlotTypes)
	a.SlotTypes = SameSlotTypes(SlotTypes{gguf.F32, gguf.F32}, tiny.Layers)
	_, err = Merge(a, b)
	require.ErrorIs(t, err, ErrMerge)
}
