package page

import (
	"encoding/csv"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/pagetest"
	"github.com/lesskv/lesskv/integration/verify"
)

// update, an environment variable, puts docs/verify/report.md into docs/quality.md and draws docs/verify/quality.png anew.
const update = "LESSKV_UPDATE_QUALITY"

const reports = "../../../docs/verify/"

// The numbers of docs/quality.md are those of the last report in docs/verify.
func TestQualityPage(t *testing.T) {
	const path, begin, end = "../../../docs/quality.md", "<!-- docs/verify/report.md -->\n", "<!-- end -->\n"
	report, err := os.ReadFile(reports + "report.md")
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

// kept reads the rows that docs/verify/report.csv has: of the report that the pages are of, what is small enough to be kept.
func kept(t *testing.T) *verify.Report {
	t.Helper()
	file, err := os.Open(reports + "report.csv")
	require.NoError(t, err)
	defer file.Close()
	lines, err := csv.NewReader(file).ReadAll()
	require.NoError(t, err)
	r := &verify.Report{}
	for _, line := range lines[1:] {
		cell := func(name string) string {
			for i, n := range lines[0] {
				if n == name {
					return line[i]
				}
			}
			require.Fail(t, "no column", name)
			return ""
		}
		whole := func(name string) int {
			n, err := strconv.Atoi(cell(name))
			require.NoError(t, err, name)
			return n
		}
		estimate := func(name string) verify.Estimate {
			var e verify.Estimate
			for suffix, to := range map[string]*float64{"": &e.Value, "_low": &e.Low, "_high": &e.High} {
				if text := cell(name + suffix); text != "" {
					*to = number64(t, text)
				}
			}
			return e
		}
		row := &verify.Row{Context: whole("context"), Ubatch: whole("ubatch"), Budget: whole("budget"), Policy: cell("policy"), Method: cell("method"), Slots: whole("slots"), Adapter: cell("adapter"),
			Bytes: verify.Bytes{Total: int64(whole("bytes"))}, From: whole("from"), Fault: cell("fault"), FullPerplexity: estimate("full_perplexity")}
		row.Perplexity, row.KL, row.Top1 = estimate("perplexity"), estimate("kl"), estimate("top1")
		row.Common = &verify.Measures{KL: estimate("common_kl")}
		r.Rows = append(r.Rows, row)
	}
	return r
}

// Every row of docs/verify/report.md, which docs/quality.md shows, has the numbers of report.csv.
func TestReportTable(t *testing.T) {
	text, err := os.ReadFile(reports + "report.md")
	require.NoError(t, err)
	r := kept(t)
	made, err := Markdown(r)
	require.NoError(t, err)
	rows := regexp.MustCompile(`(?m)^\| \d+ \(\d+ %\) \|.*$`)
	want := rows.FindAllString(string(made), -1)
	require.Len(t, want, 48)
	assert.Equal(t, want, rows.FindAllString(string(text), -1))

	better := 0 // settings in which LESS is closer than sparse only with as many bytes, as docs/quality.md counts them
	for _, row := range r.Rows {
		if row.Method == verify.LESS && row.KL.Value < r.Row(row.Context, row.Ubatch, row.Budget, row.Policy, verify.PlusPlus).KL.Value {
			better++
		}
	}
	assert.Contains(t, string(text), "by KL: better in "+strconv.Itoa(better)+" of 27 settings")
}

// docs/verify/quality.png is drawn of report.csv.
func TestQualityPicture(t *testing.T) {
	pictures, err := quality(kept(t))
	require.NoError(t, err)
	require.Len(t, pictures, 1)
	made, err := pictures[0].PNG()
	require.NoError(t, err)
	if os.Getenv(update) != "" {
		require.NoError(t, os.WriteFile(reports+"quality.png", made, 0o644))
		return
	}
	shown, err := os.ReadFile(reports + "quality.png")
	require.NoError(t, err)
	pagetest.Same(t, made, shown, "run with "+update+"=1")
}
