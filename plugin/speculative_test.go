package lesskv_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/greedy"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

func speculate(t *testing.T, model, draft *llama.LLama, text string, opts ...llama.PredictOption) string {
	t.Helper()
	opts = append([]llama.PredictOption{llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(24), llama.SetNDraft(8)}, opts...)
	out, err := model.SpeculativeSampling(draft, text, opts...)
	require.NoError(t, err)
	return out
}

// tinyModel loads a random model in f32. Those of two seeds share a vocabulary.
func tinyModel(t *testing.T, seed uint64, opts ...llama.ModelOption) *llama.LLama {
	t.Helper()
	return load(t, writeTiny(t, "llama", gguf.F32, seed), append([]llama.ModelOption{llama.SetContext(512)}, opts...)...)
}

// tinyConfig is what tinyModel opens, in the worker.
func tinyConfig(t *testing.T, seed uint64, context int) worker.Config {
	t.Helper()
	return worker.Config{Model: writeTiny(t, "llama", gguf.F32, seed), Context: context, TypeK: "f32", TypeV: "f32"}
}

// The text is what the model writes token by token, whoever drafts: itself, always right, or another, hardly ever right.
func TestSpeculativeWritesWhatPredictDoes(t *testing.T) {
	model := tinyModel(t, 1, lesskv.Disable())
	self, other := tinyModel(t, 1, lesskv.Disable(), llama.SetPerplexity(true)), tinyModel(t, 2, lesskv.Disable(), llama.SetPerplexity(false))
	few := func(piece string) bool { return strings.Trim(piece, "abcdefghijklmnopqrstuvwxyz") == "" && piece != "" }
	for name, test := range map[string]struct {
		opts []llama.PredictOption
		only func(piece string) bool
		stop string
	}{
		"greedy":    {[]llama.PredictOption{llama.SetTokens(80)}, nil, "length"},
		"grammar":   {[]llama.PredictOption{llama.WithGrammar(`root ::= [a-z]{99}`)}, few, "length"},
		"stop word": {[]llama.PredictOption{llama.SetTokens(80), llama.SetStopWords("a", "e", "o")}, nil, "word"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, draft := range []*llama.LLama{self, other} {
				out := ""
				tokens := pieces(func(opts ...llama.PredictOption) string {
					out = speculate(t, model, draft, prompt, append(test.opts, opts...)...)
					return out
				})
				require.NoError(t, follow(t, tinyConfig(t, 1, 512), tokens, test.only))
				g := timings(t, model)
				assert.Equal(t, test.stop, g.Stop)
				assert.Len(t, tokens, g.Generated)
				if name == "stop word" {
					assert.False(t, strings.ContainsAny(out, "aeo"), "%q", out)
					assert.Regexp(t, "[aeo]", tokens[len(tokens)-1])
				} else {
					assert.Equal(t, strings.Join(tokens, ""), out)
				}
				t.Logf("%d tokens, %d drafted, %d of them right", g.Generated, g.Drafted, g.Accepted)
				if name == "greedy" && draft == self {
					assert.Greater(t, g.Accepted, 20)
				}
			}
		})
	}
	assert.Equal(t, predict(t, model, prompt), speculate(t, model, self, prompt, llama.SetNDraft(0)), "nothing drafted")
	assert.Equal(t, predict(t, model, prompt), predict(t, model, prompt), "and Predict goes on")
}

// Sampled too, to the byte, by models whose logits are the same however many tokens are evaluated at once: each is one product.
func TestSpeculativeSamples(t *testing.T) {
	logits := make([]float32, vocabularySize)
	for i := range logits {
		logits[i] = -50
	}
	for i := range 20 {
		logits[300+i] = 4 - float32(i)/4
	}
	model := load(t, writeConstant(t, logits), lesskv.Disable(), llama.SetContext(512))
	logits[300] = 5 // likely enough to be drafted
	draft := load(t, writeConstant(t, logits), lesskv.Disable(), llama.SetContext(512))
	for name, opts := range map[string][]llama.PredictOption{
		"top-p":     {},
		"penalties": {llama.SetPenalty(1.3), llama.SetFrequencyPenalty(.2), llama.SetRepeat(20)},
		"mirostat":  {llama.SetMirostat(2)},
	} {
		t.Run(name, func(t *testing.T) {
			drafted, accepted, seeds := 0, 0, 10
			if testing.Short() {
				seeds = 3
			}
			for seed := range seeds {
				opts := append(opts, llama.SetTokens(60), llama.IgnoreEOS, llama.SetTemperature(.7), llama.SetSeed(seed))
				assert.Equal(t, predict(t, model, prompt, opts...), speculate(t, model, draft, prompt, opts...), "seed %d", seed)
				g := timings(t, model)
				drafted, accepted = drafted+g.Drafted, accepted+g.Accepted
			}
			assert.Positive(t, accepted)
			assert.Greater(t, drafted, accepted)
		})
	}
}

// Drafted is what the draft model has for at least twice as likely as any other token.
func TestSpeculativeDraftsTheLikely(t *testing.T) {
	constant := func(margin float32) *llama.LLama {
		logits := make([]float32, vocabularySize)
		logits[300], logits[301] = 10, 10-margin
		return load(t, writeConstant(t, logits), lesskv.Disable(), llama.SetContext(512))
	}
	model := constant(1)
	opts := []llama.PredictOption{llama.SetPenalty(1), llama.SetTokens(1 + 3*9)} // the last draft too is of all its 8
	speculate(t, model, constant(math.Ln2-.03), prompt, opts...)
	assert.Zero(t, timings(t, model).Drafted)
	speculate(t, model, constant(math.Ln2+.03), prompt, opts...)
	g := timings(t, model)
	assert.Equal(t, []int{24, 24}, []int{g.Drafted, g.Accepted})
}

// It is upstream's own configuration: a real model, f16, with LESS off and on. The second text is the first one's again, to the byte with
// LESS: both models begin as they did. Without, the draft model cuts its text back, and what it drafts then, and so how many tokens the other
// evaluates at once, depends on rounding.
func TestSpeculativeOnEveryCache(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model, draft := open(t, cache, llama.SetPerplexity(true)), open(t, cache, llama.SetPerplexity(true))
		less := stats(t, model).Enabled
		var first []string
		for range 2 {
			text := pieces(func(opts ...llama.PredictOption) string {
				return speculate(t, model, draft, prompt, append(opts, llama.SetTokens(120))...)
			})
			assert.Len(t, text, 120)
			assert.Greater(t, timings(t, model).Accepted, 20)
			if !less {
				require.NoError(t, follow(t, worker.Config{Model: file(t, testdata.Model), Context: 512}, text, nil))
			} else if first == nil {
				first = text
			} else {
				assert.Equal(t, first, text)
			}
		}
		if less {
			for _, l := range stats(t, model).Layers {
				assert.LessOrEqual(t, l.Kept, int64(64), "what was taken back has left its slots")
				assert.Positive(t, l.Folded)
			}
		}
	})
}

// With LESS a layer with a sliding window holds no more than it: past it nothing can be taken back, and nothing is drafted.
func TestSpeculativeOnWindows(t *testing.T) {
	path := writeTiny(t, "gemma2", gguf.F32, 1)
	model, draft := load(t, path, llama.SetContext(0), sparse(1024)), load(t, path, llama.SetContext(0), sparse(1024))
	lines := captureLog(t)
	speculate(t, model, draft, "x", llama.SetTokens(100), llama.IgnoreEOS, llama.SetTemperature(1), llama.SetSeed(3))
	g := timings(t, model)
	assert.Equal(t, 100, g.Generated)
	assert.Greater(t, g.Drafted, g.Accepted, "wrong ones within the window")
	assert.Equal(t, 1, strings.Count(lines.String(), "nothing is drafted"), lines)
}

// Past the end of the context, the draft model's or both.
func TestSpeculativeFullContext(t *testing.T) {
	for name, test := range map[string]struct{ context, tokens int }{"both": {256, 400}, "the draft model's": {512, 350}} {
		t.Run(name, func(t *testing.T) {
			model, draft := tinyModel(t, 1, lesskv.Disable(), llama.SetContext(test.context)), tinyModel(t, 1, lesskv.Disable(), llama.SetContext(256))
			tokens := pieces(func(opts ...llama.PredictOption) string {
				return speculate(t, model, draft, prompt, append(opts, llama.SetTokens(test.tokens))...)
			})
			assert.Len(t, tokens, test.tokens)
			require.NoError(t, follow(t, tinyConfig(t, 1, test.context), tokens, nil))
			g := timings(t, model)
			assert.Positive(t, g.Accepted)
			assert.Less(t, g.Drafted, 350)
		})
	}
}

// All of a budget may be heavy hitters, and then nothing can be drafted; nothing is what SetNDraft(0) asks for.
func TestSpeculativeDraftsNothing(t *testing.T) {
	cache := lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(64), Heavy: 64, Adapter: lesskv.NoAdapter})
	model, draft := open(t, cache), open(t, cache)
	want := predict(t, open(t, cache), prompt)
	out, err := model.SpeculativeSampling(draft, prompt, llama.SetNDraft(0), llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(24))
	require.NoError(t, err)
	assert.Equal(t, want, out)
	assert.Zero(t, timings(t, model).Drafted)
}

// More than can be taken back is not drafted, which the log says once; nothing is by a model with other tokens.
func TestSpeculativeDraftsNoMore(t *testing.T) {
	lines := captureLog(t)
	model, draft, other := open(t, sparse(64)), open(t, sparse(64)), tinyModel(t, 1)
	for _, n := range []int{32, math.MaxInt32} {
		speculate(t, model, draft, prompt, llama.SetTokens(200), llama.SetNDraft(n))
		assert.Positive(t, timings(t, model).Accepted)
	}
	assert.Equal(t, 1, strings.Count(lines.String(), "31 tokens are drafted at a time"), lines)
	want := predict(t, open(t, sparse(64)), prompt)
	for range 3 {
		assert.Equal(t, want, speculate(t, model, other, prompt))
		assert.Zero(t, timings(t, model).Drafted)
	}
	assert.Equal(t, 1, strings.Count(lines.String(), "vocabulary is another"), lines)
}

// Where heads have budgets of their own, the one with the fewest recent slots says how many.
func TestSpeculativeDraftsAsTheSmallestHead(t *testing.T) {
	m, err := weights.ReadModel(file(t, testdata.Model))
	require.NoError(t, err)
	a := weights.Random(m, 4, 8, weights.Trained{Policy: "h2o", Heavy: 32, Recent: 32, Ubatch: 512, Context: 2048}, 1)
	a.Budget = []float32{.3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1} // two heads of each of six layers
	path := filepath.Join(t.TempDir(), "adapter.gguf")
	require.NoError(t, a.Write(path))
	cache := lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Adapter: path})
	model, draft := open(t, cache), open(t, cache)
	recent := stats(t, model).Recent
	require.Less(t, recent, 16)
	lines := captureLog(t)
	for range 2 {
		speculate(t, model, draft, prompt, llama.SetTokens(200), llama.SetNDraft(32))
		assert.Positive(t, timings(t, model).Drafted)
	}
	assert.Equal(t, 1, strings.Count(lines.String(), fmt.Sprintf("%d tokens are drafted at a time", recent-1)), lines)
}

// A real model in f16, whose logits depend a little on how many tokens are evaluated with one: each token is one that the sampling may
// draw, by logits that the worker computes.
func TestSpeculativeSamplesAmongTheLikely(t *testing.T) {
	const k = 5
	model, draft := open(t, lesskv.Disable()), open(t, lesskv.Disable())
	c := worker.Config{Model: file(t, testdata.Model), Context: 512}
	for seed := range 3 {
		tokens := pieces(func(opts ...llama.PredictOption) string {
			return speculate(t, model, draft, prompt, append(opts, llama.SetTokens(40), llama.SetTemperature(1.5), llama.SetTopK(k), llama.SetTopP(1), llama.SetSeed(seed))...)
		})
		assert.Positive(t, timings(t, model).Drafted)
		require.NoError(t, followBy(t, c, tokens, func(_ *greedy.Vocabulary, logits []float32) []float32 {
			sorted := slices.Clone(logits)
			slices.Sort(sorted)
			least, greatest := sorted[len(sorted)-k], sorted[len(sorted)-1]
			for i, x := range logits {
				if x >= least-greedy.Tie {
					logits[i] = greatest // any of them will do
				}
			}
			return logits
		}))
	}
	if testing.Short() {
		return
	}
	page, err := os.ReadFile("../docs/compatibility.md")
	require.NoError(t, err)
	said := regexp.MustCompile(`(\d+) of 40 of gopher-5m, 24 tokens at a temperature of 0.9`).FindSubmatch(page)
	require.NotNil(t, said, "how many texts are other ones than Predict's")
	want, err := strconv.Atoi(string(said[1]))
	require.NoError(t, err)
	others := 0
	for seed := range 40 {
		sampling := []llama.PredictOption{llama.SetTokens(24), llama.SetTemperature(0.9), llama.SetSeed(seed)}
		if speculate(t, model, draft, prompt, sampling...) != predict(t, model, prompt, sampling...) {
			others++
		}
	}
	t.Logf("of 40 texts, 24 tokens at a temperature of 0.9, %d are other ones than Predict's", others)
	assert.InDelta(t, want, others, 14, "another CPU rounds otherwise")
}

// A prompt cache is ignored, as in upstream: one that is there and would serve is not read, nor is it replaced.
func TestSpeculativeLeavesPromptCaches(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	predict(t, open(t, sparse(64)), prompt, llama.SetPathPromptCache(path))
	read := func() ([]byte, time.Time) {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		info, err := os.Stat(path)
		require.NoError(t, err)
		return data, info.ModTime()
	}
	data, written := read()
	model, draft := open(t, sparse(64)), open(t, sparse(64))
	speculate(t, model, draft, prompt, llama.SetPathPromptCache(path), llama.EnablePromptCacheAll)
	assert.Zero(t, timings(t, model).Cached)
	speculate(t, model, draft, "package other", llama.SetPathPromptCache(path), llama.EnablePromptCacheAll)
	after, rewritten := read()
	assert.Equal(t, data, after)
	assert.Equal(t, written, rewritten)
	predict(t, model, prompt, llama.SetPathPromptCache(path))
	assert.Positive(t, timings(t, model).Cached, "it would have served")
}

// What ends the draft model ends the call that it drafts for.
func TestSpeculativeEndsWithItsDraft(t *testing.T) {
	for name, end := range map[string]func(draft *llama.LLama){"interrupted": lesskv.Interrupt, "freed": (*llama.LLama).Free} {
		t.Run(name, func(t *testing.T) {
			model, draft := open(t), open(t)
			n := 0
			speculate(t, model, draft, prompt, llama.SetTokens(1000), llama.IgnoreEOS, llama.SetTokenCallback(func(string) bool {
				if n++; n == 5 {
					end(draft)
				}
				return true
			}))
			assert.Less(t, n, 20, "it ends after the batch it is at")
			assert.Equal(t, "interrupt", timings(t, model).Stop)
			assert.NotEmpty(t, predict(t, model, prompt), "the next call goes on")
		})
	}
}

func TestSpeculativeRefused(t *testing.T) {
	model, draft := open(t, sparse(64)), open(t, sparse(64))
	freed := open(t)
	freed.Free()
	for name, test := range map[string]struct {
		draft *llama.LLama
		opts  []llama.PredictOption
		kind  error
		says  string
	}{
		"none":   {nil, nil, lesskv.ErrArgument, "nil"},
		"itself": {model, nil, lesskv.ErrArgument, "itself"},
		"freed":  {freed, nil, lesskv.ErrArgument, "freed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := model.SpeculativeSampling(test.draft, prompt, test.opts...)
			assertSays(t, err, test.kind, test.says)
		})
	}
	_, err := model.SpeculativeSampling(draft, strings.Repeat(prompt, 1000))
	assertSays(t, err, lesskv.ErrContext, "tokens")
	speculate(t, model, draft, prompt, llama.SetTokens(200), llama.SetNDraft(31))
}
