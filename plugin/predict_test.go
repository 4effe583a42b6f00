package lesskv_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// modes are the caches that everything must work with.
func modes(t *testing.T, f func(t *testing.T, cache llama.ModelOption)) {
	t.Run("off", func(t *testing.T) { f(t, lesskv.Disable()) })
	t.Run("sparse", func(t *testing.T) { f(t, sparse(64)) })
	t.Run("LESS", func(t *testing.T) {
		f(t, lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(64), Adapter: file(t, testdata.H2O102)}))
	})
}

func TestPredictDeterministic(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		sampled := func(seed int) string {
			return predict(t, model, prompt, llama.SetTemperature(1), llama.SetSeed(seed), llama.SetTokens(80))
		}
		first := sampled(7)
		assert.Equal(t, first, sampled(7))
		assert.NotEqual(t, first, sampled(8))
		assert.Equal(t, first, sampled(7))
		assert.NotEqual(t, sampled(-1), sampled(-1), "at random")
	})
}

// gopherConfig is what open opens, in the worker.
func gopherConfig(t *testing.T, less *worker.LESS) worker.Config {
	t.Helper()
	return worker.Config{Model: file(t, testdata.Model), FlashAttention: true, LESS: less}
}

// With a budget that nothing exceeds, LESS writes what the unmodified cache does.
func TestNothingEvicted(t *testing.T) {
	model := open(t, sparse(128))
	tokens := pieces(func(opts ...llama.PredictOption) string {
		return predict(t, model, prompt, append(opts, llama.SetTokens(60))...)
	})
	assert.Len(t, tokens, 60)
	require.NoError(t, follow(t, gopherConfig(t, nil), tokens, nil))
	s := stats(t, model)
	require.Len(t, s.Layers, 6)
	for i, l := range s.Layers {
		assert.Equal(t, lesskv.LayerStats{Layer: i, Seen: l.Seen, Kept: l.Seen, Budgets: []int{128, 128}, SlotBytes: s.SlotBytes / 6}, l)
	}
}

// The environment's way to the plain loops: the same text, and a word in the log. Lambda has no scores, which rounding could tie.
func TestForcedReference(t *testing.T) {
	cache := lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(24), Policy: lesskv.Lambda, Adapter: file(t, testdata.Lambda)})
	write := func(model *llama.LLama) []string {
		return pieces(func(opts ...llama.PredictOption) string {
			return predict(t, model, prompt, append(opts, llama.SetTokens(60))...)
		})
	}
	config := func(reference bool) worker.Config {
		return gopherConfig(t, &worker.LESS{Policy: "lambda", Budget: 24, Adapter: file(t, testdata.Lambda), Reference: reference})
	}
	require.NoError(t, follow(t, config(true), write(open(t, cache)), nil))
	lines := captureLog(t)
	t.Setenv("LESSKV_REFERENCE", "on")
	plain := open(t, cache)
	require.NoError(t, follow(t, config(false), write(plain), nil))
	assert.Positive(t, stats(t, plain).Layers[0].Folded)
	assert.Contains(t, lines.String(), "LESSKV_REFERENCE=on")
	t.Setenv("LESSKV_REFERENCE", "no")
	open(t, cache)
	assert.Equal(t, 1, strings.Count(lines.String(), "LESSKV_REFERENCE"))
}

// The environment may ask for the inner loops of lesser processors; where they are not there the log says so.
func TestLevelOfTheEnvironment(t *testing.T) {
	t.Setenv("LESSKV_LEVEL", "x86-64-v9")
	lines := captureLog(t)
	predict(t, open(t, sparse(128)), prompt, llama.SetTokens(4))
	assert.Contains(t, lines.String(), "LESSKV_LEVEL=x86-64-v9: there are no such inner loops here")
	assert.NotContains(t, lines.String(), "LESSKV_LEVEL is unknown")
}

func TestStats(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		predict(t, model, prompt, llama.SetTokens(100))
		s, g := stats(t, model), timings(t, model)
		assert.Equal(t, []int{2048, 2048, 2048, 512, 512}, []int{s.Context, s.TrainedContext, s.Limit, s.Batch, s.MicroBatch})
		assert.EqualValues(t, 6<<20, s.FullBytes)
		assert.Equal(t, 100, g.Generated)
		assert.Equal(t, "length", g.Stop)
		assert.Positive(t, g.PromptTime)
		assert.Positive(t, g.GenerateTime)
		if !s.Enabled {
			return
		}
		assert.EqualValues(t, 6*2*64*(2*64*2+8), s.SlotBytes)
		assert.EqualValues(t, 6*2*s.Rank*(64+1)*4, s.StateBytes)
		assert.Equal(t, s.SlotBytes+s.StateBytes+s.KernelBytes, s.CacheBytes)
		for _, l := range s.Layers {
			assert.EqualValues(t, g.Prompt+g.Generated-1, l.Seen, "the last token is not evaluated")
			assert.EqualValues(t, 64, l.Kept)
			assert.Equal(t, l.Seen-l.Kept, l.Folded)
			assert.Equal(t, []int{64, 64}, l.Budgets)
			assert.Equal(t, s.Rank > 0, l.Kernels)
		}
	})
}

// An adapter may be an allocation alone: heads have budgets of their own, in the bytes that they had; on the device in those of the largest head of each
// layer.
func TestStatsByHead(t *testing.T) {
	base, err := weights.ReadModel(file(t, testdata.Model))
	require.NoError(t, err)
	a := weights.New(base, weights.Trained{Policy: "peak", Heavy: 1, Recent: 1, Ubatch: 32, Context: 2048})
	a.Budget = []float32{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0}
	path := filepath.Join(t.TempDir(), "allocation.gguf")
	require.NoError(t, a.Write(path))
	model := open(t, lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(64), Adapter: path}))
	predict(t, model, prompt, llama.SetTokens(100))
	s := stats(t, model)
	assert.Equal(t, []int{64, 0}, []int{s.Budget, s.Rank})
	assert.Equal(t, "peak", s.Policy)
	assert.EqualValues(t, 6*2*64*(2*64*2+8), s.CacheBytes)
	rest := 12 * (64 - 8)
	for i, l := range s.Layers {
		switch want := []int{8, 8}; i {
		case 0:
			assert.Equal(t, []int{8 + rest/12, 8 + rest/12}, l.Budgets)
		case 5:
			assert.Equal(t, []int{8 + 10*rest/12, 8}, l.Budgets)
		default:
			assert.Equal(t, want, l.Budgets)
		}
	}

	on := open(t, llama.SetNBatch(32), lesskv.Enable(lesskv.Config{OnDevice: true, Budget: lesskv.Tokens(64), Adapter: path}))
	predict(t, on, prompt, llama.SetTokens(100))
	device, want := stats(t, on), 0
	for i, l := range device.Layers {
		assert.Equal(t, s.Layers[i].Budgets, l.Budgets)
		most := slices.Max(l.Budgets) // each head takes as many slots
		want += 2*((most+32)*2*64*2+most*12) + 4*(most+2*32+2)
	}
	assert.EqualValues(t, want, device.SlotBytes)
}

// The state of each layer is as large as the rank of its phi and psi says.
func TestStatsBySize(t *testing.T) {
	base, err := weights.ReadModel(file(t, testdata.Model))
	require.NoError(t, err)
	trained := weights.Trained{Policy: "peak", Heavy: 1, Recent: 1, Ubatch: 32, Context: 2048}
	a := weights.Random(base, 8, 3, trained, 1)
	for i, rank := range []int{0, 1, 3} { // the first without
		if a.Kernels[i] = (weights.Kernels{}); rank > 0 {
			a.Kernels[i] = weights.Random(base, rank, 5, trained, 1).Kernels[i]
		}
	}
	path := filepath.Join(t.TempDir(), "sizes.gguf")
	require.NoError(t, a.Write(path))
	model := open(t, lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Adapter: path}))
	predict(t, model, prompt, llama.SetTokens(100))
	s := stats(t, model)
	assert.Equal(t, []int{8, 5}, []int{s.Rank, s.Hidden}, "the largest")
	assert.EqualValues(t, 2*(1+3+8+8+8)*(64+1)*4, s.StateBytes)
	assert.Equal(t, a.Bytes(), s.KernelBytes)
	for i, l := range s.Layers {
		assert.Equal(t, [][]int{{0, 0}, {1, 5}, {3, 5}, {8, 3}, {8, 3}, {8, 3}}[i], []int{l.Rank, l.Hidden}, "layer %d", i)
		assert.EqualValues(t, 2*l.Rank*(64+1)*4, l.StateBytes)
	}
}

func TestCallback(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		whole := predict(t, model, prompt)
		var tokens []string
		out := predict(t, model, prompt, llama.SetTokenCallback(func(s string) bool {
			tokens = append(tokens, s)
			return true
		}))
		assert.Equal(t, whole, out)
		assert.Len(t, tokens, timings(t, model).Generated)
		assert.Equal(t, whole, strings.TrimPrefix(strings.Join(tokens, ""), "\n"))

		n := 0
		out = predict(t, model, prompt, llama.SetTokenCallback(func(string) bool { n++; return n < 4 }))
		assert.Equal(t, strings.TrimPrefix(strings.Join(tokens[:3], ""), "\n"), out)
		assert.Equal(t, "callback", timings(t, model).Stop)
	})
}

// As the documentation of SetTokenCallback allows; it deadlocked.
func TestSetCallbackInCallback(t *testing.T) {
	model := open(t)
	calls := 0
	model.SetTokenCallback(func(string) bool {
		calls++
		model.SetTokenCallback(nil)
		return true
	})
	done := make(chan bool)
	go func() {
		defer close(done)
		_, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(5))
		assert.NoError(t, err)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("deadlock")
	}
	assert.Equal(t, 1, calls)
}

func TestBusy(t *testing.T) {
	model := open(t)
	var inner, info error
	var count int32
	predict(t, model, prompt, llama.SetTokenCallback(func(string) bool {
		_, inner = model.Predict("x")
		_, info = lesskv.Stats(model)
		count, _, _ = model.TokenizeString("a text")
		return false
	}))
	assertSays(t, inner, lesskv.ErrBusy, "another call")
	assertSays(t, info, lesskv.ErrBusy)
	assert.Positive(t, count, "tokenizing is allowed")
	assert.NotEmpty(t, predict(t, model, prompt), "the outer call is unharmed")
}

func TestStopWords(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		whole := predict(t, model, prompt, llama.SetTokens(40))
		require.Greater(t, len(whole), 20)
		word := whole[10:14] // somewhere inside, across tokens
		at := strings.Index(whole, word)
		assert.Equal(t, whole[:at], predict(t, model, prompt, llama.SetTokens(40), llama.SetStopWords("never said", word, "")))
		assert.Equal(t, "word", timings(t, model).Stop)
		assert.Equal(t, whole, predict(t, model, prompt, llama.SetTokens(40), llama.SetStopWords(prompt)), "a word of the prompt")
	})
}

// Stop words were taken for sets of characters, and text that ended in one of them was eaten.
func TestStopWordsLeaveTheTextAlone(t *testing.T) {
	model := open(t)
	whole := predict(t, model, prompt)
	reversed := []rune(whole)
	for i, j := 0, len(reversed)-1; i < j; i, j = i+1, j-1 {
		reversed[i], reversed[j] = reversed[j], reversed[i]
	}
	assert.Equal(t, whole, predict(t, model, prompt, llama.SetStopWords(string(reversed))))
}

// The text of Tokens tokens was copied into Tokens bytes.
func TestLongText(t *testing.T) {
	model := open(t)
	out := predict(t, model, prompt, llama.SetTokens(200), llama.IgnoreEOS)
	assert.Greater(t, len(out), 200)
}

func TestTokenizeString(t *testing.T) {
	model := open(t)
	text := strings.Repeat("if err != nil { return err }\n", 400)
	n, tokens, err := model.TokenizeString(text)
	require.NoError(t, err)
	assert.Greater(t, n, int32(2048), "more than its buffer, and than the context")
	assert.Len(t, tokens, int(n))
	assert.EqualValues(t, 1, tokens[0], "it begins with the token that begins texts")

	n, tokens, err = model.TokenizeString("")
	require.NoError(t, err)
	assert.Len(t, tokens, int(n))
	_, _, err = model.TokenizeString("a\x00b")
	assertSays(t, err, lesskv.ErrArgument, "NUL")
}

// What reads like a control token is one, but for a call that wants its text plain.
func TestPlainText(t *testing.T) {
	model, draft := open(t), open(t)
	const text = "<s>x</s>"
	tokens := func(opts ...llama.PredictOption) []int32 {
		_, tokens, err := model.TokenizeString(text, opts...)
		require.NoError(t, err)
		return tokens
	}
	controls, plain := tokens(), tokens(lesskv.PlainText)
	assert.Equal(t, []int32{1, 1}, controls[:2])
	assert.Equal(t, int32(2), controls[len(controls)-1])
	require.Greater(t, len(plain), len(controls))
	assert.Equal(t, int32(1), plain[0], "a text begins with the token that begins texts")
	for _, token := range plain[1:] {
		assert.Greater(t, token, int32(2), "no control token")
	}
	for want, opts := range map[int][]llama.PredictOption{len(controls): nil, len(plain): {lesskv.PlainText}} {
		opts = append(opts, llama.SetThreads(1), llama.SetTokens(1))
		predict(t, model, text, opts...)
		assert.Equal(t, want, timings(t, model).Prompt)
		speculate(t, model, draft, text, opts...)
		assert.Equal(t, want, timings(t, model).Prompt)
		require.NoError(t, model.Eval(text, opts...))
		assert.Equal(t, want, timings(t, model).Prompt)
	}
	guided := func(opts ...llama.PredictOption) string {
		return predict(t, model, prompt, append(opts, llama.SetNegativePrompt(strings.Repeat(text, 8)), llama.SetNegativePromptScale(5))...)
	}
	assert.NotEqual(t, guided(), guided(lesskv.PlainText), "the negative prompt too")
}

func TestPromptGoesOnFromTheCache(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
		held := timings(t, model).Prompt
		longer := prompt + "\n\treturn nil\n}\n"
		predict(t, model, longer, llama.SetTokens(1))
		assert.Equal(t, held, timings(t, model).Cached)
		predict(t, model, longer, llama.SetTokens(1))
		g := timings(t, model)
		if stats(t, model).Enabled {
			assert.Equal(t, g.Prompt, g.Cached, "a checkpoint has the last logits")
		} else {
			assert.Zero(t, g.Cached, "nothing new: evaluated anew")
		}
		predict(t, model, "package main", llama.SetTokens(1))
		assert.Zero(t, timings(t, model).Cached)
	})
}

func TestContext(t *testing.T) {
	long := strings.Repeat("x := 1\n", 1000)
	t.Run("the prompt is too long", func(t *testing.T) {
		modes(t, func(t *testing.T, cache llama.ModelOption) {
			model := open(t, cache)
			n, _, err := model.TokenizeString(long)
			require.NoError(t, err)
			out, err := model.Predict(long, llama.SetThreads(1))
			assert.Empty(t, out)
			assertSays(t, err, lesskv.ErrContext, "2048")
			assert.Contains(t, err.Error(), "has "+strconv.Itoa(int(n))+" tokens")
			assert.NotEmpty(t, predict(t, model, prompt), "the model is unharmed")
		})
	})
	t.Run("it is full", func(t *testing.T) {
		model := open(t, lesskv.Disable(), llama.SetContext(256))
		out := predict(t, model, prompt, llama.SetTokens(600), llama.IgnoreEOS, llama.SetNKeep(8))
		g := timings(t, model)
		assert.Equal(t, 600, g.Generated)
		assert.Equal(t, "length", g.Stop)
		assert.Greater(t, len(out), 600)

		_, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(600), llama.IgnoreEOS, llama.SetNKeep(-1), llama.SetStopWords("no such thing"))
		assert.NoError(t, err, "all of a short prompt is kept")
	})
	t.Run("LESS goes past it", func(t *testing.T) {
		model := open(t, sparse(64), llama.SetContext(256))
		before := stats(t, model).CacheBytes
		predict(t, model, prompt, llama.SetTokens(400), llama.IgnoreEOS)
		s := stats(t, model)
		assert.Greater(t, s.Layers[0].Seen, int64(256))
		assert.EqualValues(t, 64, s.Layers[0].Kept)
		assert.Equal(t, before+s.SlotBytes, s.CacheBytes)
	})
}

// With LESS a text goes on to the context that the model was trained with, and ends there. What there is is the answer: apps drop the
// text of a call that fails.
func TestLESSEndsAtTheTrainedContext(t *testing.T) {
	model := open(t, sparse(64), llama.SetContext(256))
	lines := captureLog(t)
	limits := []int{-1, 0}
	if testing.Short() { // thousands of tokens, under a sanitizer
		limits = limits[:1]
	}
	for _, tokens := range limits {
		out := predict(t, model, prompt, llama.SetTokens(tokens), llama.IgnoreEOS)
		assert.Greater(t, len(out), 2048)
		g := timings(t, model)
		assert.Equal(t, 2049, g.Prompt+g.Generated, "the last token is not evaluated")
		assert.Equal(t, "context", g.Stop)
	}
	assert.Equal(t, len(limits), strings.Count(lines.String(), "the context of 2048 tokens is full"), lines)

	long := strings.Repeat("x := 1\n", 300)
	n, _, err := model.TokenizeString(long)
	require.NoError(t, err)
	require.Less(t, n, int32(2048))
	out := predict(t, model, prompt, llama.SetTokens(-1), llama.IgnoreEOS, llama.SetNegativePrompt(long), llama.SetNegativePromptScale(1.5))
	assert.NotEmpty(t, out)
	g := timings(t, model)
	assert.Equal(t, 2048-int(n)+1, g.Generated, "it is full of the negative prompt")
	assert.Equal(t, "context", g.Stop)

	draft := open(t, sparse(64))
	assert.NotEmpty(t, speculate(t, model, draft, prompt, llama.SetTokens(-1), llama.IgnoreEOS))
	assert.Equal(t, "context", timings(t, model).Stop)
	assert.NotEmpty(t, predict(t, model, prompt), "the next text begins anew")

	wide := open(t, sparse(64), llama.SetContext(4096))
	assert.Equal(t, 4096, stats(t, wide).Limit, "a context above it was asked for")
}

// A prompt that fills the context and is to be kept whole leaves nothing to drop.
func TestContextFullOfPrompt(t *testing.T) {
	model := open(t, lesskv.Disable(), llama.SetContext(256))
	long := strings.Repeat("x := 1\n", 30)
	for n := int32(0); n != 256; {
		long += "?" // a token of its own
		var err error
		n, _, err = model.TokenizeString(long)
		require.NoError(t, err)
		require.LessOrEqual(t, n, int32(256))
	}
	out := predict(t, model, long, llama.SetTokens(100), llama.IgnoreEOS, llama.SetNKeep(-1))
	assert.NotEmpty(t, out, "what there is")
	assert.Equal(t, "context", timings(t, model).Stop)
	predict(t, model, long, llama.SetTokens(100), llama.IgnoreEOS)
}

func TestInterrupt(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		lesskv.Interrupt(model) // nothing to interrupt
		n := 0
		out := predict(t, model, prompt, llama.SetTokens(1000), llama.SetTokenCallback(func(string) bool {
			if n++; n == 5 {
				lesskv.Interrupt(model)
			}
			return true
		}))
		assert.NotEmpty(t, out)
		assert.Equal(t, 5, timings(t, model).Generated)
		assert.Equal(t, "interrupt", timings(t, model).Stop)
		assert.NotEmpty(t, predict(t, model, prompt), "the next call goes on")
	})
}

// A call ends between two batches of a prompt, the negative one too. llama.cpp logs each of them, if it is asked to.
func TestInterruptInAPrompt(t *testing.T) {
	t.Setenv("LLAMA_BATCH_DEBUG", "1")
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		debugLog(t)
		defer lesskv.SetLogOutput(nil)
		batches := 0
		after := func(n int, end func()) {
			batches = 0
			lesskv.SetLogOutput(onLine(func(line string) {
				if !strings.Contains(line, "input batch info") {
					return
				}
				if batches++; batches == n {
					done := make(chan bool)
					go func() { defer close(done); end() }() // a writer must not call the model
					<-done
				}
				if batches > n {
					time.Sleep(time.Millisecond) // a context interrupts from one more goroutine
				}
			}))
		}
		interrupt := func() { lesskv.Interrupt(model) }
		oneByOne := []llama.PredictOption{llama.SetThreads(1), llama.SetBatch(1)}

		after(3, interrupt)
		require.NoError(t, model.Eval(prompt, oneByOne...))
		assert.Equal(t, 3, batches)
		assert.Equal(t, "interrupt", timings(t, model).Stop)
		require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
		assert.Equal(t, 3, timings(t, model).Cached, "and the text goes on from there")

		n := timings(t, model).Prompt + 2
		for at, opts := range map[int][]llama.PredictOption{2: nil, n: {llama.SetNegativePrompt("// No."), llama.SetNegativePromptScale(2)}} {
			require.NoError(t, model.Eval("package other", llama.SetThreads(1)), "or a checkpoint would have the prompt")
			after(at, interrupt)
			assert.Empty(t, predict(t, model, prompt, append(opts, oneByOne...)...))
			assert.Equal(t, at, batches)
			assert.Equal(t, "interrupt", timings(t, model).Stop)
		}

		long := strings.Repeat(prompt+"\n", 40)
		ctx, cancel := context.WithCancel(t.Context())
		after(3, cancel)
		assertSays(t, model.Eval(long, append(oneByOne, lesskv.WithContext(ctx))...), context.Canceled)
		assert.Less(t, batches, timings(t, model).Prompt)
	})
}

func TestSampling(t *testing.T) {
	model := open(t)
	greedy := predict(t, model, prompt)
	t.Run("top-k 1 is greedy", func(t *testing.T) {
		assert.Equal(t, greedy, predict(t, model, prompt, llama.SetTemperature(1.5), llama.SetTopK(1), llama.SetSeed(3)))
	})
	t.Run("so is next to no temperature", func(t *testing.T) {
		assert.Equal(t, greedy, predict(t, model, prompt, llama.SetTemperature(1e-38), llama.SetSeed(3)))
	})
	t.Run("top-p 0 is greedy", func(t *testing.T) {
		assert.Equal(t, greedy, predict(t, model, prompt, llama.SetTemperature(1.5), llama.SetTopP(0), llama.SetSeed(3)))
	})
	t.Run("mirostat", func(t *testing.T) {
		one := predict(t, model, prompt, llama.SetMirostat(1), llama.SetTemperature(1), llama.SetSeed(3))
		assert.Equal(t, one, predict(t, model, prompt, llama.SetMirostat(1), llama.SetTemperature(1), llama.SetSeed(3)))
		assert.NotEqual(t, one, predict(t, model, prompt, llama.SetMirostat(2), llama.SetTemperature(1), llama.SetSeed(3)))
	})
	t.Run("bias", func(t *testing.T) {
		_, tokens, err := model.TokenizeString(" banana")
		require.NoError(t, err)
		last := tokens[len(tokens)-1]
		out := predict(t, model, prompt, llama.SetLogitBias(strconv.Itoa(int(last))+"+1000"), llama.SetTokens(5), llama.SetPenalty(1))
		assert.Equal(t, 5, strings.Count(out+" ", "a"), "the same token five times: %q", out)
	})
	t.Run("penalties", func(t *testing.T) {
		repeated := "x = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx"
		assert.NotEqual(t, predict(t, model, repeated, llama.SetPenalty(1)), predict(t, model, repeated, llama.SetPenalty(5)))
		assert.NotEqual(t, predict(t, model, repeated, llama.SetPenalty(1)), predict(t, model, repeated, llama.SetPenalty(1), llama.SetPresencePenalty(50)))
	})
	t.Run("grammar", func(t *testing.T) {
		out := predict(t, model, prompt, llama.WithGrammar(`root ::= "yes" | "no"`))
		assert.Contains(t, []string{"yes", "no"}, out)
		assert.Equal(t, "eog", timings(t, model).Stop)
	})
	var chain strings.Builder
	for i := range 100000 {
		fmt.Fprintf(&chain, "r%d ::= r%d\n", i, i+1)
	}
	var doubled strings.Builder
	doubled.WriteString("root ::= r0\nr30 ::= [a-z]?\n")
	for i := range 30 {
		fmt.Fprintf(&doubled, "r%d ::= r%d r%d\n", i, i+1, i+1)
	}
	for name, test := range map[string]struct {
		option llama.PredictOption
		kind   error
		says   string
	}{
		"grammar":         {llama.WithGrammar("root ::= ("), lesskv.ErrArgument, "expecting"},
		"nested grammar":  {llama.WithGrammar("root ::= " + strings.Repeat("(", 30000) + `"a"` + strings.Repeat(")", 30000)), lesskv.ErrArgument, "parentheses"},
		"long grammar":    {llama.WithGrammar("root ::= " + strings.Repeat(`"a"? `, 100000)), lesskv.ErrArgument, "repetitions"},
		"huge grammar":    {llama.WithGrammar(`root ::= "` + strings.Repeat("a", 100000) + `"{2000}`), lesskv.ErrArgument, "64 MiB"},
		"doubled grammar": {llama.WithGrammar(doubled.String()), lesskv.ErrArgument, "ambiguous"},
		"chained grammar": {llama.WithGrammar(chain.String()), lesskv.ErrArgument, "rules"},
		"no root":         {llama.WithGrammar(`a ::= "b"`), lesskv.ErrArgument, "root"},
		"bias token":      {llama.SetLogitBias("4096+1"), lesskv.ErrArgument, "4095"},
		"bias value":      {llama.SetLogitBias("1+many"), lesskv.ErrArgument, "TOKEN+BIAS"},
		"batch":           {llama.SetBatch(0), lesskv.ErrArgument, "batch size 0"},
		"extreme penalty": {llama.SetPenalty(1e-38), lesskv.ErrFailed, "logit"},
		"negative":        {llama.SetNegativePromptScale(float32(math.Inf(1))), lesskv.ErrArgument, "negative prompt scale"},
		"NUL stop word":   {llama.SetStopWords("a\x00"), lesskv.ErrArgument, "a stop word"},
		"NUL in grammar":  {llama.WithGrammar("\x00"), lesskv.ErrArgument, "the grammar"},
	} {
		t.Run("wrong "+name, func(t *testing.T) {
			_, err := model.Predict(prompt, test.option)
			assertSays(t, err, test.kind, test.says)
		})
	}
	assert.Equal(t, greedy, predict(t, model, prompt), "errors leave nothing behind")
}

// What is not finite and was to be folded is an error of a kind of its own, with slots of f16, which end at 65,504, and with the default
// type; the model is usable after it.
func TestNotFinite(t *testing.T) {
	data, err := testdata.Read(testdata.Model)
	require.NoError(t, err)
	f, err := gguf.Open(file(t, testdata.Model))
	require.NoError(t, err)
	defer f.Close()
	keys, ok := f.Tensor("blk.3.attn_k.weight")
	require.True(t, ok)
	raw := data[keys.Offset:][:keys.Size]
	for i := 1; i < len(raw); i += 2 {
		raw[i] = raw[i]&0x83 | 0x74 // 16384 and more: the keys are beyond f16
	}
	large := filepath.Join(t.TempDir(), "large.gguf")
	require.NoError(t, os.WriteFile(large, data, 0o644))

	nan := filepath.Join(copied(t, map[string]string{"nan.gguf": testdata.Model}), "nan.gguf") // heads of 64, whose quantised keys are rotated
	require.NoError(t, tinymodels.Spoil(nan, keys.Name, 0))
	narrow := writeTiny(t, "falcon", gguf.F32, 1) // of 32, which are not
	require.NoError(t, tinymodels.Spoil(narrow, "blk.3.attn_qkv.weight", 4*32))
	base, err := weights.ReadModel(narrow)
	require.NoError(t, err)
	adapter := filepath.Join(t.TempDir(), "adapter.gguf")
	require.NoError(t, weights.Random(base, 4, 8, weights.Trained{Policy: "h2o", Heavy: 20, Recent: 21, Ubatch: 32, Context: 256}, 1).Write(adapter))

	for name, test := range map[string]struct {
		model, adapter string
		typ            lesskv.SlotType
	}{
		"f16":                    {large, file(t, testdata.H2O41), lesskv.F16},
		"the default":            {nan, file(t, testdata.H2O41), ""},
		"the default, unrotated": {narrow, adapter, ""},
	} {
		t.Run(name, func(t *testing.T) {
			model := load(t, test.model, llama.SetContext(0), llama.EnableF16Memory,
				lesskv.Enable(lesskv.Config{Keys: test.typ, Values: test.typ, Budget: lesskv.Tokens(41), Adapter: test.adapter}))
			for range 2 {
				err = model.Eval(strings.Repeat("a line of a text;", 20), llama.SetThreads(1))
				assert.ErrorIs(t, err, lesskv.ErrNotFinite)
				assert.ErrorIs(t, err, lesskv.ErrFailed)
				assert.ErrorContains(t, err, "layer 3")
				assert.ErrorContains(t, err, "emptied")
				assert.Zero(t, stats(t, model).Checkpoints)
				assert.NoError(t, model.Eval("a line of a text;", llama.SetThreads(1)), "nothing is folded")
				assert.Equal(t, 1, stats(t, model).Checkpoints)
			}
		})
	}
}

// The adapter is read when the model is loaded, and not again for the second text of a negative prompt.
func TestAdapterIsReadOnce(t *testing.T) {
	dir := copied(t, map[string]string{"a.gguf": testdata.H2O41})
	model := open(t, lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(41), Adapter: dir + "/a.gguf"}))
	opts := []llama.PredictOption{llama.SetNegativePrompt("// No."), llama.SetNegativePromptScale(2), llama.SetTokens(60)}
	want := predict(t, model, prompt, opts...)
	require.NoError(t, os.Remove(dir+"/a.gguf"))
	assert.Equal(t, want, predict(t, model, prompt, opts...))
}

func TestAfterFree(t *testing.T) {
	model := open(t)
	model.Free()
	model.Free()
	_, err := model.Predict(prompt)
	assertSays(t, err, lesskv.ErrArgument, "freed")
	_, _, err = model.TokenizeString(prompt)
	assertSays(t, err, lesskv.ErrArgument, "freed")
	assertSays(t, model.Eval(prompt), lesskv.ErrArgument, "freed")
	_, err = lesskv.Stats(model)
	assertSays(t, err, lesskv.ErrArgument, "freed")
	assert.ErrorContains(t, model.SaveState("x"), "freed")
	lesskv.Interrupt(model)
}
