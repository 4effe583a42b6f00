package integration

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/greedy"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// What go-llama.cpp's calls compute with LESS off, against loops over the C API of the unmodified tree.

const code = "func (s *Server) ListenAndServe() error {"

// TestMain keeps llama.cpp's warnings about tiny models out of the tests' output.
func TestMain(m *testing.M) {
	lesskv.SetLogLevel(slog.LevelError)
	os.Exit(m.Run())
}

// load loads a model with the unmodified cache, in f16.
func load(t *testing.T, path string, opts ...llama.ModelOption) *llama.LLama {
	t.Helper()
	model, err := llama.New(path, append([]llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, lesskv.Disable()}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(model.Free)
	return model
}

// unmodified opens the same in the unmodified tree. The binding leaves flash attention to llama.cpp, which uses it on a CPU.
func unmodified(t *testing.T, c worker.Config) (*worker.Worker, *greedy.Vocabulary) {
	t.Helper()
	if c.Context == 0 {
		c.Context = 512
	}
	c.Batch, c.Ubatch, c.FlashAttention = 512, 512, true
	v, err := greedy.ReadVocabulary(c.Model)
	require.NoError(t, err)
	return open(t, worker.Unmodified, c), v
}

// follows fails unless a greedy text after code is the unmodified runtime's, ties aside.
func follows(t *testing.T, c worker.Config, keep int, text []string) {
	t.Helper()
	w, v := unmodified(t, c)
	context := greedy.Context{Worker: w, Size: c.Context, Keep: keep}
	logits, err := context.Begin(code)
	require.NoError(t, err)
	ties, err := v.Follow(text, logits, context.Next)
	require.NoError(t, err)
	t.Logf("%d tokens, %d of them tied with another", len(text), ties)
}

// generate completes a text greedily and returns the tokens' pieces.
func generate(t *testing.T, model *llama.LLama, text string, n int, opts ...llama.PredictOption) (pieces []string) {
	t.Helper()
	opts = append([]llama.PredictOption{llama.SetThreads(1), llama.SetTemperature(0), llama.SetPenalty(1), llama.SetTokens(n), llama.IgnoreEOS,
		llama.SetTokenCallback(func(s string) bool { pieces = append(pieces, s); return true })}, opts...)
	_, err := model.Predict(text, opts...)
	require.NoError(t, err)
	return pieces
}

func TestGreedyIsTheUnmodifiedRuntimes(t *testing.T) {
	const n = 200
	paths := map[string]string{"gopher-5m": gopher}
	for _, m := range tinymodels.Supported() {
		paths[m.Name] = write(t, m, gguf.F16)
	}
	require.GreaterOrEqual(t, len(paths), 6)
	for name, path := range paths {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := generate(t, load(t, path), code, n)
			require.Len(t, got, n)
			follows(t, worker.Config{Model: path}, 0, got)
		})
	}
}

// A full context keeps the first tokens, drops the older half of the rest, and what stays moves up.
func TestContextMakesRoom(t *testing.T) {
	const context, keep, n = 256, 10, 500
	got := generate(t, load(t, gopher, llama.SetContext(context)), code, n, llama.SetNKeep(keep))
	require.Len(t, got, n)
	require.Greater(t, n, context+(context-keep)/2, "twice")
	follows(t, worker.Config{Model: gopher, Context: context}, keep, got)
}

// Turned keys are those that an evaluation of what stays would have made, in each layer. They are so only where a layer's keys
// depend on nothing but their own token: here all other layers add nothing.
func TestContextMakesRoomByRotation(t *testing.T) {
	for _, name := range []string{"llama", "qwen3", "gemma2", "gemma3", "phi3", "falcon"} {
		m, err := tinymodels.Find(name)
		require.NoError(t, err)
		f, err := gguf.Open(write(t, m, gguf.F32))
		require.NoError(t, err)
		defer f.Close()
		layers, err := gguf.Get[uint32](f, m.Architecture+".block_count")
		require.NoError(t, err)
		for alone := range layers {
			t.Run(fmt.Sprint(name, " layer ", alone), func(t *testing.T) {
				silent := map[string][]float32{}
				for i := range layers {
					for _, tensor := range []string{"attn_output", "ffn_down"} {
						info, ok := f.Tensor(fmt.Sprintf("blk.%d.%s.weight", i, tensor))
						require.True(t, ok)
						if i != alone {
							silent[info.Name] = make([]float32, info.Elements())
						}
					}
				}
				path := filepath.Join(t.TempDir(), "model.gguf")
				require.NoError(t, m.WriteChanged(path, gguf.F32, 1, silent))
				assert.Less(t, turned(t, path), 0.01, "logits")
				followsAnew(t, path, "f32")
			})
		}
	}
}

// turned returns by how much logits behind turned keys differ from those behind evaluated ones, at most. Logits reach 8 to 18.
func turned(t *testing.T, path string) (most float64) {
	t.Helper()
	const context, keep, drop, next = 256, 10, 123, 300
	w, _ := unmodified(t, worker.Config{Model: path, Context: context, TypeK: "f32", TypeV: "f32"})
	tokens, err := w.Tokenize(strings.Repeat(code+" y = a*x + b\n", 10), true)
	require.NoError(t, err)
	tokens = tokens[:context]
	_, err = w.Decode(0, 0, tokens, worker.Last)
	require.NoError(t, err)
	require.NoError(t, w.SeqRemove(0, keep, keep+drop))
	require.NoError(t, w.SeqAdd(0, keep+drop, worker.End, -drop))
	got, err := w.Decode(0, context-drop, []int32{next}, worker.Last)
	require.NoError(t, err)

	require.NoError(t, w.Clear())
	_, err = w.Decode(0, 0, slices.Delete(tokens, keep, keep+drop), worker.Last)
	require.NoError(t, err)
	want, err := w.Decode(0, context-drop, []int32{next}, worker.Last)
	require.NoError(t, err)
	for i, x := range want.Row(0) {
		most = max(most, math.Abs(float64(got.Row(0)[i]-x)))
	}
	return most
}

// Where a position is in the keys for good (gpt2), what stays is evaluated anew.
func TestContextMakesRoomWithoutRotation(t *testing.T) {
	followsAnew(t, tiny(t, "gpt2"), "f16")
}

// followsAnew generates past the end of the context, and follows that in a loop which evaluates what stays anew.
func followsAnew(t *testing.T, path, cache string) {
	t.Helper()
	const context, keep, n = 256, 10, 300
	model := load(t, path, llama.SetContext(context), func(o *llama.ModelOptions) { o.F16Memory = cache == "f16" })
	got := generate(t, model, code, n, llama.SetNKeep(keep))
	require.Len(t, got, n)

	w, v := unmodified(t, worker.Config{Model: path, Context: context, TypeK: cache, TypeV: cache})
	tokens, err := w.Tokenize(code, true)
	require.NoError(t, err)
	out, err := w.Decode(0, 0, tokens, worker.Last)
	require.NoError(t, err)
	_, err = v.Follow(got, out.Row(0), func(token int32) ([]float32, error) {
		if len(tokens) == context {
			tokens = slices.Delete(tokens, keep, keep+(context-keep)/2)
			require.NoError(t, w.Clear())
			_, err := w.Decode(0, 0, tokens, worker.Last)
			require.NoError(t, err)
		}
		out, err := w.Decode(0, len(tokens), []int32{token}, worker.Last)
		require.NoError(t, err)
		tokens = append(tokens, token)
		return out.Row(0), nil
	})
	require.NoError(t, err)
}

// Classifier-free guidance is what its formula says, over two texts. Each has a context of its own, which makes room on its own:
// the text keeps the tokens that it is told to, the guide its prompt.
func TestGuidance(t *testing.T) {
	const context, keep, n = 256, 10, 400
	const negative, scale = "// Deprecated: do not use.", 3
	for name, path := range map[string]string{"gopher-5m": gopher, "llama": tiny(t, "llama")} {
		t.Run(name, func(t *testing.T) {
			model := load(t, path, llama.SetContext(context))
			got := generate(t, model, code, n, llama.SetNegativePrompt(negative), llama.SetNegativePromptScale(scale), llama.SetNKeep(keep))
			assert.NotEqual(t, generate(t, model, code, n), got)
			assert.Equal(t, generate(t, model, code, n), generate(t, model, code, n, llama.SetNegativePrompt(negative), llama.SetNegativePromptScale(1)), "1 is off")

			w, v := unmodified(t, worker.Config{Model: path, Context: context})
			text := greedy.Context{Worker: w, Size: context, Keep: keep}
			w, _ = unmodified(t, worker.Config{Model: path, Context: context})
			guide := greedy.Context{Worker: w, Size: context}
			a, err := text.Begin(code)
			require.NoError(t, err)
			b, err := guide.Begin(negative)
			require.NoError(t, err)
			guide.Keep = guide.Tokens()
			mix := func(a, b []float32) []float32 {
				mixed := make([]float32, len(a))
				_, na := distance.LogSum(a)
				_, nb := distance.LogSum(b)
				for j := range mixed {
					la, lb := float64(a[j])-na, float64(b[j])-nb
					mixed[j] = float32(lb + scale*(la-lb))
				}
				return mixed
			}
			require.Len(t, got, n)
			_, err = v.Follow(got, mix(a, b), func(token int32) ([]float32, error) {
				a, err := text.Next(token)
				require.NoError(t, err)
				b, err := guide.Next(token)
				require.NoError(t, err)
				return mix(a, b), nil
			})
			require.NoError(t, err)
		})
	}
}

// The last token's hidden state of a model that generates, the pooled one of a model that embeds.
func TestEmbeddings(t *testing.T) {
	for _, name := range []string{"gopher-5m", "qwen3", "gemma3", "bert"} {
		t.Run(name, func(t *testing.T) {
			path := gopher
			if name != "gopher-5m" {
				path = tiny(t, name)
			}
			model := load(t, path, llama.EnableEmbeddings)
			got, err := model.Embeddings(code, llama.SetThreads(1))
			require.NoError(t, err)

			w := open(t, worker.Unmodified, worker.Config{Model: path, Context: 512, Batch: 512, FlashAttention: true, Embeddings: true})
			tokens, err := w.Tokenize(code, true)
			require.NoError(t, err)
			last := len(tokens) - 1
			if name == "bert" {
				last = 0
			} else { // in the batches of the binding: flash attention computes one token in another way than many
				_, err = w.Decode(0, 0, tokens[:last], worker.All)
				require.NoError(t, err)
			}
			out, err := w.Decode(0, last, tokens[last:], worker.All)
			require.NoError(t, err)
			want := out.Row(out.Len() - 1)
			if name == "bert" {
				want = mean(out)
			}
			require.Len(t, got, len(want), "n_embd values")
			for i := range want {
				require.InDelta(t, want[i], got[i], 1e-3*norm(want), "value %d", i)
			}
			ids := make([]int, len(tokens))
			for i, id := range tokens {
				ids[i] = int(id)
			}
			again, err := model.TokenEmbeddings(ids, llama.SetThreads(1))
			require.NoError(t, err)
			assert.Equal(t, got, again, "the text's tokens")
			other, err := model.Embeddings("package main", llama.SetThreads(1))
			require.NoError(t, err)
			assert.NotEqual(t, got, other)
		})
	}
}

func mean(o *worker.Output) []float32 {
	sum := make([]float32, o.Width)
	for i := range o.Len() {
		for j, x := range o.Row(i) {
			sum[j] += x / float32(o.Len())
		}
	}
	return sum
}

func norm(v []float32) float64 {
	var sum float64
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum / float64(len(v)))
}
