package page

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// update, an environment variable, puts docs/verify/report.md into docs/quality.md.
const update = "LESSKV_UPDATE_QUALITY"

// The numbers of docs/quality.md are those of the last report in docs/verify.
func TestQualityPage(t *testing.T) {
	const path, begin, end = "../../../docs/quality.md", "<!-- docs/verify/report.md -->\n", "<!-- end -->\n"
	report, err := os.ReadFile("../../../docs/verify/report.md")
	require.NoError(t, err)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok)
	block, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	want := "\n" + string(report) + "\n"
	if os.Getenv(update) != "" {
		require.NoError(t, os.WriteFile(path, []byte(before+begin+want+end+after), 0o644))
		return
	}
	assert.Equal(t, want, block, "run with %s=1", update)
}
