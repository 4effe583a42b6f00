package verify_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/verify"
)

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
