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

func TestLogTicks(t *testing.T) {
	for _, test := range []struct {
		lo, hi float64
		want   []string
	}{
		{.0035, .7, []string{"0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"}},
		{.001, .3, []string{"0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2"}},
		{1.9, 4.5, []string{"2", "3", "4"}},
		{90, 2100, []string{"100", "200", "500", "1000", "2000"}},
		{5.1, 5.9, []string{"5.1", "5.49", "5.9"}},
	} {
		var labels []string
		last := 0.0
		for _, x := range (LogTicks{}).Ticks(test.lo, test.hi) {
			assert.Greater(t, x.Value, last)
			assert.GreaterOrEqual(t, x.Value, test.lo)
			assert.LessOrEqual(t, x.Value, test.hi)
			labels, last = append(labels, x.Label), x.Value
		}
		assert.Equal(t, test.want, labels)
	}
}

func TestIntegerTicks(t *testing.T) {
	for _, test := range []struct {
		lo, hi, first, step float64
		n                   int
	}{
		{0, 5, 0, 1, 6}, {0, 8, 0, 1, 9}, {3, 12, 4, 2, 5}, {236, 2048, 500, 500, 4}, {0, 2048, 0, 500, 5}, {0, 32768, 0, 5000, 7}, {0, 1e6, 0, 200000, 6},
	} {
		ticks := IntegerTicks{}.Ticks(test.lo, test.hi)
		assert.Len(t, ticks, test.n, test)
		assert.Equal(t, test.first, ticks[0].Value, test)
		assert.Equal(t, test.step, ticks[1].Value-ticks[0].Value, test)
	}
}
