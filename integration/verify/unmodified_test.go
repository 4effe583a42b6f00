package verify

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/worker"
)

// A report says what was measured against: the release, or what somebody built in its place.
func TestUnmodified(t *testing.T) {
	path, err := worker.Path(worker.Unmodified)
	require.NoError(t, err)
	assert.Contains(t, unmodified(path), "llama.cpp ")

	dir := t.TempDir()
	path = filepath.Join(dir, "bin", "lesskv-worker-unmodified")
	const built = ", built from the same sources with the same compiler and flags"
	assert.Equal(t, "llama.cpp of an unknown version"+built, unmodified(path))
	header := filepath.Join(dir, "unmodified", "src", "llama-version.h")
	require.NoError(t, os.MkdirAll(filepath.Dir(header), 0o755))
	for stamp, want := range map[string]string{"llama.cpp v0.5.0": "llama.cpp v0.5.0 as released", "llama.cpp 0.6.1 (untested)": "llama.cpp 0.6.1 (untested)"} {
		require.NoError(t, os.WriteFile(header, []byte("#define LLAMA_VERSION \"x\"\n#define LLAMA_COMMIT \""+stamp+"\"\n"), 0o644))
		assert.Equal(t, want+built, unmodified(path))
	}
}
