package verify_test

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/verify"
)

const data = "../testdata/"

// small is a plan of seconds.
func small(t *testing.T) verify.Plan {
	t.Helper()
	text, err := os.ReadFile(data + "heldout.txt")
	require.NoError(t, err)
	return verify.Plan{
		Model: data + "gopher-5m.gguf", Adapters: []string{data + "gopher-5m.peak-41.lesskv.gguf"},
		Text: string(text[:20000]), Windows: 2, Contexts: []int{192}, Budgets: []verify.Budget{verify.Tokens(41)}, Policies: []string{"peak"},
		Generate: 8, Recall: []string{}, Samples: 100, Block: 16, Buckets: 4, Threads: 2,
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	r, err := verify.Run(context.Background(), small(t))
	require.NoError(t, err)
	assert.Empty(t, r.Failed())

	// A build beside itself: zero, not nearly zero, on every measure, generations included.
	off := r.Row(192, 32, 41, "", verify.Off)
	require.NotNil(t, off)
	zero, one := verify.Estimate{}, verify.Estimate{Value: 1, Low: 1, High: 1}
	assert.Equal(t, zero, off.KL)
	assert.Equal(t, zero, off.KLP99)
	assert.Zero(t, off.KLMax)
	assert.Equal(t, zero, off.Increase)
	assert.Equal(t, off.FullPerplexity, off.Perplexity)
	assert.Equal(t, one, off.Top1)
	assert.Equal(t, 2*192, off.Positions)
	assert.Equal(t, 2, off.Generation.Same)
	assert.Equal(t, one, off.Generation.RougeL)

	for _, row := range r.Measured() {
		assert.Empty(t, row.Fault, row.Name())
		assert.Equal(t, 41+32, row.From)
		assert.Equal(t, 2*(192-41-32), row.Positions)
		if row.Method != verify.Full && row.Method != verify.F32 {
			assert.Greater(t, row.KL.Value, 0.0, row.Name())
			assert.Less(t, row.KL.Low, row.KL.High)
			assert.GreaterOrEqual(t, row.KLMax, row.KLP99.Value)
		}
		assert.Len(t, row.Buckets, 4)
	}

	// Bytes by the formulas of algorithm.md: 6 layers, 2 heads of 64, f16; rank 8, hidden 16, f32 kernels.
	const full, slot, state, kernels = 6 * 2 * 256 * 64 * 2 * 2, 6 * 2 * (64*2*2 + 8), 6 * 2 * 8 * 65 * 4, 6 * 4 * (4*(64*16+16*8) + 2*(64*16+16*8+8*8))
	for _, want := range []struct {
		policy, method string
		bytes          int64
	}{
		{"", verify.Full, full}, {"", verify.F32, 2 * full}, {"", verify.Q8, full * 17 / 32}, {"", verify.Q4, full * 9 / 32},
		{"", verify.Window, 41 * slot}, {"peak", verify.Sparse, 41 * slot}, {"peak", verify.LESS, 41*slot + state + kernels},
		{"peak", verify.Plus, (41 + state/slot) * slot}, {"peak", verify.PlusPlus, (41 + (state+kernels)/slot) * slot},
	} {
		row := r.Row(192, 32, 41, want.policy, want.method)
		require.NotNil(t, row, want.method)
		assert.Equal(t, want.bytes, row.Bytes.Total, want.method)
	}

	less := r.Row(192, 32, 41, "peak", verify.LESS)
	sparse, plus := r.Row(192, 32, 41, "peak", verify.Sparse), r.Row(192, 32, 41, "peak", verify.Plus)
	assert.InDelta(t, less.KL.Value-plus.KL.Value, less.Against[verify.Plus].KL.Value, 1e-12)
	assert.InDelta(t, 1-less.KL.Value/sparse.KL.Value, less.ClosedKL.Value, 1e-12)
	assert.Equal(t, "gopher-5m.peak-41.lesskv.gguf", less.Adapter)
	require.Len(t, r.Profiles, 1)
	for _, l := range r.Profiles[0].Layers {
		assert.InDelta(t, 41.0/160, l.Kept, 1e-9)
		assert.Greater(t, l.Attention, l.Kept, "what is kept is what is attended to")
		assert.LessOrEqual(t, l.Attention, 1.0)
	}
}
