package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/provenance"
)

// README.md's table has the numbers of the command, rounded to as many digits as it has.
func TestReadme(t *testing.T) {
	data, err := os.ReadFile("../../docs/fidelity.json")
	require.NoError(t, err)
	var r Report
	require.NoError(t, json.Unmarshal(data, &r))
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	rows := regexp.MustCompile(`(?m)^\| ([\d,]+) \| ([\d.]+) % \| \*\*([\d.]+)\*\* \((\w+).*?\) \| ([\d.]+)[^|]* \| ([\d.]+|not measured) \|$`).FindAllStringSubmatch(string(readme), -1)
	require.Len(t, rows, len(r.Sizes))
	rounded := func(want float64, said string) {
		t.Helper()
		_, decimals, _ := strings.Cut(said, ".")
		assert.Equal(t, strconv.FormatFloat(want, 'f', len(decimals), 64), said)
	}
	for i, s := range r.Sizes {
		cells := rows[i][1:]
		rounded(float64(s.KiB), strings.ReplaceAll(cells[0], ",", ""))
		rounded(100*float64(s.KiB<<10)/full, cells[1])
		rounded(s.Rows[0].KL.Value, cells[2])
		assert.Equal(t, s.Rows[0].Types, cells[3])
		rounded(s.Rows[0].Equal.Value, cells[4])
		if cells[5] != "not measured" {
			rounded(s.Before, cells[5])
		}
	}
}

// What was the best before at each byte count is of docs/verify/report.md: peak with LESS, and the runtime's own q4_0.
func TestBefore(t *testing.T) {
	text, err := os.ReadFile("../../docs/verify/report.md")
	require.NoError(t, err)
	for _, g := range goals {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| [^|]+ \| (?:peak LESS|q4_0)[^|]* \| \d+ \| %d \| [^|]+ \| [^|]+ \| ([\d.]+) `, g.kib)).FindSubmatch(text)
		require.NotNil(t, row, "%d KiB", g.kib)
		assert.Equal(t, strconv.FormatFloat(g.before, 'f', 4, 64), string(row[1]), "%d KiB", g.kib)
	}
}

// The page's numbers are those that the command has measured.
func TestPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/fidelity.json")
	require.NoError(t, err)
	var r Report
	require.NoError(t, json.Unmarshal(data, &r))
	page, err := os.ReadFile("../../docs/fidelity.md")
	require.NoError(t, err)
	assert.Equal(t, string(page), string(r.page()), "go run ./integration/fidelity -page writes it anew")
	r.Build = provenance.Build{Commit: "v1", CPU: "some CPU"}
	assert.Contains(t, string(r.page()), "\nMeasured by lesskv v1; on some CPU ().\n")
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			assert.LessOrEqual(t, x.Bytes, s.KiB<<10, "everything counted")
		}
	}
}
