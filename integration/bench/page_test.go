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
	all, err := readTargets(results)
	require.NoError(t, err)
	r, processes := all["llama-3.2-1b"], all["llama-3.2-1b-processes"]
	require.NotNil(t, r)
	require.NotNil(t, processes)
	ratio := func(context int, phase Phase, to int) float64 {
		return r.Ratio(Cell{"less", context, phase}, r.Best(to, phase)).Median
	}
	cache := func(method string) float64 {
		m, ok := r.memory(method, 32768)
		require.True(t, ok, method)
		return mib(m.Cache)
	}
	full, ok := r.memory("less", 32768)
	require.True(t, ok)
	wanted := map[string][]float64{
		"decoding at 32k": {ratio(32768, Decode, 32768), ratio(32768, Decode, 0)},
		"decoding at 512": {ratio(512, Decode, 512)},
		"prompt of 512":   {ratio(512, Prompt, 512)},
		"cache at 32k":    {cache("less"), mib(full.Full), cache("q4_0-fa")},
	}
	number := regexp.MustCompile(`(?:^|[\s(])(\d[\d,]*(?:\.\d+)?)`)
	seen := 0
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \| ([^|]+) \|$`).FindAllStringSubmatch(string(text), -1) {
		for label, values := range wanted {
			if !strings.Contains(row[1], label) {
				continue
			}
			seen++
			found := number.FindAllStringSubmatch(row[2], -1)
			require.Len(t, found, len(values), row[0])
			for i, v := range values {
				said := strings.ReplaceAll(found[i][1], ",", "")
				_, decimals, _ := strings.Cut(said, ".")
				assert.Equal(t, strconv.FormatFloat(v, 'f', len(decimals), 64), said, row[0])
			}
		}
	}
	assert.Equal(t, len(wanted), seen, "rows of the table")

	first, _, ok := strings.Cut(string(text), "\n## ")
	require.True(t, ok)
	for _, method := range []string{"less", "f16", "q8_0-fa", "q4_0-fa"} {
		peak := fmt.Sprintf("%.0f", mib(processes.process(method, 32768)))
		assert.Contains(t, strings.ReplaceAll(first, ",", ""), peak, "MiB of the process at 32k: %s", method)
	}
}
