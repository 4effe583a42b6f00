package integration

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	cgo "github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/worker"
)

// The kernels' types are ggml's: what ggml rounds to a type for the slots, and reads back, is what the kernels round and read
// themselves. Keys of the first layer do not depend on what the slots hold; in heads of 32 they are not rotated.
func TestTypesAreThoseOfGgml(t *testing.T) {
	t.Parallel()
	model := tiny(t, "qwen3")
	tokens := randomTokens(320, 384)
	keys := func(typ string) (all []float32) {
		less := &worker.LESS{Policy: "lambda", Budget: 64, TypeK: typ}
		w := open(t, worker.Patched, worker.Config{Model: model, Context: 512, Ubatch: 32, Capture: true, LESS: less})
		require.NoError(t, w.Capture(0))
		_, err := w.Decode(0, 0, tokens, worker.None)
		require.NoError(t, err)
		seen, err := w.Captured()
		require.NoError(t, err)
		for _, a := range seen {
			all = append(all, a.K...)
		}
		require.Len(t, all, 320*2*32)
		return all
	}
	exact := keys("f32")
	for _, typ := range []cgo.Type{cgo.F16, cgo.Q80, cgo.Q40} {
		name := map[cgo.Type]string{cgo.F16: "f16", cgo.Q80: "q8_0", cgo.Q40: "q4_0"}[typ]
		theirs, ours := keys(name), typ.ToF32(typ.FromF32(exact), len(exact))
		var differ int
		for i := range ours {
			if ours[i] != theirs[i] {
				differ++
			}
		}
		assert.LessOrEqual(t, differ, len(ours)/10000, "%s: elements that differ, for a sum that is nearly a tie may be fused", name)
		t.Logf("%s: %d of %d elements differ", name, differ, len(ours))
	}
}
