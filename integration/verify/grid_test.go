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
