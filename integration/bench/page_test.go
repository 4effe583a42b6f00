package bench

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/pagetest"
)

const (
	results = "../../docs/performance"
	page    = "../../docs/performance.md"
	anew    = "go run ./cmd/lesskv bench --targets docs/performance --into docs/performance.md --page makes it anew"
)

// What docs/performance.md has between its marks is what the command prints of the results that are kept.
func TestPage(t *testing.T) {
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	before, after, err := marked(page)
	require.NoError(t, err)
	want, err := TargetsPage(results)
	require.NoError(t, err)
	assert.Equal(t, between(before, string(want), after), string(text), anew)
}

// The page's pictures are drawn of the same results.
func TestPagePictures(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(dir, "performance"), os.DirFS(results)))
	into := filepath.Join(dir, "page.md")
	require.NoError(t, os.WriteFile(into, []byte(tableBegin+tableEnd), 0o644))
	require.NoError(t, WriteTargets(filepath.Join(dir, "performance"), into))
	for _, name := range []string{"performance.png", "performance-context.png"} {
		made, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		shown, err := os.ReadFile(filepath.Join("../../docs", name))
		require.NoError(t, err)
		pagetest.Same(t, made, shown, anew)
	}
}

// README.md's numbers of speed and memory are those of the results that are kept, rounded to as many digits as it has.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	text := strings.Join(strings.Fields(string(readme)), " ")
	all, err := readTargets(results)
	require.NoError(t, err)
	r, processes, byDefault := all["llama-3.2-1b"], all["llama-3.2-1b-processes"], all["llama-3.2-1b-default"]
	require.NotNil(t, r)
	require.NotNil(t, processes)
	require.NotNil(t, byDefault)
	cache := func(method string, context int) float64 {
		m, ok := r.memory(method, context)
		require.True(t, ok, method)
		return mib(m.Cache)
	}
	seen := 0
	for _, row := range regexp.MustCompile(`(?m)^\| ([\d,]+) \|((?: ?[\d,.]*(?: MiB)? \|){6})$`).FindAllStringSubmatch(string(readme), -1) {
		context, err := strconv.Atoi(strings.ReplaceAll(row[1], ",", ""))
		require.NoError(t, err)
		want := []float64{r.Speed(r.Best(context, Decode)).Median, r.Speed(Cell{"less", context, Decode}).Median, cache("f16", context), cache("less", context)}
		if context > 512 {
			want = append(want, mib(processes.process("f16", context)), mib(processes.process("less", context)))
		}
		for i, v := range want {
			pagetest.Rounded(t, v, strings.TrimSuffix(strings.TrimSpace(strings.Split(row[2], "|")[i]), " MiB"), row[0])
		}
		seen++
	}
	assert.Equal(t, 4, seen, "rows of the table")

	ratio := func(r *Result, context int, phase Phase) float64 {
		return r.Ratio(Cell{"less", context, phase}, r.Best(context, phase)).Median
	}
	for pattern, values := range map[string][]float64{
		`LESS decodes ([\d.]+) times as fast\.`:                      {ratio(r, 32768, Decode)},
		`q8_0 ([\d,]+) MiB \(the process ([\d,]+)\)`:                 {cache("q8_0-fa", 32768), mib(processes.process("q8_0-fa", 32768))},
		`q4_0 ([\d,]+) MiB \(([\d,]+)\)`:                             {cache("q4_0-fa", 32768), mib(processes.process("q4_0-fa", 32768))},
		`with LESS as without \(([\d.]+) times\)`:                    {ratio(r, 512, Prompt)},
		`: ([\d,]+) slots a head\) LESS decodes ([\d.]+) times`:      {float64(byDefault.Budget), ratio(byDefault, 32768, Decode)},
		`the unmodified one at 2k\*\* \(([\d,]+) and ([\d,]+) MiB\)`: {mib(processes.process("less", 32768)), mib(processes.process("f16", 2048))},
	} {
		found := regexp.MustCompile(pattern).FindStringSubmatch(text)
		require.NotNil(t, found, pattern)
		for i, v := range values {
			pagetest.Rounded(t, v, found[1+i], found[0])
		}
	}
	commits := regexp.MustCompile(`at commit ([0-9a-f]{7}), processes at ([0-9a-f]{7})\.`).FindStringSubmatch(text)
	require.NotNil(t, commits)
	assert.Contains(t, r.Commit, "commit "+commits[1])
	assert.Contains(t, byDefault.Commit, "commit "+commits[1])
	assert.Contains(t, processes.Commit, "commit "+commits[2])
	for _, context := range []int{512, 2048, 8192, 32768} {
		assert.Equal(t, "q8_0-fa", r.Best(context, Decode).Method, "which is called the fastest")
	}
}
