package devicetest

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

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
