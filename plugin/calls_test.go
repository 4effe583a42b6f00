package lesskv_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lesskv "github.com/lesskv/lesskv/plugin"
)

// Several models at once, each from a goroutine of its own, write what they write alone.
func TestModelsInParallel(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		want := predict(t, open(t, cache), prompt)
		var wg sync.WaitGroup
		for range 3 {
			model := open(t, cache)
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 3 {
					out, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(24))
					assert.NoError(t, err)
					assert.Equal(t, want, out)
				}
			}()
		}
		wg.Wait()
	})
}

// One model from many goroutines: a call is served as if it were alone, or refused.
func TestModelFromManyGoroutines(t *testing.T) {
	model := open(t, sparse(64))
	want := predict(t, model, prompt)
	var wg sync.WaitGroup
	var mu sync.Mutex
	served, refused := 0, 0
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 20 {
				tokens := 0
				out, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(24),
					llama.SetTokenCallback(func(string) bool { tokens++; return true }))
				_, _, terr := model.TokenizeString(prompt)
				assert.NoError(t, terr)
				if i == 0 {
					_, err := lesskv.Stats(model)
					assert.True(t, err == nil || errors.Is(err, lesskv.ErrBusy))
				}
				mu.Lock()
				if err == nil {
					served++
					assert.Equal(t, want, out)
					assert.Equal(t, 24, tokens, "the callback of this call")
				} else {
					refused++
					assert.ErrorIs(t, err, lesskv.ErrBusy)
					assert.Zero(t, tokens)
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	assert.Positive(t, served)
	t.Log(served, "calls were served,", refused, "refused")
}

// The callback of a call that is refused replaced the running call's.
func TestRefusedCallKeepsItsCallback(t *testing.T) {
	model := open(t)
	outer := 0
	predict(t, model, prompt, llama.SetTokens(5), llama.SetTokenCallback(func(string) bool {
		outer++
		_, err := model.Predict("x", llama.SetTokenCallback(func(string) bool { t.Error("refused, but called"); return true }))
		assert.ErrorIs(t, err, lesskv.ErrBusy)
		return true
	}))
	assert.Equal(t, 5, outer)
}

func TestFreeWhileServing(t *testing.T) {
	t.Run("from the callback", func(t *testing.T) {
		model := open(t)
		n := 0
		out, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(50), llama.SetTemperature(0), llama.SetTokenCallback(func(string) bool {
			if n++; n == 3 {
				model.Free()
			}
			return true
		}))
		assert.NoError(t, err)
		assert.NotEmpty(t, out)
		assert.Equal(t, 3, n, "it ends after the token that it is at")
		_, err = model.Predict(prompt)
		assertSays(t, err, lesskv.ErrArgument, "freed")
	})
	t.Run("from elsewhere", func(t *testing.T) {
		model := open(t)
		var once sync.Once
		started := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(-1), llama.IgnoreEOS,
				llama.SetTokenCallback(func(string) bool { once.Do(func() { close(started) }); return true }))
			assert.NoError(t, err)
		}()
		<-started
		model.Free()
		<-done
	})
}

func TestCallbackPanics(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		want := predict(t, model, prompt)
		assert.PanicsWithValue(t, "of the app's", func() {
			predict(t, model, prompt, llama.SetTokenCallback(func(string) bool { panic("of the app's") }))
		})
		assert.Equal(t, want, predict(t, model, prompt), "the model is unharmed")
	})
}

// A callback may end its goroutine, as require does in a test: the caller's ends, and the model goes on.
func TestCallbackEndsItsGoroutine(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		want := predict(t, model, prompt)
		done := make(chan bool)
		go func() {
			defer close(done)
			model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(24), llama.SetTemperature(0), llama.SetTokenCallback(func(string) bool { runtime.Goexit(); return true }))
			t.Error("Predict returned")
		}()
		<-done
		assert.Equal(t, want, predict(t, model, prompt), "the model is unharmed")
	})
}

// A broken writer of log lines, which C++ calls.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { panic("of the writer's") }

// A line that is too long for a warning is cut, and ends: the next one is a line of its own.
func TestLongLogLine(t *testing.T) {
	model := open(t)
	said := captureLog(t)
	predict(t, model, prompt, llama.SetLogitBias(strings.Repeat("x", 5000)), llama.SetTokens(1))
	lines := strings.SplitAfter(said.String(), "\n")
	require.Len(t, lines, 2, said.String())
	assert.Contains(t, lines[0], "lesskv: the logit bias \"xxx")
	assert.Empty(t, lines[1])
}

func TestLogWriterPanics(t *testing.T) {
	model := open(t)
	want := predict(t, model, prompt)
	stderr := os.Stderr
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	os.Stderr = write
	lesskv.SetLogOutput(brokenWriter{})
	again := predict(t, model, prompt, llama.Debug)
	os.Stderr = stderr
	require.NoError(t, write.Close())
	lesskv.SetLogOutput(nil)
	said, err := io.ReadAll(read)
	require.NoError(t, err)
	assert.Equal(t, want, again)
	assert.Contains(t, string(said), "of the writer's")
	assert.Contains(t, string(said), "predict: prompt", "the line is not lost")
	assert.Equal(t, want, predict(t, model, prompt), "the model is unharmed")
}

// A context that ends when the call is over anyway, or has failed, is not why it ended.
func TestContextEndsTooLate(t *testing.T) {
	model := open(t)
	want := predict(t, model, prompt)
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	out, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(24), lesskv.WithContext(ctx),
		llama.SetTokenCallback(func(string) bool {
			if n++; n == 24 {
				cancel()
			}
			return true
		}))
	assert.NoError(t, err)
	assert.Equal(t, want, out)

	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "cache"), 0o755))
	ctx, cancel = context.WithCancel(t.Context())
	out, err = model.Predict(prompt, llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(1), lesskv.WithContext(ctx),
		llama.SetPathPromptCache(filepath.Join(dir, "cache", "file")), llama.EnablePromptCacheAll,
		llama.SetTokenCallback(func(string) bool {
			cancel()
			return assert.NoError(t, os.RemoveAll(filepath.Join(dir, "cache")))
		}))
	assertSays(t, err, lesskv.ErrFailed, "cannot be written")
	assert.NotEmpty(t, out)
}

func TestContextEndsACall(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		want := predict(t, model, prompt)

		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		out, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(1500), llama.IgnoreEOS, llama.SetTemperature(0), lesskv.WithContext(ctx),
			llama.SetTokenCallback(func(string) bool {
				if n++; n == 5 {
					cancel()
				}
				return true
			}))
		assertSays(t, err, context.Canceled)
		assert.NotEmpty(t, out)
		assert.Less(t, n, 1500)
		assert.Equal(t, "interrupt", timings(t, model).Stop)

		_, err = model.Predict(prompt, lesskv.WithContext(ctx))
		assert.ErrorIs(t, err, context.Canceled, "not begun")
		assert.ErrorIs(t, model.Eval(prompt, lesskv.WithContext(ctx)), context.Canceled)

		late, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer stop()
		_, err = model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(1500), llama.IgnoreEOS, lesskv.WithContext(late))
		assert.ErrorIs(t, err, context.DeadlineExceeded)

		assert.Equal(t, want, predict(t, model, prompt, lesskv.WithContext(t.Context())), "the next call is complete")
	})
}

// Upstream freed the backend after every Predict and rewound counters without touching the cache.
func TestManyPrompts(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		prompts := []string{prompt, "package main\n", "// Package http", "type T struct {\n\tx int\n"}
		want := map[string]string{}
		for _, p := range prompts {
			want[p] = predict(t, open(t, cache), p, llama.SetTokens(6))
		}
		calls := 500
		if testing.Short() {
			calls = 50
		}
		for i := range calls {
			p := prompts[i%len(prompts)]
			require.Equal(t, want[p], predict(t, model, p, llama.SetTokens(6)), "call %d", i)
		}
	})
}
