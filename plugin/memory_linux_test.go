package lesskv_test

import (
	"os"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
)

// Whether the model's file is mapped, and whether it is locked, as the kernel has it.
func TestMapAndLock(t *testing.T) {
	path := copied(t, map[string]string{"mapped.gguf": testdata.Model}) + "/mapped.gguf"
	look := func(opts ...llama.ModelOption) (mapped, locked bool) {
		model, err := llama.New(path, opts...)
		require.NoError(t, err)
		defer model.Free()
		maps, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		status, err := os.ReadFile("/proc/self/status")
		require.NoError(t, err)
		_, locks, _ := strings.Cut(string(status), "VmLck:")
		locks, _, _ = strings.Cut(locks, "kB")
		return strings.Contains(string(maps), path), strings.TrimSpace(locks) != "0"
	}
	mapped, locked := look()
	assert.True(t, mapped, "as upstream has it")
	assert.False(t, locked)
	mapped, _ = look(llama.SetMMap(false))
	assert.False(t, mapped)
	mapped, locked = look(llama.EnableMLock)
	assert.True(t, mapped)
	if !locked {
		t.Skip("this system locks no memory for us: llama.cpp warns and goes on")
	}
}
