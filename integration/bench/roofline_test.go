package bench

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/gguf"
)

// What a token reads of a file: the output's matrix but not a second one of embeddings, and of the experts those that it uses.
func TestTokenWeights(t *testing.T) {
	tensor := func(name string, dims ...uint64) gguf.Tensor {
		n := uint64(1)
		for _, d := range dims {
			n *= d
		}
		return gguf.Tensor{Name: name, Type: gguf.F32, Dims: dims, Values: make([]float32, n)}
	}
	keys := []gguf.KeyValue{{Key: "general.architecture", Value: "x"}, {Key: "x.expert_count", Value: uint32(4)}, {Key: "x.expert_used_count", Value: uint32(1)}}
	tensors := []gguf.Tensor{tensor("token_embd.weight", 8, 100), tensor("blk.0.ffn_up_exps.weight", 8, 16, 4), tensor("blk.0.attn_q.weight", 8, 8)}
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, gguf.WriteFile(path, keys, tensors))
	n, err := tokenWeights(path)
	require.NoError(t, err)
	assert.EqualValues(t, 4*(800+8*16+64), n, "the embeddings are the output's too")

	require.NoError(t, gguf.WriteFile(path, keys[:1], append(tensors, tensor("output.weight", 8, 100))))
	n, err = tokenWeights(path)
	require.NoError(t, err)
	assert.EqualValues(t, 4*(800+8*16*4+64), n)
}

func TestReach(t *testing.T) {
	r := &Result{Ubatch: 64, Threads: 2, Weights: 90e6, Bandwidth: []float64{1e9, 2e9, 1e9}, Memory: []Memory{{Method: "less", Context: 64, Read: 10e6}}}
	for round, seconds := range []float64{0.2, 0.2, 0.1} {
		r.Samples = append(r.Samples, Sample{Method: "less", Context: 64, Phase: Decode, Round: round, Tokens: 1, Seconds: seconds})
	}
	share, read := r.reach("less", 64)
	assert.Equal(t, 100e6, read)
	assert.InDeltaSlice(t, []float64{0.25, 0.5, 1}, []float64{share.Min, share.Median, share.Max}, 1e-12)
	var text bytes.Buffer
	require.NoError(t, r.Table(&text))
	assert.Contains(t, text.String(), "weights (90) and cache; GB/s; share of what 2 threads read from memory, 1.0 GB/s (1.0-2.0)")
	assert.Contains(t, text.String(), "less  100, 0.5, 50%")
}

// A buffer need not divide evenly, nor be larger than the number of threads.
func TestReadSpeed(t *testing.T) {
	assert.Positive(t, readSpeed(make([]uint64, 1<<10+5), 3, time.Millisecond))
	assert.Zero(t, readSpeed(make([]uint64, 2), 3, 0))
}
