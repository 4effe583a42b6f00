package verify_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// A share of the full cache's bytes is the same where it is a budget and where the best is looked for, and counts sliding windows as apps
// have them.
func TestShareOfTheFullCache(t *testing.T) {
	t.Parallel()
	tiny, err := tinymodels.Find("gemma2")
	require.NoError(t, err)
	p := small(t)
	p.Model, err = tiny.WriteIn(t.TempDir(), gguf.F32, 1)
	require.NoError(t, err)
	p.Adapters, p.Generate, p.Windows, p.Contexts, p.SlotType = nil, -1, 1, []int{300}, "f16" // a quarter holds the windows of 32, and 90 slots
	p.Methods, p.Policies, p.Budgets = []string{verify.Sparse}, []string{"lambda"}, []verify.Budget{{Full: 1. / 4}}
	budget, err := verify.Run(t.Context(), p)
	require.NoError(t, err)
	p.Budgets, p.Methods, p.SlotType = nil, nil, ""
	p.Bytes, p.SlotTypes = []verify.Budget{{Full: 1. / 4}}, []string{"f16"}
	best, err := verify.Run(t.Context(), p)
	require.NoError(t, err)

	m, err := weights.ReadModel(p.Model)
	require.NoError(t, err)
	full, err := memory.Full(m, 300, gguf.F16)
	require.NoError(t, err)
	require.Len(t, best.Best, 1)
	assert.EqualValues(t, full/4, best.Best[0].Within)
	require.Len(t, best.Best[0].Rows, 1)
	i := slices.IndexFunc(budget.Rows, func(r *verify.Row) bool { return r.Method == verify.Sparse })
	require.GreaterOrEqual(t, i, 0)
	assert.Equal(t, budget.Rows[i].Slots, best.Best[0].Rows[0].Slots)
	assert.Less(t, budget.Rows[i].Slots, 300)
}

// Under so many bytes every candidate takes no more than those, and as many slots as fit; they are sorted by what was measured.
func TestBytes(t *testing.T) {
	p := small(t)
	p.Generate, p.Adapters = -1, []string{data + "gopher-5m.peak-41.lesskv.gguf"} // the small one
	p.Budgets, p.Bytes = nil, []verify.Budget{{Full: 1. / 4}, {Bytes: 90 << 10}}
	p.SlotTypes, p.Policies, p.Methods = []string{"f16", "q4_0,q8_0"}, []string{"lambda", "peak"}, nil
	p.Recall, p.Tasks = []string{verify.Needle}, 2
	r, err := verify.Run(t.Context(), p)
	require.NoError(t, err)
	require.Len(t, r.Best, 2)
	require.NotEmpty(t, r.Recall)
	assert.Equal(t, 10, r.Recall[0].Tasks, "two at each of five depths")
	full := r.Rows[0].Bytes.Total
	for i, b := range r.Best {
		assert.Equal(t, []int64{full / 4, 90 << 10}[i], b.Within)
		require.Len(t, b.Rows, 6, "two types, peak with and without the adapter, lambda without")
		assert.True(t, slices.IsSortedFunc(b.Rows, func(x, y verify.BestMeasure) int {
			if x.KL.Value < y.KL.Value {
				return -1
			}
			return 1
		}))
		for _, x := range b.Rows {
			slot := map[string]int64{"f16": 264, "q4_0,q8_0": 112}[x.Types] * 12
			assert.LessOrEqual(t, x.Bytes, b.Within, x)
			assert.Greater(t, x.Bytes+slot, b.Within, "one slot more in every head does not fit: %v", x)
		}
	}
	for _, c := range r.Checks {
		assert.True(t, c.OK, c)
	}
	for name, wrong := range map[string]func(*verify.Plan){
		"tokens": func(p *verify.Plan) { p.Bytes = []verify.Budget{verify.Tokens(41)} },
		"types":  func(p *verify.Plan) { p.SlotTypes = []string{"q5_0"} },
		"none":   func(p *verify.Plan) { p.Bytes = []verify.Budget{{Bytes: 100}} },
		"bytes":  func(p *verify.Plan) { p.Bytes, p.Budgets = nil, []verify.Budget{{Bytes: 100}} },
	} {
		q := p
		wrong(&q)
		_, err := verify.Run(t.Context(), q)
		assert.ErrorIs(t, err, verify.ErrPlan, name)
	}
}
