package lesskv_test

import (
	"bytes"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// A disk that is full at the first byte, in the middle, or at the last bytes, which llama.cpp leaves to fclose: the state that
// was there stays. No file may grow beyond a limit here, which a write finds out as it does a full disk.
func TestStateOnAFullDisk(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		path := filepath.Join(t.TempDir(), "state")
		require.NoError(t, model.Eval("package other", llama.SetThreads(1)))
		require.NoError(t, model.SaveState(path))
		before, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
		whole := filepath.Join(t.TempDir(), "state")
		require.NoError(t, model.SaveState(whole))
		info, err := os.Stat(whole)
		require.NoError(t, err)

		for _, room := range []int64{0, info.Size() / 2, info.Size() - 1} {
			limitFiles(t, room, func() {
				assertSays(t, model.SaveState(path), lesskv.ErrFailed, path)
				_, err := model.Predict(prompt+"\n\tx", llama.SetThreads(1), llama.SetTokens(1), llama.SetPathPromptCache(path), llama.EnablePromptCacheAll)
				assertSays(t, err, lesskv.ErrFailed, path, "cannot be written")
			})
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.True(t, string(before) == string(after), "the state that was there, with room for %d bytes", room)
			entries, err := os.ReadDir(filepath.Dir(path))
			require.NoError(t, err)
			assert.Len(t, entries, 1, "no half of a file is left")
		}
	})
}

// A disk that may only be read: a state is not written, as an error says, and what is there stays, and serves.
func TestStateOnAReadOnlyDisk(t *testing.T) {
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		disk := t.TempDir()
		if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, ""); err != nil {
			t.Skip("mounting a disk of its own takes root:", err)
		}
		t.Cleanup(func() { assert.NoError(t, syscall.Unmount(disk, 0)) })
		path := filepath.Join(disk, "state")
		require.NoError(t, model.Eval(prompt, llama.SetThreads(1)))
		require.NoError(t, model.SaveState(path))
		before, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, syscall.Mount("", disk, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))

		longer := prompt + "\n\tx"
		for _, to := range []string{path, filepath.Join(disk, "another")} {
			assertSays(t, model.SaveState(to), lesskv.ErrFailed, to, "Read-only file system")
			_, err := model.Predict(longer, llama.SetThreads(1), llama.SetTokens(1), llama.SetPathPromptCache(to))
			assertSays(t, err, lesskv.ErrFailed, to, "Read-only file system")
		}
		predict(t, model, longer, llama.SetPathPromptCache(path), llama.EnablePromptCacheRO)
		assert.Positive(t, timings(t, model).Cached)
		require.NoError(t, model.LoadState(path))
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.True(t, string(before) == string(after))
		entries, err := os.ReadDir(disk)
		require.NoError(t, err)
		assert.Len(t, entries, 1)
	})
}

// A pipe is no prompt cache: opening it would wait for a writer.
func TestPromptCacheIsAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	_, err := open(t).Predict(prompt, llama.SetThreads(1), llama.SetPathPromptCache(path))
	assertSays(t, err, lesskv.ErrFailed, "is not a file")
}

// Nor is it an adapter.
func TestAdapterIsAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	_, err := llama.New(file(t, testdata.Model), lesskv.Enable(lesskv.Config{Adapter: path}))
	assertSays(t, err, lesskv.ErrAdapter, "is not a file")
}

// A file that is refused is closed, also where llama.cpp would have given up in the middle of it: at an alignment that is no
// number.
func TestRefusedFilesAreClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, gguf.WriteFile(path, []gguf.KeyValue{{Key: "general.architecture", Value: "llama"}, {Key: "general.alignmen?", Value: "32"}}, nil))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, bytes.Replace(data, []byte("alignmen?"), []byte("alignment"), 1), 0o644))
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	open(t) // what a process opens once
	before := files()
	for range 5 {
		_, err = llama.New(path)
		assertSays(t, err, lesskv.ErrModel, "must be of type u32")
		_, err = llama.New(file(t, testdata.Model), llama.SetLoraAdapter(path))
		assert.ErrorIs(t, err, lesskv.ErrModel)
	}
	assert.Equal(t, before, files())
}

// limitFiles runs f where no file may be larger than size.
func limitFiles(t *testing.T, size int64, f func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var old syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	limit := old
	limit.Cur = uint64(size)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
	defer func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)) }()
	f()
}
