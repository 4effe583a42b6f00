package lesskv_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/lock"
)

// A state that another model loads goes on as the first would have: with the text that was there, from the cache.
func TestSaveAndLoadState(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		path := filepath.Join(t.TempDir(), "state")
		require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
		require.NoError(t, model.SaveState(path))
		longer := prompt + "\n\tvar err error\n"
		want := predict(t, model, longer, llama.SetTokens(100))
		cached := timings(t, model).Cached
		require.Positive(t, cached)

		other := open(t, cache)
		predict(t, other, "package other")
		require.NoError(t, other.LoadState(path))
		assert.Equal(t, want, predict(t, other, longer, llama.SetTokens(100)))
		assert.Equal(t, cached, timings(t, other).Cached)

		require.NoError(t, other.LoadState(path), "again")
		assert.Equal(t, want, predict(t, other, longer, llama.SetTokens(100)))
		entries, err := os.ReadDir(filepath.Dir(path))
		require.NoError(t, err)
		assert.Len(t, entries, 1, "nothing but the state")
	})
}

// What is refused says why and changes nothing.
func TestLoadStateRefused(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	model := open(t, sparse(64))
	require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
	require.NoError(t, model.SaveState(in("good")))
	good, err := os.ReadFile(in("good"))
	require.NoError(t, err)
	for name, opts := range map[string][]llama.ModelOption{
		"off":            {lesskv.Disable()},
		"another budget": {sparse(65)},
		"another policy": {lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(64), Policy: lesskv.Peak, Adapter: lesskv.NoAdapter})},
		"with kernels":   {lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(64), Adapter: file(t, testdata.H2O102)})},
		"another batch":  {sparse(64), llama.SetNBatch(64)},
		"another base":   {sparse(64), llama.WithRopeFreqBase(20000)},
	} {
		foreign := open(t, opts...)
		require.NoError(t, foreign.Eval(prompt, llama.SetThreads(1)))
		require.NoError(t, foreign.SaveState(in(name)))
	}
	require.NoError(t, os.WriteFile(in("empty"), nil, 0o644))
	require.NoError(t, os.WriteFile(in("short"), good[:len(good)/2], 0o644))
	require.NoError(t, os.WriteFile(in("text"), []byte("no state at all, but long enough for a header"), 0o644))
	flipped := append([]byte{}, good...)
	flipped[14] ^= 0x40 // a token's number
	require.NoError(t, os.WriteFile(in("a token that is none"), flipped, 0o644))
	older := append([]byte{}, good...)
	require.EqualValues(t, 3, older[4], "the format's version")
	older[4] = 2
	require.NoError(t, os.WriteFile(in("an older llama.cpp's"), older, 0o644))

	for name, says := range map[string]string{
		"off": "not the state of a LESS cache", "another budget": "budget is 65 there and 64", "another policy": "policy is peak there and h2o",
		"with kernels": "adapter's SHA-256", "another batch": "n_ubatch is 64 there", "another base": "rope_freq_base is 20000 there",
		"an older llama.cpp's": "version", "empty": "end of file", "short": "end of file", "text": "magic", "a token that is none": "not a state of this model",
		"missing": "No such file", ".": "is not a file",
	} {
		t.Run(name, func(t *testing.T) {
			err := model.LoadState(in(name))
			kind := lesskv.ErrState
			if name == "missing" || name == "." {
				kind = lesskv.ErrFailed
			}
			assertSays(t, err, kind, "error while loading state: ")
			assert.Contains(t, err.Error(), says)
			predict(t, model, prompt+" x", llama.SetTokens(1))
			assert.Positive(t, timings(t, model).Cached, "the text that was there still is")
			require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
		})
	}
	assert.ErrorContains(t, model.SaveState(in("no such folder/state")), "error while saving state: ")
	assert.ErrorContains(t, model.SaveState(dir), "error while saving state: ")
	assertSays(t, model.LoadState("a\x00b"), lesskv.ErrArgument, "NUL")
	assertSays(t, model.SaveState("a\x00b"), lesskv.ErrArgument, "NUL")

	off := open(t, lesskv.Disable())
	require.NoError(t, off.Eval(prompt, llama.SetThreads(1)))
	for _, name := range []string{"good", "short", "text", "empty"} {
		assert.Error(t, off.LoadState(in(name)), name)
	}
	predict(t, off, prompt+" x", llama.SetTokens(1))
	assert.Positive(t, timings(t, off).Cached)
}

// A state of the zero Config as it was once is refused by the one that it is now, and read with the settings that it meant.
func TestStateOfTheEarlierDefault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	earlier := lesskv.Enable(lesskv.Config{Policy: lesskv.H2O, Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Share(0.05), Adapter: lesskv.NoAdapter})
	model := open(t, earlier)
	require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
	require.NoError(t, model.SaveState(path))
	err := open(t, lesskv.Enable(lesskv.Config{Adapter: lesskv.NoAdapter})).LoadState(path)
	require.ErrorIs(t, err, lesskv.ErrState)
	assert.ErrorContains(t, err, "policy is h2o there and peak")
	require.NoError(t, open(t, earlier).LoadState(path))
}

// With LESS a state knows its model, and damage anywhere in its cache is seen.
func TestLoadStateKnowsItsModel(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	var model [3]*llama.LLama
	for i := range model {
		model[i] = load(t, writeTiny(t, "llama", gguf.F16, uint64(i+1)/2), llama.SetContext(0), sparse(40))
		require.NoError(t, model[i].Eval(strings.Repeat(prompt, 4), llama.SetThreads(1)))
	}
	require.NoError(t, model[1].SaveState(state))
	assertSays(t, model[0].LoadState(state), lesskv.ErrState, "the model's fingerprint")
	require.NoError(t, model[2].LoadState(state), "the same model")

	good, err := os.ReadFile(state)
	require.NoError(t, err)
	for at := len(good) - 1; at > len(good)/2; at -= len(good) / 50 {
		bad := append([]byte{}, good...)
		bad[at] ^= 4
		require.NoError(t, os.WriteFile(state, bad, 0o644))
		assert.Error(t, model[2].LoadState(state), "byte %d", at)
	}
}

// What SaveState replaces keeps its permissions, and a link to it its place; what is no file is not replaced.
func TestSaveStateKeepsWhatTheFileIs(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	model := open(t)
	require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))

	require.NoError(t, os.WriteFile(in("private"), nil, 0o600))
	require.NoError(t, os.WriteFile(in("shared"), nil, 0o644))
	require.NoError(t, os.Chmod(in("shared"), 0o664))
	require.NoError(t, os.WriteFile(in("closed"), nil, 0))
	require.NoError(t, os.Symlink("private", in("link")))
	require.NoError(t, model.SaveState(in("link")))
	require.NoError(t, model.SaveState(in("shared")))
	require.NoError(t, model.SaveState(in("closed")))
	predict(t, model, prompt, llama.SetTokens(1), llama.SetPathPromptCache(in("link")), llama.EnablePromptCacheAll)
	info, err := os.Lstat(in("link"))
	require.NoError(t, err)
	assert.Equal(t, fs.ModeSymlink, info.Mode().Type())
	for name, mode := range map[string]fs.FileMode{"private": 0o600, "shared": 0o664, "closed": 0} {
		info, err := os.Lstat(in(name))
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode(), name)
		assert.Positive(t, info.Size(), name)
	}

	require.NoError(t, os.Symlink("nothing", in("dangling")))
	require.NoError(t, os.Symlink("loop", in("loop")))
	require.NoError(t, syscall.Mkfifo(in("pipe"), 0o600))
	for name, says := range map[string]string{"dangling": "No such file", "loop": "symbolic links", "pipe": "is not a file", ".": "is not a file"} {
		before, err := os.Lstat(in(name))
		require.NoError(t, err)
		assertSays(t, model.SaveState(in(name)), lesskv.ErrFailed, says)
		after, err := os.Lstat(in(name))
		require.NoError(t, err)
		assert.Equal(t, before.Mode(), after.Mode(), name)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 7, "no half of a file is left")
}

// What a model was loaded from is not replaced by its state, whatever it is called: it may be mapped, and the app's next start needs it.
func TestSaveStateReplacesNoModel(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	inputs := map[string]string{"model.gguf": testdata.Model, "adapter.gguf": testdata.H2O41}
	for name, of := range inputs {
		data, err := os.ReadFile(file(t, of))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(in(name), data, 0o644))
	}
	require.NoError(t, os.Symlink("model.gguf", in("symlink")))
	require.NoError(t, os.Link(in("adapter.gguf"), in("hardlink")))
	model := load(t, in("model.gguf"), lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(41), Adapter: in("adapter.gguf")}))
	require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
	for _, name := range []string{"model.gguf", "adapter.gguf", "symlink", "hardlink"} {
		assertSays(t, model.SaveState(in(name)), lesskv.ErrArgument, "a state does not replace it")
		_, err := model.Predict(prompt, llama.SetTokens(1), llama.SetPathPromptCache(in(name)), llama.EnablePromptCacheAll)
		assert.Error(t, err, name)
	}
	for name, of := range inputs {
		want, err := os.ReadFile(file(t, of))
		require.NoError(t, err)
		got, err := os.ReadFile(in(name))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want, got), name)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 4, "no half of a file is left")
}

// llama.cpp made room for as many cells as a file claims before it read one. There are two such numbers where some layers have a
// sliding window.
func TestLoadStateBelievesNoNumber(t *testing.T) {
	model := load(t, writeTiny(t, "gemma3", gguf.F16, 1), llama.SetContext(0), lesskv.Disable())
	require.NoError(t, model.Eval("x", llama.SetThreads(1)))
	state := filepath.Join(t.TempDir(), "state")
	require.NoError(t, model.SaveState(state))
	good, err := os.ReadFile(state)
	require.NoError(t, err)
	tokens := binary.LittleEndian.Uint32(good[8:])
	refused := 0
	for i := 12 + 4*tokens; int(i) < len(good); i += 4 {
		if binary.LittleEndian.Uint32(good[i:]) != tokens {
			continue
		}
		bad := append([]byte{}, good...)
		binary.LittleEndian.PutUint32(bad[i:], 1<<30)
		require.NoError(t, os.WriteFile(state, bad, 0o644))
		if err := model.LoadState(state); err != nil && strings.Contains(err.Error(), "more cells than the cache") {
			refused++
		}
	}
	assert.Equal(t, 2, refused)
}

func TestPromptCache(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		long := prompt + "\n// " // several tokens more
		for range 8 {
			long += "and so on, "
		}
		model := open(t, cache)
		path := filepath.Join(t.TempDir(), "cache")
		with := func(text string, opts ...llama.PredictOption) string {
			return predict(t, model, text, append([]llama.PredictOption{llama.SetPathPromptCache(path)}, opts...)...)
		}
		read := func() string {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			return string(data)
		}

		t.Run("read only, and not there", func(t *testing.T) {
			with(long, llama.EnablePromptCacheRO, llama.EnablePromptCacheAll)
			assert.NoFileExists(t, path)
		})
		first := with(long)
		n := timings(t, model).Prompt
		assert.Zero(t, timings(t, model).Cached)
		saved := read()
		t.Run("the same prompt", func(t *testing.T) {
			assert.Equal(t, first, with(long))
			assert.Equal(t, n-1, timings(t, model).Cached)
			assert.True(t, saved == read(), "nothing new")
		})
		t.Run("another process", func(t *testing.T) {
			model := open(t, cache)
			assert.Equal(t, first, predict(t, model, long, llama.SetPathPromptCache(path)))
			assert.Equal(t, n-1, timings(t, model).Cached)
		})
		t.Run("no prompt", func(t *testing.T) {
			with("")
			assert.Equal(t, n-1, timings(t, model).Prompt, "the file's")
			assert.True(t, saved == read(), "nothing new")
		})
		t.Run("another prompt, read only", func(t *testing.T) {
			other := with("package main\n", llama.EnablePromptCacheRO)
			assert.True(t, saved == read())
			assert.Equal(t, other, with("package main\n", llama.EnablePromptCacheRO))
		})
		t.Run("all", func(t *testing.T) {
			require.NoError(t, os.Remove(path))
			text := with(long, llama.EnablePromptCacheAll)
			assert.Equal(t, first, text)
			assert.Equal(t, first, with(long, llama.EnablePromptCacheRO))
			cached := 0
			if !stats(t, model).Enabled {
				cached = n - 1 // LESS does not step back
			}
			assert.Equal(t, cached, timings(t, model).Cached)
			assert.Greater(t, len(read()), 0)
			with(long+text+"\n\nfunc", llama.EnablePromptCacheAll)
			g := timings(t, model)
			assert.Greater(t, g.Cached, n, "the reply too")
			assert.Equal(t, first, with(long), "a step back")
		})
		t.Run("damaged", func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, []byte("no state at all, but long enough for a header"), 0o644))
			out, err := model.Predict(long, llama.SetThreads(1), llama.SetPathPromptCache(path))
			assert.Empty(t, out)
			assertSays(t, err, lesskv.ErrState, path)
			assert.Equal(t, "no state at all, but long enough for a header", read(), "somebody's file")
		})
		t.Run("cannot be written", func(t *testing.T) {
			_, err := model.Predict(long, llama.SetThreads(1), llama.SetPathPromptCache(filepath.Join(path, "below a file")))
			assertSays(t, err, lesskv.ErrFailed, "below a file")
		})
	})
}

// What a process that was killed left beside a state is taken away by the next save, and waits for no lock; the lock of one that
// lives is waited for.
func TestStateAfterAKilledSave(t *testing.T) {
	model := open(t)
	require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
	path := filepath.Join(t.TempDir(), "state")
	part := fmt.Sprintf("%s.%d.part", path, os.Getuid())
	require.NoError(t, os.WriteFile(part, make([]byte, 1<<20), 0o600))
	require.NoError(t, model.SaveState(path))
	require.NoFileExists(t, part)
	require.NoError(t, model.LoadState(path))

	other, err := lock.Try(part)
	require.NoError(t, err)
	saved := make(chan error)
	go func() { saved <- model.SaveState(path) }()
	select {
	case err := <-saved:
		t.Fatalf("saved beside another: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, os.Rename(part, path)) // as the other ends
	require.NoError(t, other.Release())
	require.NoError(t, <-saved)
	require.NoError(t, model.LoadState(path))
	require.NoFileExists(t, part)
}

// A prompt cache that another configuration wrote, another version, or upstream, is evaluated anew and replaced; one that may only be read
// is left alone. The log says so once.
func TestPromptCacheOfAnotherConfiguration(t *testing.T) {
	kernels := lesskv.Enable(lesskv.Config{Keys: lesskv.F16, Values: lesskv.F16, Budget: lesskv.Tokens(64), Adapter: file(t, testdata.H2O102)})
	caches := map[string]llama.ModelOption{"off": lesskv.Disable(), "sparse": sparse(64), "another budget": sparse(65), "LESS": kernels}
	files := map[string][]byte{"cut short": nil, "another version": []byte("qsgg\x63\x00\x00\x00"), "upstream's": []byte("nsgg\x01\x00\x00\x00and so on")}
	want := map[string]string{}
	path := filepath.Join(t.TempDir(), "cache")
	for name, cache := range caches {
		os.Remove(path)
		want[name] = predict(t, open(t, cache), prompt, llama.SetPathPromptCache(path))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		files[name] = data
	}
	files["cut short"] = files["off"][:len(files["off"])/2]
	for name, cache := range caches {
		for of, data := range files {
			if of == name {
				continue
			}
			t.Run(name+", of "+of, func(t *testing.T) {
				lines := captureLog(t)
				model := open(t, cache)
				require.NoError(t, os.WriteFile(path, data, 0o644))
				for range 3 {
					assert.Equal(t, want[name], predict(t, model, prompt, llama.SetPathPromptCache(path), llama.EnablePromptCacheRO))
					assert.Zero(t, timings(t, model).Cached)
				}
				got, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.True(t, string(data) == string(got), "left alone")
				assert.Equal(t, 1, strings.Count(lines.String(), "the prompt cache cannot serve, and is left alone"), lines)

				for range 3 {
					assert.Equal(t, want[name], predict(t, model, prompt, llama.SetPathPromptCache(path)))
				}
				assert.Positive(t, timings(t, model).Cached, "replaced")
				assert.Equal(t, 1, strings.Count(lines.String(), "the prompt cache cannot serve, and will be replaced"), lines)
			})
		}
	}
}

// A state that is cut short is refused wherever that is, and what was there stays.
func TestStateCutShort(t *testing.T) {
	for name, cache := range map[string]llama.ModelOption{"off": lesskv.Disable(), "LESS": sparse(64)} {
		t.Run(name, func(t *testing.T) {
			model := open(t, cache)
			require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
			path, again := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "again")
			require.NoError(t, model.SaveState(path))
			whole, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, cut := range []int{1, 2, 5, 100, 3000, len(whole) / 2, len(whole) - 20, len(whole) - 12, len(whole) - 5, len(whole)} {
				require.NoError(t, os.WriteFile(path, whole[:len(whole)-cut], 0o644))
				assertSays(t, model.LoadState(path), lesskv.ErrState, "error while loading state: ")
				require.NoError(t, model.SaveState(again))
				now, err := os.ReadFile(again)
				require.NoError(t, err)
				assert.True(t, string(whole) == string(now), "without %d bytes", cut)
			}
		})
	}
}
