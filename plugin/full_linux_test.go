package lesskv_test

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lesskv "github.com/lesskv/lesskv/plugin"
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
				assert.Error(t, err)
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

// A pipe is no prompt cache: opening it would wait for a writer.
func TestPromptCacheIsAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	_, err := open(t).Predict(prompt, llama.SetThreads(1), llama.SetPathPromptCache(path))
	assertSays(t, err, lesskv.ErrFailed, "is not a file")
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
