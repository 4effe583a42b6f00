package weights

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
)

// What is known of llama.cpp's sliding windows is what its sources say: every architecture that does so, its period and which of a period is none.
func TestWindowsOfArchitectures(t *testing.T) {
	build, err := layout.Find(".")
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(build.Sources(), "src/models/*.cpp"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	other := map[string]string{"openai-moe": "gpt-oss", "granite-swa": "granite_swa", "spark2-5": "spark2_5"}
	refused := []string{"dflash", "gemma-embedding", "gemma4-assistant", "llama4", "modern-bert", "deepseek4"} // other windows, or no model of text
	pattern := regexp.MustCompile(`load_swa_pattern\(ml, (\d+)(, (?:/\*dense_first=\*/)?true)?\)|get_arr\(LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN`)
	want := map[string][2]int{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		name := strings.TrimSuffix(filepath.Base(file), ".cpp")
		if o, ok := other[name]; ok {
			name = o
		}
		if found := pattern.FindStringSubmatch(string(data)); found != nil {
			period, _ := strconv.Atoi(found[1])
			first := 0
			if found[2] != "" {
				first = 1
			}
			want[name] = [2]int{period, first}
		}
	}
	for _, name := range refused {
		delete(want, name)
	}
	got := map[string][2]int{}
	for name, w := range windowed {
		first := 0
		if w.first {
			first = 1
		}
		got[name] = [2]int{w.period, first}
	}
	require.Equal(t, want, got)
}
