package worker

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Types are read as they are written: those of most layers, and then the others.
func TestSlotTypes(t *testing.T) {
	for text, want := range map[string]struct{ k, v, text string }{
		"f16":                             {"f16", "f16", "f16"},
		"q4_0,q8_0":                       {"q4_0", "q8_0", "q4_0,q8_0"},
		"q8_0,q8_0":                       {"q8_0", "q8_0", "q8_0"},
		"q8_0,0.k=q4_0,5.v=q4_0":          {"q8_0,0=q4_0", "q8_0,5=q4_0", "q8_0,0.k=q4_0,5.v=q4_0"},
		"q8_0,f16,1=q4_0,1.v=f32":         {"q8_0,1=q4_0", "f16,1=q4_0,1=f32", "q8_0,f16,1.k=q4_0,1.v=f32"},
		"f32,1-2=q8_0,4.k=q8_0":           {"f32,1=q8_0,2=q8_0,4=q8_0", "f32,1=q8_0,2=q8_0", "f32,1=q8_0,2=q8_0,4.k=q8_0"},
		"q8_0,0=q8_0,1-3.v=f16,0-5.k=f16": {"q8_0,0=q8_0,0=f16,1=f16,2=f16,3=f16,4=f16,5=f16", "q8_0,0=q8_0,1=f16,2=f16,3=f16", "f16,0.v=q8_0,4.v=q8_0,5.v=q8_0"},
	} {
		k, v, err := SlotTypes(text)
		require.NoError(t, err, text)
		assert.Equal(t, []string{want.k, want.v}, []string{k, v}, text)
		all, err := LayerTypes(k, v, 6)
		require.NoError(t, err, text)
		require.Len(t, all, 6)
		assert.Equal(t, want.text, FormatTypes(all), text)
		k, v, err = SlotTypes(want.text)
		require.NoError(t, err, text)
		again, err := LayerTypes(k, v, 6)
		require.NoError(t, err, text)
		assert.Equal(t, all, again, text)
	}
	all, err := LayerTypes("q8_0,2=q4_0", "f16", 3)
	require.NoError(t, err)
	assert.Equal(t, []weights.SlotTypes{{Key: gguf.Q8_0, Value: gguf.F16}, {Key: gguf.Q8_0, Value: gguf.F16}, {Key: gguf.Q4_0, Value: gguf.F16}}, all)
	_, err = LayerTypes("f16,3=q4_0", "f16", 3)
	require.ErrorContains(t, err, "layer 3: the model has 3")
	for _, text := range []string{"", "q5_0", "f16,", "f16,f16,f16", "0=f16", "f16,0", "f16,0=", "f16,=f16", "f16,x=f16", "f16,-1=f16", "f16,2-1=f16", "f16,0.k.v=f16", "f16,0.v.k=f16", "f16,0=q5_0", "f16,0=f16,f32", "f16,70000=f16"} {
		_, _, err := SlotTypes(text)
		assert.Error(t, err, "%q", text)
	}
	_, _, err = GGUFTypes("f16,0=q8_0")
	assert.ErrorContains(t, err, "the same in all layers")
}
