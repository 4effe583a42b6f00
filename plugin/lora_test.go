package lesskv_test

import (
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// A LoRA adapter computes what the model does when the adapter is added to its weights.
func TestLoRA(t *testing.T) {
	const rank, alpha = 4, float32(8)
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	dir := t.TempDir()
	base, err := m.WriteIn(dir, gguf.F32, 1)
	require.NoError(t, err)
	merged := filepath.Join(dir, "merged.gguf")
	lora := filepath.Join(dir, "lora.gguf")

	pairs := []gguf.KeyValue{
		{Key: "general.type", Value: "adapter"}, {Key: "general.architecture", Value: "llama"},
		{Key: "adapter.type", Value: "lora"}, {Key: "adapter.lora.alpha", Value: alpha},
	}
	var tensors []gguf.Tensor
	changed := map[string][]float32{}
	f, err := gguf.Open(base)
	require.NoError(t, err)
	defer f.Close()
	for layer := range 4 {
		name := "blk." + strconv.Itoa(layer) + ".attn_q.weight"
		info, ok := f.Tensor(name)
		require.True(t, ok)
		in, out := int(info.Dims[0]), int(info.Dims[1])
		w, err := f.Floats(name)
		require.NoError(t, err)
		a, b := make([]float32, in*rank), make([]float32, rank*out)
		for i := range a {
			a[i] = float32(math.Sin(float64(i + layer)))
		}
		for i := range b {
			b[i] = .05 * float32(math.Cos(float64(3*i+layer)))
		}
		tensors = append(tensors,
			gguf.Tensor{Name: name + ".lora_a", Type: gguf.F32, Dims: []uint64{uint64(in), rank}, Values: a},
			gguf.Tensor{Name: name + ".lora_b", Type: gguf.F32, Dims: []uint64{rank, uint64(out)}, Values: b})
		for o := range out {
			for i := range in {
				var sum float32
				for r := range rank {
					sum += b[o*rank+r] * a[r*in+i]
				}
				w[o*in+i] += alpha / rank * sum
			}
		}
		changed[name] = w
	}
	require.NoError(t, gguf.WriteFile(lora, pairs, tensors))
	require.NoError(t, m.WriteChanged(merged, gguf.F32, 1, changed))

	lines := captureLog(t)
	var s lesskv.CacheStats // after the last text
	text := func(path string, opts ...llama.ModelOption) []string {
		model, err := llama.New(path, opts...)
		require.NoError(t, err)
		defer model.Free()
		tokens := pieces(func(opts ...llama.PredictOption) string {
			return predict(t, model, prompt, append(opts, llama.SetTokens(40))...)
		})
		s = stats(t, model)
		return tokens
	}
	want := worker.Config{Model: merged, Context: 512, TypeK: "f32", TypeV: "f32"}
	require.Error(t, follow(t, want, text(base), nil), "or else this tests nothing")
	require.NoError(t, follow(t, want, text(base, llama.SetLoraAdapter(lora)), nil))

	assert.NotContains(t, lines.String(), "LoRA")

	require.NoError(t, follow(t, want, text(base, llama.SetLoraAdapter(lora), sparse(512)), nil), "and with LESS")
	assert.Contains(t, lines.String(), "the LoRA adapter "+lora+" changes the model")
	assert.Equal(t, s.Layers[0].Seen, s.Layers[0].Kept)
	// Lambda has no scores, which rounding could tie.
	less := lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(48), Policy: lesskv.Lambda, Adapter: lesskv.NoAdapter})
	want.LESS = &worker.LESS{Policy: "lambda", Budget: 48}
	require.NoError(t, follow(t, want, text(base, llama.SetLoraAdapter(lora), less), nil), "which evicts")
	assert.EqualValues(t, 48, s.Layers[0].Kept)
	assert.Greater(t, s.Layers[0].Folded, int64(16))

	activated := filepath.Join(dir, "alora.gguf")
	require.NoError(t, gguf.WriteFile(activated, append(pairs, gguf.KeyValue{Key: "adapter.alora.invocation_tokens", Value: []uint32{5, 6}}), tensors))
	_, err = llama.New(base, llama.SetLoraAdapter(activated))
	assertSays(t, err, lesskv.ErrMissing, "aLoRA")
	assert.Equal(t, text(base, llama.SetLoraAdapter(lora)), text(base, llama.SetLoraAdapter(lora), llama.SetLoraBase(merged)))
	assert.Equal(t, 1, strings.Count(lines.String(), "the LoRA base "+merged+" is not used"))
	_, err = llama.New(file(t, testdata.Model), llama.SetLoraAdapter(lora))
	assert.ErrorIs(t, err, lesskv.ErrModel, "another model's")
	_, err = llama.New(base, llama.SetLoraAdapter(base))
	assert.ErrorIs(t, err, lesskv.ErrModel, "no adapter")
}
