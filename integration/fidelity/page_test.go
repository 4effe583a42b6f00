package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/pagetest"
	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/verify"
)

// measured reads docs/fidelity.json.
func measured(t *testing.T) (r Report) {
	t.Helper()
	data, err := os.ReadFile("../../docs/fidelity.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &r))
	return r
}

// README.md's table has the numbers of the command, rounded to as many digits as it has.
func TestReadme(t *testing.T) {
	r := measured(t)
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	rows := regexp.MustCompile(`(?m)^\| ([\d,]+) \| ([\d.]+) % \| \*\*([\d.]+)\*\* \((\w+).*?\) \| ([\d.]+) \| ([\d.]+)[^|]* \| ([\d.]+|not measured) \|$`).FindAllStringSubmatch(string(readme), -1)
	require.Len(t, rows, len(r.Sizes))
	for i, s := range r.Sizes {
		cells := rows[i][1:]
		pagetest.Rounded(t, float64(s.KiB), cells[0], rows[i][0])
		pagetest.Rounded(t, 100*float64(s.KiB<<10)/full, cells[1], rows[i][0])
		pagetest.Rounded(t, s.Rows[0].KL.Value, cells[2], rows[i][0])
		assert.Equal(t, s.Rows[0].Types, cells[3])
		pagetest.Rounded(t, s.alone().KL.Value, cells[4], rows[i][0])
		pagetest.Rounded(t, s.Rows[0].Equal.Value, cells[5], rows[i][0])
		if cells[6] != "not measured" {
			pagetest.Rounded(t, s.Before, cells[6], rows[i][0])
		}
	}
}

// What README.md says of recall is in docs/quality.md's table and in the command's numbers.
func TestReadmeRecall(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	text := strings.Join(strings.Fields(string(readme)), " ")
	said := func(pattern string) []string {
		found := regexp.MustCompile(pattern).FindStringSubmatch(text)
		require.NotNil(t, found, pattern)
		return found[1:]
	}
	quality, err := os.ReadFile("../../docs/quality.md")
	require.NoError(t, err)
	var hidden []string
	for _, row := range []string{"q8_0, 1,024, the default", "full f16"} {
		found := regexp.MustCompile(`(?m)^\| ` + row + `[^|]*\|[^|]*\|[^|]*\|[^|]*\| (\d) \|$`).FindSubmatch(quality)
		require.NotNil(t, found, row)
		hidden = append(hidden, string(found[1]))
	}
	assert.Equal(t, hidden, said(`The default, at 1,024 slots a head, and the full cache found (\d) and (\d) of another five numbers`))

	r := measured(t)
	longest := len(r.lengths()) - 1
	of := func(share, types, budgets string) string {
		for _, s := range r.recallSums() {
			if s.share == share && s.types == types && s.budgets == budgets {
				return strconv.Itoa(s.lengths[longest].right)
			}
		}
		require.Fail(t, "not measured", "%s %s %s", share, types, budgets)
		return ""
	}
	full := r.full().lengths[longest]
	tasks := 0
	for _, d := range full.depth {
		tasks += d.Tasks
	}
	want := []string{strconv.Itoa(tasks), strconv.Itoa(full.tokens), strconv.Itoa(full.full), of("1/20", "q4_0", "tuned"), of("1/20", "q8_0", "tuned"), of("1/20", "q4_0", equal), of("1/20", "q8_0", equal),
		of("1/50", "q4_0", "tuned"), of("1/50", "q4_0", "tuned with look-ups")}
	got := said(`has (\d+) questions in texts of ([\d,]+) tokens, .*? The full cache answered (\d+)\. In a twentieth of its bytes, with .*?, q4_0 slots answered (\d+) and q8_0 slots (\d+)\. ` +
		`With one budget for all heads they answered (\d+) and (\d+)\. In a fiftieth of the bytes, q4_0 slots answered (\d+), and (\d+) after tuning on text with look-ups`)
	got[1] = strings.ReplaceAll(got[1], ",", "")
	assert.Equal(t, want, got)
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
	r := measured(t)
	page, err := os.ReadFile("../../docs/fidelity.md")
	require.NoError(t, err)
	assert.Equal(t, string(page), string(r.page()), "go run ./integration/fidelity -page writes it anew")
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			assert.Contains(t, string(page), fmt.Sprintf(" %.4f | %.4f* |\n", x.TunedOn, x.NotTuned), "that number took part in a choice")
		}
	}
	assert.Contains(t, string(page), "\n\\* Took part in choices:")
	r.Build = provenance.Build{Commit: "v1", CPU: "some CPU"}
	assert.Contains(t, string(r.page()), "\nMeasured by lesskv v1; on some CPU ().\n")
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			assert.LessOrEqual(t, x.Bytes, s.KiB<<10, "everything counted")
		}
	}
}

// So does the picture.
func TestPicture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fidelity.png")
	r := measured(t)
	require.NoError(t, r.draw(path))
	made, err := os.ReadFile(path)
	require.NoError(t, err)
	shown, err := os.ReadFile("../../docs/fidelity.png")
	require.NoError(t, err)
	pagetest.Same(t, made, shown, "go run ./integration/fidelity -page draws it anew")
}

// Where what was tuned answers less than equal budgets do, the page says so.
func TestBelowEqual(t *testing.T) {
	depths := func(right ...int) (all []verify.Depth) {
		for i, n := range right {
			all = append(all, verify.Depth{Depth: float64(i) / 2, Tasks: 4, Right: n})
		}
		return all
	}
	plain := Recall{Share: "1/20", Types: "q8_0", Policy: policy, Kind: "needle", Tokens: 100, Tasks: 12, Full: 9, Right: 7, Depth: depths(0, 3, 4), FullByDepth: depths(2, 4, 3)}
	tuned, other, h2o := plain, plain, plain
	tuned.Tuned, tuned.Right, tuned.Depth = true, 8, depths(2, 3, 3)
	other.Share, other.Tuned, other.Depth = "1/50", true, depths(0, 0, 0) // equal budgets were not asked there
	h2o.Policy, h2o.Right, h2o.Depth = "h2o", 11, depths(3, 4, 4)         // of another policy than what was tuned
	r := Report{Recall: []Recall{plain, h2o, tuned, other}}
	assert.Equal(t, `Another target was that a tuned allocation never answers fewer questions than equal budgets. It was missed: in 1 of 3 cells (a task, a length and a depth; 4 questions each) the tuned allocation answers fewer. The full cache answers more than it in none of these 1:

| bytes | slots | budgets | task | tokens | depth | answered | equal budgets | full cache |
|---|---|---|---|---|---|---|---|---|
| 1/20 | q8_0 | tuned | needle | 100 | 1 | 3 of 4 | 4 | 3 |`, r.belowEqual())
	r.Recall[2].FullByDepth = depths(2, 4, 4)
	assert.Contains(t, r.belowEqual(), "in 1 of these 1")
	r.Recall[2].FullByDepth = plain.FullByDepth
	r.Recall[2].Depth = depths(2, 3, 4)
	assert.Equal(t, "In none of 3 cells (a task, a length and a depth) does a tuned allocation answer fewer questions than equal budgets.", r.belowEqual())
	var page strings.Builder
	r.recallPage(func(format string, args ...any) { fmt.Fprintf(&page, format+"\n", args...) })
	assert.Contains(t, page.String(), "\n| 1 | f16 | full cache | 9, 100 % | | 2 of 4 | 4 of 4 | 3 of 4 |\n")
	assert.Contains(t, page.String(), "\n| 1/20 | q8_0 | equal | 7, 78 % |  | 0 of 4 | 3 of 4 | 4 of 4 |\n")
	assert.Contains(t, page.String(), "\n| 1/20 | q8_0 | equal, h2o | 11, 122 % |  | 3 of 4 | 4 of 4 | 4 of 4 |\n")
	assert.Contains(t, page.String(), "\n| 1/20 | q8_0 | tuned | 8, 89 % | missed at 100 | 2 of 4 | 3 of 4 | 4 of 4 |\n")

	longer := tuned // of another length, at which the target is reached
	longer.Tokens, longer.Right = 200, 9
	r.Recall = append(r.Recall, longer)
	for _, s := range r.recallSums() {
		if s.budgets == "tuned" && s.share == "1/20" {
			assert.Equal(t, []lengthSum{{100, 8, 9, r.Recall[2].Depth}, {200, 9, 9, longer.Depth}}, s.lengths)
			assert.Equal(t, "missed at 100", s.verdict())
		}
	}
}
