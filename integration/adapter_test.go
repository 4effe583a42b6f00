package integration

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	cgo "github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// A damaged adapter is refused or, where the damage is in a weight, loaded; the process never ends. A model is refused as
// an adapter, and so is an adapter of another model.
func TestDamagedAdapter(t *testing.T) {
	good, err := os.ReadFile("testdata/gopher-5m.h2o-41.lesskv.gguf")
	require.NoError(t, err)
	const header = 4096 // keys and tensors are described in the first few kilobytes
	w := start(t, worker.Patched)
	path := filepath.Join(t.TempDir(), "damaged.lesskv.gguf")

	load := func(model string, data []byte) error {
		require.NoError(t, os.WriteFile(path, data, 0o644))
		_, err := w.Open(worker.Config{Model: model, Context: 256, LESS: &worker.LESS{Policy: "h2o", Budget: 41, Adapter: path}})
		var refused *worker.Error
		if err != nil {
			require.ErrorAs(t, err, &refused, "the worker died")
			return err
		}
		require.NoError(t, w.CloseModel())
		return nil
	}
	require.NoError(t, load(gopher, good))

	r := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		n := r.IntN(len(good))
		assert.Error(t, load(gopher, good[:n]), "cut off after %d bytes", n)
	}
	for n := range 8 {
		assert.Error(t, load(gopher, good[:n*3]), "cut off after %d bytes", n*3)
	}
	// Wherever the damage is, the runtime takes what package weights takes, and no more.
	model, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	valid := func() error {
		a, err := weights.Read(path)
		var e *weights.Error
		if errors.As(err, &e) && e.Item == "key "+cgo.KeyBaseName {
			return nil // the runtime has no use for a name
		}
		if err != nil {
			return err
		}
		if _, err := weights.Check(a, model); err != nil {
			return err
		}
		_, err = weights.CheckUse(a, weights.Trained{Policy: "h2o", Heavy: 20, Recent: 21, Ubatch: 256, Context: 256})
		return err
	}
	refused := 0
	for range 160 {
		bad := append([]byte(nil), good...)
		at := r.IntN(header)
		copy(bad[at:], []byte{0xff, 0, byte(r.IntN(256)), 0xff}[:1+r.IntN(4)])
		err, want := load(gopher, bad), valid()
		if err != nil {
			refused++
		}
		assert.Equal(t, want == nil, err == nil, "changed at %d: the runtime says %v, package weights %v", at, err, want)
	}
	assert.Greater(t, refused, 80)
	assert.Less(t, refused, 160)

	whole, err := os.ReadFile(gopher)
	require.NoError(t, err)
	assert.ErrorContains(t, load(gopher, whole), "general.type")
	assert.ErrorContains(t, load(tiny(t, "llama"), good), "less.block_count")
	assert.ErrorContains(t, load(tiny(t, "qwen3"), good), "general.architecture")
}

// Where no policy is asked for it is the adapter's.
func TestPolicyOfTheAdapter(t *testing.T) {
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 256, LESS: &worker.LESS{Budget: 41, Adapter: adapterPath("peak-41")}})
	info, err := w.LESS()
	require.NoError(t, err)
	assert.Equal(t, "peak", info.Policy)
	assert.Equal(t, 10, info.Heavy)
}
