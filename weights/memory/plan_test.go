package memory

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// The parts of a row make up its process, and what is advised fits, at the longest context at which anything does.
func TestPlan(t *testing.T) {
	m, err := weights.ReadModel("../../integration/testdata/gopher-5m.gguf")
	require.NoError(t, err)
	a, err := weights.Read("../../integration/testdata/gopher-5m.peak-102.lesskv.gguf")
	require.NoError(t, err)
	p := &Plan{Model: m, Weights: 10 << 20, Checkpoints: 2, Ubatch: 512, Threads: 2, Bound: 60 << 20, Cache: Cache{Pinned: 1, Types: f16(m), Adapter: a}}
	budgets := []Budget{{}, {Share: .05}, {Tokens: 1024}}
	for _, context := range []int{2048, 32768} {
		require.NoError(t, p.AddFull(context, gguf.F16))
		require.NoError(t, p.AddFull(context, gguf.Q4_0))
		for _, b := range budgets {
			require.NoError(t, p.AddLESS(context, b))
		}
	}
	require.ErrorIs(t, p.AddLESS(2048, Budget{Bytes: 1}), ErrBudget)
	require.Len(t, p.Rows, 10)
	for _, r := range p.Rows {
		x := r.Process
		assert.Equal(t, x.Weights+x.Kernels+x.Slots+x.State+x.Checkpoints+x.Scratch+x.Compute, x.Total())
		if r.Full {
			assert.Zero(t, x.State+x.Kernels+x.Checkpoints+x.Scratch)
			continue
		}
		c := p.Cache
		c.Context, c.Budget = r.Context, r.Budget
		bytes, err := Less(m, c)
		require.NoError(t, err)
		assert.Equal(t, []uint64{bytes.Slots, bytes.State, bytes.Kernels}, []uint64{x.Slots, x.State, x.Kernels})
		assert.EqualValues(t, 6*2*8*65*4, x.State)
	}
	best, ok := p.Best()
	require.True(t, ok)
	assert.Equal(t, Row{Context: 32768, Budget: Budget{}, Slots: 102, Process: best.Process}, best, "by default, which the adapter was trained for")
	less, ok := p.Below(32768, 1<<40)
	require.True(t, ok)
	assert.Equal(t, best, less)

	p.Rows = append(p.Rows[:2], p.Rows[3:]...) // no default at the short context
	_, ok = p.Default(2048)
	assert.False(t, ok)
	less, ok = p.Below(2048, 1<<40)
	require.True(t, ok)
	assert.Equal(t, 1024, less.Slots)
	p.Bound = 35 << 20
	p.Rows = p.Rows[:4]
	best, _ = p.Best()
	assert.True(t, best.Full && best.Type == gguf.F16)
	p.Bound = 1 << 20
	_, ok = p.Best()
	assert.False(t, ok)
}
