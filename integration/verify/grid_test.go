package verify

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights"
)

// The report says how large the phi and psi of each layer are. An earlier one has the largest alone.
func TestAdapterInfo(t *testing.T) {
	m := &weights.Model{Geometry: weights.Geometry{Layers: 3, Heads: 2, HeadsKV: 1, KeyLength: 8, ValueLength: 8}}
	a := &adapter{weights.Random(m, 4, 3, weights.Trained{}, 1), "some/a.gguf"}
	a.Kernels[0] = weights.Random(m, 8, 3, weights.Trained{}, 1).Kernels[0]
	a.Kernels[2] = weights.Kernels{}
	data, err := json.Marshal(a.info())
	require.NoError(t, err)
	assert.Contains(t, string(data), `"rank":8,"hidden":3,"ranks":[8,4,0],"hiddens":[3,3,0]`)

	var earlier AdapterInfo
	require.NoError(t, json.Unmarshal([]byte(`{"file": "a.gguf", "rank": 8, "hidden": 3}`), &earlier))
	assert.Equal(t, AdapterInfo{File: "a.gguf", Rank: 8, Hidden: 3}, earlier)
}

// An adapter that is used as it was trained has no notes, also where the split of its budget was not the policy's own.
func TestAdapterNotes(t *testing.T) {
	m := &weights.Model{Geometry: weights.Geometry{Layers: 1, Heads: 1, HeadsKV: 1, KeyLength: 32, ValueLength: 32}}
	a := weights.Random(m, 2, 2, weights.Trained{Policy: "peak", Heavy: 40, Recent: 62, Context: 2048}, 1)
	v := &verifier{model: m, adapters: []*adapter{{a, "a.gguf"}}, plan: Plan{Methods: []string{LESS}, Policies: []string{"peak"}, SlotType: "q8_0", Budgets: []Budget{{Tokens: 102}, {Tokens: 204}}}}
	g := &group{context: 2048, ubatch: 32}
	require.NoError(t, v.fillGroup(g, false))
	notes := map[int][]string{}
	for _, r := range g.rows {
		if r.Method == LESS {
			notes[r.Budget] = r.AdapterNotes
		}
	}
	assert.Equal(t, map[int][]string{
		102: nil, 204: {"heavy budget of 51 tokens, the adapter was trained with 40", "recent budget of 153 tokens, the adapter was trained with 62"},
	}, notes)
}
