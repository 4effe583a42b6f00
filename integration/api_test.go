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
func unmodified(t *testing.T, c worker.Config) (*worker.Worker, vocabulary) {
	t.Helper()
	if c.Context == 0 {
		c.Context = 512
	}
	c.Batch, c.Ubatch, c.FlashAttention = 512, 512, true
	return open(t, worker.Unmodified, c), readVocabulary(t, c.Model)
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

// A vocabulary is a SentencePiece one: each token's bytes, without what ends a text.
type vocabulary struct {
	pieces []string
	ends   map[int]bool
}

func readVocabulary(t *testing.T, path string) vocabulary {
	t.Helper()
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	tokens, err := gguf.GetArray[string](f, "tokenizer.ggml.tokens")
	require.NoError(t, err)
	types, err := gguf.GetArray[int32](f, "tokenizer.ggml.token_type")
	require.NoError(t, err)
	eos, err := gguf.Get[uint32](f, "tokenizer.ggml.eos_token_id")
	require.NoError(t, err)
	v := vocabulary{pieces: tokens, ends: map[int]bool{int(eos): true}}
	for i, s := range tokens {
		var b byte
		switch types[i] {
		case 2, 3: // unknown, control
			v.pieces[i] = ""
		case 6:
			_, err := fmt.Sscanf(s, "<0x%02X>", &b)
			require.NoError(t, err)
			v.pieces[i] = string([]byte{b})
			if b == 0 {
				v.pieces[i] = "" // a C string to the callback
			}
		default:
			v.pieces[i] = strings.ReplaceAll(s, "▁", " ")
		}
	}
	return v
}

// best returns the most likely token that does not end the text.
func (v vocabulary) best(logits []float32) int32 {
	best := -1
	for i, x := range logits {
		if !v.ends[i] && (best < 0 || x > logits[best]) {
			best = i
		}
	}
	return int32(best)
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

			w, vocab := unmodified(t, worker.Config{Model: path})
			tokens, err := w.Tokenize(code, true)
			require.NoError(t, err)
			out, err := w.Decode(0, 0, tokens, worker.Last)
			require.NoError(t, err)
			var want []string
			for pos := len(tokens); ; pos++ {
				token := vocab.best(out.Row(0))
				want = append(want, vocab.pieces[token])
				if len(want) == n {
					break
				}
				out, err = w.Decode(0, pos, []int32{token}, worker.Last)
				require.NoError(t, err)
			}
			assert.Equal(t, want, got)
		})
	}
}

// A full context keeps the first tokens, drops the older half of the rest, and what stays moves up.
func TestContextMakesRoom(t *testing.T) {
	const context, keep, n = 256, 10, 500
	got := generate(t, load(t, gopher, llama.SetContext(context)), code, n, llama.SetNKeep(keep))

	w, vocab := unmodified(t, worker.Config{Model: gopher, Context: context})
	tokens, err := w.Tokenize(code, true)
	require.NoError(t, err)
	out, err := w.Decode(0, 0, tokens, worker.Last)
	require.NoError(t, err)
	var want []string
	require.Greater(t, len(tokens)+n, context+(context-keep)/2, "twice")
	for pos := len(tokens); len(want) < n; {
		token := vocab.best(out.Row(0))
		want = append(want, vocab.pieces[token])
		out, pos = step(t, w, token, pos, context, keep)
	}
	assert.Equal(t, want, got)
}

// step decodes a token at a position, for which a full context makes room, and returns the next position.
func step(t *testing.T, w *worker.Worker, token int32, pos, context, keep int) (*worker.Output, int) {
	t.Helper()
	if pos == context {
		drop := (pos - keep) / 2
		require.NoError(t, w.SeqRemove(0, keep, keep+drop))
		require.NoError(t, w.SeqAdd(0, keep+drop, worker.End, -drop))
		pos -= drop
	}
	out, err := w.Decode(0, pos, []int32{token}, worker.Last)
	require.NoError(t, err)
	return out, pos + 1
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
		same := 0
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
				want, got := generateAnew(t, path, "f32")
				if slices.Equal(want, got) {
					same++
				} else {
					t.Log("a choice between two tokens was tipped")
				}
			})
		}
		assert.GreaterOrEqual(t, same, int(layers)-1, "%s: the rounding of the logits tips a choice now and then", name)
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
	want, got := generateAnew(t, tiny(t, "gpt2"), "f16")
	assert.Equal(t, want, got)
}

// generateAnew generates past the end of the context, and again in a loop which evaluates what stays anew.
func generateAnew(t *testing.T, path, cache string) (want, got []string) {
	t.Helper()
	const context, keep, n = 256, 10, 300
	model := load(t, path, llama.SetContext(context), func(o *llama.ModelOptions) { o.F16Memory = cache == "f16" })
	got = generate(t, model, code, n, llama.SetNKeep(keep))

	w, vocab := unmodified(t, worker.Config{Model: path, Context: context, TypeK: cache, TypeV: cache})
	tokens, err := w.Tokenize(code, true)
	require.NoError(t, err)
	out, err := w.Decode(0, 0, tokens, worker.Last)
	require.NoError(t, err)
	for len(want) < n {
		token := vocab.best(out.Row(0))
		want = append(want, vocab.pieces[token])
		if len(tokens) == context {
			tokens = slices.Delete(tokens, keep, keep+(context-keep)/2)
			require.NoError(t, w.Clear())
			_, err = w.Decode(0, 0, tokens, worker.Last)
			require.NoError(t, err)
		}
		out, err = w.Decode(0, len(tokens), []int32{token}, worker.Last)
		require.NoError(t, err)
		tokens = append(tokens, token)
	}
	return want, got
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

			text, vocab := unmodified(t, worker.Config{Model: path, Context: context})
			guide, _ := unmodified(t, worker.Config{Model: path, Context: context})
			begin := func(w *worker.Worker, s string) (*worker.Output, int) {
				tokens, err := w.Tokenize(s, true)
				require.NoError(t, err)
				out, err := w.Decode(0, 0, tokens, worker.Last)
				require.NoError(t, err)
				return out, len(tokens)
			}
			a, posA := begin(text, code)
			b, posB := begin(guide, negative)
			prompt := posB
			for i := range n {
				mixed := make([]float32, a.Width)
				na, nb := logSumExp(a.Row(0)), logSumExp(b.Row(0))
				for j := range mixed {
					la, lb := float64(a.Row(0)[j])-na, float64(b.Row(0)[j])-nb
					mixed[j] = float32(lb + scale*(la-lb))
				}
				token := vocab.best(mixed)
				require.Equal(t, vocab.pieces[token], got[i], "token %d", i)
				a, posA = step(t, text, token, posA, context, keep)
				b, posB = step(t, guide, token, posB, context, prompt)
			}
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
