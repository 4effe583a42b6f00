package worker_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lesskv/lesskv/integration/worker"
)

func TestServers(t *testing.T) {
	dealt, err := worker.Servers("a:1,a:2,b:1,b:2", 2)
	assert.NoError(t, err)
	assert.Equal(t, []string{"a:1,a:2", "b:1,b:2"}, dealt)
	dealt, err = worker.Servers("", 2)
	assert.NoError(t, err)
	assert.Equal(t, []string{"", ""}, dealt)
	for _, list := range []string{"a:1", "a:1,a:2,b:1"} {
		_, err = worker.Servers(list, 2)
		assert.ErrorContains(t, err, "for 2 processes: want as many for each")
	}
}
