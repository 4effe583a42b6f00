package picture

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
)

// The end of a name is the picture's format.
func TestRow(t *testing.T) {
	for name, begins := range map[string]string{"a.png": "\x89PNG\r\n", "a.svg": "<?xml"} {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, Row(path, 4*vg.Inch, 2*vg.Inch, plot.New(), plot.New()))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, begins, string(data[:len(begins)]), name)
	}
}

func TestContextTicks(t *testing.T) {
	assert.Equal(t, plot.ConstantTicks{{Value: 1000, Label: "1000"}, {Value: 2048, Label: "2k"}}, ContextTicks([]int{0, 1000, 2048}))
}
