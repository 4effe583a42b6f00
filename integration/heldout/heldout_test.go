package heldout

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
)

// What is tuned and trained on has no passage of what is measured. Short runs of lines, as of closing braces and of errors that are returned, are in all
// Go code.
func TestDisjoint(t *testing.T) {
	const run = 6 // lines that are not blank
	passages := func(text string) (all []string) {
		var lines []string
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
		for i := 0; i+run <= len(lines); i++ {
			all = append(all, strings.Join(lines[i:i+run], "\n"))
		}
		return all
	}
	path, err := testdata.InCheckout(".", testdata.TrainSample)
	require.NoError(t, err)
	sample, err := os.ReadFile(path)
	require.NoError(t, err)
	seen := passages(string(sample))
	slices.Sort(seen)

	h, err := New(t.Context(), t.TempDir(), Windows)
	require.NoError(t, err)
	w, err := h.Open(worker.Unmodified, worker.Config{Context: 32})
	require.NoError(t, err)
	defer w.Close()
	for i, window := range h.Windows {
		text, err := w.Detokenize(window, false)
		require.NoError(t, err)
		here := passages(text)
		require.Greater(t, len(here), 100, "window %d", i)
		for _, p := range here {
			_, found := slices.BinarySearch(seen, p)
			assert.False(t, found, "window %d has this of %s:\n%s", i, testdata.TrainSample, p)
		}
	}
}
