package integration

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// In a runtime with OpenBLAS (make test-devices DEVICES=blas), which computes the matrix products of prompts: with LESS off the bits are
// the unmodified runtime's with OpenBLAS, and where nothing is evicted so are the logits, to rounding.
func TestBLAS(t *testing.T) {
	if os.Getenv("LESSKV_TEST_DEVICES") != "blas" {
		t.Skip("no OpenBLAS: make test-devices DEVICES=blas")
	}
	for name, path := range deviceModels(t, tinymodels.Supported(), gguf.F32) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			typ, most := "f32", 1e-3
			if name == "gopher-5m" {
				typ, most = "f16", logitBoundF16
			}
			c := worker.Config{Model: path, Context: 256, Ubatch: 64, TypeK: typ, TypeV: typ}
			w := open(t, worker.Unmodified, c)
			info, err := w.Info()
			require.NoError(t, err)
			tokens := randomTokens(240, info.Vocab)
			want := chatter.decode(t, w, tokens)
			w = open(t, worker.Patched, c)
			sameBits(t, want, chatter.decode(t, w, tokens))

			c.LESS = &worker.LESS{Budget: 256, TypeK: typ, TypeV: typ}
			w = open(t, worker.Patched, c)
			s, err := w.Splits(64)
			require.NoError(t, err)
			require.Greater(t, s.Parts, 1, "OpenBLAS computes nothing")
			got := compare(t, want, chatter.decode(t, w, tokens))
			assert.Less(t, got.max, most)
			assert.Less(t, got.kl, 1e-5)
		})
	}
}
