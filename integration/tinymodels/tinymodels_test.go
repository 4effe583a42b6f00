package tinymodels

import (
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/gguf"
)

func TestWrite(t *testing.T) {
	names := map[string]bool{}
	for _, m := range All() {
		assert.False(t, names[m.Name], "%s is there twice", m.Name)
		names[m.Name] = true
		dir := t.TempDir()
		path, err := m.WriteIn(dir, gguf.F16, 7)
		require.NoError(t, err)
		f, err := gguf.Open(path)
		require.NoError(t, err)
		arch, err := gguf.Get[string](f, "general.architecture")
		require.NoError(t, err)
		assert.Equal(t, m.Architecture, arch)
		if m.Window > 0 {
			window, err := gguf.Get[uint32](f, arch+".attention.sliding_window")
			require.NoError(t, err)
			assert.EqualValues(t, m.Window, window, m.Name)
		}
		for _, info := range f.Tensors {
			values, err := f.Floats(info.Name)
			require.NoError(t, err)
			var squares float64
			for _, x := range values {
				squares += float64(x) * float64(x)
			}
			assert.NotZero(t, squares, "%s: %s", m.Name, info.Name)
			assert.False(t, math.IsInf(squares, 0) || math.IsNaN(squares), "%s: %s", m.Name, info.Name)
		}
		require.NoError(t, f.Close())
	}
}

func TestDeterministic(t *testing.T) {
	m, err := Find("llama")
	require.NoError(t, err)
	read := func(typ gguf.Type, seed uint64) string {
		path, err := m.WriteIn(t.TempDir(), typ, seed)
		require.NoError(t, err)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(b)
	}
	first := read(gguf.F16, 1)
	assert.True(t, first == read(gguf.F16, 1), "same seed, same bytes")
	assert.False(t, first == read(gguf.F16, 2), "another seed, other bytes")
	assert.False(t, first == read(gguf.F32, 1), "another type, other bytes")
}

func TestFind(t *testing.T) {
	_, err := Find("gpt-6")
	assert.EqualError(t, err, `no tiny model "gpt-6"`)
	assert.Len(t, All(), len(Supported())+len(Refused()))
	assert.NotEmpty(t, Supported())
	for _, m := range Refused() {
		assert.NotEmpty(t, m.Refused)
	}
}

func TestWriteFails(t *testing.T) {
	m, err := Find("gpt2")
	require.NoError(t, err)
	_, err = m.WriteIn(t.TempDir()+"/none", gguf.F32, 1)
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = m.WriteIn(t.TempDir(), gguf.BF16, 1)
	assert.ErrorIs(t, err, gguf.ErrType)
}
