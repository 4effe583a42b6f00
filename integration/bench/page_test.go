package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/picturetest"
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
		picturetest.Same(t, made, shown, anew)
	}
}

// README.md's numbers of speed and memory are those of the results that are kept, rounded to as many digits as it has.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "\n## How fast\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n## ")
	all, err := readTargets(results)
	require.NoError(t, err)
	r, processes := all["llama-3.2-1b"], all["llama-3.2-1b-processes"]
	require.NotNil(t, r)
	require.NotNil(t, processes)
	cache := func(method string, context int) float64 {
		m, ok := r.memory(method, context)
		require.True(t, ok, method)
		return mib(m.Cache)
	}
	process := func(method string, context int) float64 { return mib(processes.process(method, context)) }

	// the table: speed, the cache and the process at a context, unmodified and with LESS
	rows := regexp.MustCompile(`(?m)^\| ([\d,]+) \|(.*)\|$`).FindAllStringSubmatch(section, -1)
	require.Len(t, rows, 4)
	for _, row := range rows {
		context, err := strconv.Atoi(strings.ReplaceAll(row[1], ",", ""))
		require.NoError(t, err)
		want := []float64{r.Speed(r.Best(context, Decode)).Median, r.Speed(Cell{"less", context, Decode}).Median, cache("f16", context), cache("less", context), process("f16", context), process("less", context)}
		cells := strings.Split(row[2], "|")
		require.Len(t, cells, len(want), row[0])
		for i, cell := range cells {
			if number := strings.ReplaceAll(strings.TrimSuffix(strings.TrimSpace(cell), " MiB"), ",", ""); number != "" {
				_, decimals, _ := strings.Cut(number, ".")
				assert.Equal(t, strconv.FormatFloat(want[i], 'f', len(decimals), 64), number, row[0])
			}
		}
	}

	// and what is said below it
	section = strings.Join(strings.Fields(strings.ReplaceAll(section, ",", "")), " ")
	says := func(format string, x float64) {
		t.Helper()
		assert.Contains(t, section, fmt.Sprintf(format, x))
	}
	says("%.1f times as fast", r.Ratio(Cell{"less", 32768, Decode}, r.Best(32768, Decode)).Median)
	says("%.2f times", r.Ratio(Cell{"less", 512, Prompt}, r.Best(512, Prompt)).Median)
	for _, method := range []string{"q8_0-fa", "q4_0-fa"} {
		says("%.0f MiB", cache(method, 32768))
		says("%.0f)", process(method, 32768))
	}
	byDefault := all["llama-3.2-1b-default"]
	require.NotNil(t, byDefault)
	m, ok := byDefault.memory("less", 32768)
	require.True(t, ok)
	says("%.0f slots a head", float64(byDefault.Budget))
	says("%.0f MiB) it", mib(m.Cache))
	says("%.1f times as fast", byDefault.Ratio(Cell{"less", 32768, Decode}, Cell{"q8_0-fa", 32768, Decode}).Median)
}
