package devicetest

import (
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

// On a GPU the tests compare attention in f32, which cuBLAS would round to TF32.
func TestLocalDevicesMultiplyF32(t *testing.T) {
	t.Setenv("LESSKV_TEST_DEVICES", "local")
	t.Setenv("NVIDIA_TF32_OVERRIDE", "1")
	all := All(t)
	assert.True(t, all[0].Rounds())
	assert.Equal(t, "0", os.Getenv("NVIDIA_TF32_OVERRIDE"))
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
