package devicetest

import (
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

// On a GPU the tests compare attention in f32, which cuBLAS would round to TF32, and Vulkan's shaders to f16, and the CPU computes by itself
// what they compare with.
func TestLocalDevices(t *testing.T) {
	for _, kind := range []string{"local", "software"} {
		t.Setenv("LESSKV_TEST_DEVICES", kind)
		t.Setenv("NVIDIA_TF32_OVERRIDE", "1")
		for _, name := range Float32 {
			t.Setenv(name, "")
		}
		t.Setenv("GGML_OP_OFFLOAD_MIN_BATCH", "")
		all := All(t)
		assert.True(t, all[0].Rounds())
		assert.Equal(t, kind == "software", all[0].Software)
		assert.Equal(t, "0", os.Getenv("NVIDIA_TF32_OVERRIDE"))
		for _, name := range Float32 {
			assert.Equal(t, "1", os.Getenv(name), name)
		}
		assert.Equal(t, "1000000", os.Getenv("GGML_OP_OFFLOAD_MIN_BATCH"))
	}
}

// Ports that two tests ask for at the same time are not one. Without free's memory the system names a few of these twice.
func TestFree(t *testing.T) {
	var seen sync.Map
	var tests sync.WaitGroup
	for range 4 {
		tests.Add(1)
		go func() {
			defer tests.Done()
			for range 500 {
				address := free(t)
				_, again := seen.LoadOrStore(address, true)
				assert.False(t, again, address)
			}
		}()
	}
	tests.Wait()
}
