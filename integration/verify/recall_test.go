package verify

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/pieces"
)

// With answers put into its store: kinds that the full cache fails at are called weak, the others are counted by depth.
func TestRecallReport(t *testing.T) {
	s, err := pieces.Open(t.TempDir())
	require.NoError(t, err)
	defer s.Close()
	v := &verifier{plan: Plan{Recall: RecallKinds()}, store: s, tasks: map[int][]task{}}
	g := &group{context: 100, ubatch: 4, texts: true, full: &run{}}
	less := &run{few: false, adapter: nil}
	less.config.Context = 1 // another run than full
	g.rows = []*row{{Row: Row{Method: Full}, run: g.full}, {Row: Row{Method: LESS, Policy: "h2o", Budget: 10}, run: less}}
	length := int(recallLengths[2]*100) - answerTokens
	for _, kind := range []string{Passkey, Needle} {
		for _, d := range recallDepths {
			v.tasks[100] = append(v.tasks[100], task{kind: kind, length: length, depth: d, answer: "12345"})
		}
	}
	right, wrong := " is 12345.", "12"
	require.NoError(t, s.Save(v.recallKey(g, g.full), answers{right, right, right, right, wrong, wrong, wrong, right, right, wrong}))
	require.NoError(t, s.Save(v.recallKey(g, less), answers{wrong, wrong, right, wrong, right, "", "", "", "", ""}))
	all := v.recallReport(g)
	require.Len(t, all, 2)
	assert.Equal(t, Passkey, all[0].Kind)
	assert.False(t, all[0].Weak)
	assert.Equal(t, []int{5, 4}, []int{all[0].Tasks, all[0].Full})
	for i, want := range []int{1, 1, 1, 1, 0} {
		assert.Equal(t, Depth{recallDepths[i], 1, want}, all[0].FullByDepth[i])
	}
	require.Len(t, all[0].Methods, 1)
	m := all[0].Methods[0]
	assert.Equal(t, 2, m.Right)
	for i, want := range []int{0, 0, 1, 0, 1} {
		assert.Equal(t, Depth{recallDepths[i], 1, want}, m.ByDepth[i])
	}
	assert.True(t, all[1].Weak, "two of five")
	assert.Empty(t, all[1].Methods)
}
