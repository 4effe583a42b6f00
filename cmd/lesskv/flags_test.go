//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/weights"
)

// A letter is short for the same flag in every command, and a flag that several commands have has the same letter and begins to explain
// itself in the same words.
func TestOneGrammarOfFlags(t *testing.T) {
	names := map[string]string{"m": "model", "b": "budget", "w": "adapter", "d": "data", "o": "output", "n": "tokens", "t": "threads", "c": "context", "q": "quiet", "s": "seed"}
	helps := map[string]string{}
	for _, name := range []string{"model", "budget", "adapter", "data", "context", "type", "policy", "ubatch", "threads", "gpu-layers", "memory"} {
		helps[name] = ""
	}
	found := map[string]int{}
	for _, cmd := range newRoot().Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if cmd.Name() == "import" && f.Name == "policy" {
				return // of the authors' training
			}
			if f.Hidden {
				return // an earlier name
			}
			found[f.Name]++
			if f.Shorthand != "" {
				if names[f.Shorthand] == "" {
					names[f.Shorthand] = f.Name
				}
				assert.Equal(t, names[f.Shorthand], f.Name, "%s -%s", cmd.Name(), f.Shorthand)
			}
			for short, name := range names {
				if f.Name == name {
					assert.Equal(t, short, f.Shorthand, "%s --%s", cmd.Name(), f.Name)
				}
			}
			if help, ok := helps[f.Name]; ok {
				_, usage := pflag.UnquoteUsage(f)
				start, _, _ := strings.Cut(strings.Split(strings.Split(usage, " (")[0], ";")[0], ":")
				if start = strings.SplitN(start+",", ",", 2)[0]; help == "" {
					helps[f.Name] = start
				}
				assert.True(t, strings.HasPrefix(start, helps[f.Name]) || strings.HasPrefix(helps[f.Name], start), "%s --%s: %q and %q", cmd.Name(), f.Name, start, helps[f.Name])
			}
		})
	}
	for name := range helps {
		assert.Greater(t, found[name], 1, name)
	}
}

// Every number of tokens may be written with a k, in every command.
func TestTokensOfEveryCommand(t *testing.T) {
	names := []string{"context", "tokens", "ubatch", "text-tokens", "stride", "read", "peaks", "growth", "prompt-limit"}
	found := map[string]bool{}
	for _, cmd := range newRoot().Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !slices.Contains(names, f.Name) {
				return
			}
			found[f.Name] = true
			require.NoError(t, f.Value.Set("2k"), "%s --%s", cmd.Name(), f.Name)
			assert.Contains(t, []string{"2048", "2k"}, f.Value.String(), "%s --%s", cmd.Name(), f.Name) // a list keeps its words
			assert.Error(t, f.Value.Set("2kk"), "%s --%s", cmd.Name(), f.Name)
		})
	}
	assert.Len(t, found, len(names))
}

// Help fits a terminal of 80 columns, but for what has no space to break at.
func TestHelpFits(t *testing.T) {
	for _, cmd := range append(newRoot().Commands(), newRoot()) {
		for line := range strings.Lines(helpText(cmd)) {
			if line = strings.TrimRight(line, "\n"); len([]rune(line)) > 80 {
				assert.NotContains(t, strings.TrimSpace(line), " ", "%s: %d columns", cmd.Name(), len([]rune(line)))
			}
		}
	}
}

// What README.md and docs/ had before is still taken, and shown nowhere.
func TestEarlierSpellings(t *testing.T) {
	for command, flags := range map[string]map[string][2]string{
		"run":    {"batch": {"ubatch", "64"}},
		"train":  {"allocation": {"adapter", "tuned.gguf"}, "tokens": {"text-tokens", "1000"}, "type": {"phi-type", "q8_0"}, "kernels": {"phi-type", "q8_0"}},
		"tune":   {"types": {"type", "q4_0,q8_0"}},
		"verify": {"text": {"data", "[book.txt]"}},
		"bench":  {"contexts": {"context", "512,2k"}, "methods": {"method", "[f16,less]"}, "kernels": {"phi-type", "q8_0"}},
	} {
		for old, now := range flags {
			cmd, _, err := newRoot().Find([]string{command})
			require.NoError(t, err)
			require.NoError(t, cmd.ParseFlags([]string{"--" + old, strings.Trim(now[1], "[]")}))
			f := cmd.Flags().Lookup(now[0])
			require.NotNil(t, f, now[0])
			assert.Equal(t, now[1], f.Value.String(), "%s --%s", command, old)
			assert.True(t, f.Changed, "%s --%s", command, old)
			if old != "tokens" && old != "type" { // words of other flags
				assert.NotContains(t, helpText(cmd), "--"+old)
			}
		}
	}
	assert.Equal(t, []string{"verify", "--text", "a"}, spell([]string{"verify", "-text", "a"}))

	// some are other flags' names in other commands
	status, _, stderr := command("", "train", "-m", "none.gguf", "-d", "a", "--type", "q8_0")
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stderr, "--type means --phi-type in lesskv train: write that\n")
	status, _, stderr = command("", "train", "-m", "none.gguf", "-d", "a", "--type", "q4_0")
	assert.Equal(t, exitUsage, status)
	assert.Contains(t, stderr, "lesskv train: --type q4_0: want one of f16, f32, q8_0\n")

	// bench's model was an argument
	status, _, stderr = command("", "bench", "-q", "no-such-shape")
	assert.Equal(t, exitUsage, status)
	assert.Contains(t, stderr, `no shape "no-such-shape"`)
}

func helpText(cmd *cobra.Command) string {
	var text strings.Builder
	cmd.SetOut(&text)
	cmd.InitDefaultHelpFlag()
	_ = cmd.Help()
	return text.String()
}

// Every command ends with 2 where the command line is wrong, and with 1 where a file is, says so in a line that begins with its name once,
// and writes nothing.
func TestWrongInputToEveryCommand(t *testing.T) {
	dir := t.TempDir()
	model, err := testdata.PathIn(dir, testdata.Model)
	require.NoError(t, err)
	text, none := filepath.Join(dir, "text.txt"), filepath.Join(dir, "none.gguf")
	require.NoError(t, os.WriteFile(text, []byte("func main() {}\n"), 0o644))
	m, err := weights.ReadModel(model)
	require.NoError(t, err)
	adapter := filepath.Join(dir, "other.gguf")
	a := weights.New(m, weights.Trained{Policy: "peak", Heavy: 1, Recent: 1, Ubatch: 1, Context: 16})
	require.NoError(t, a.Write(adapter))
	missing := map[string][]string{ // a file that is not there
		"run": {"-m", none, "x"}, "train": {"-m", none, "-d", text}, "tune": {"-m", none, "-d", text}, "verify": {"-m", none, "-d", text},
		"bench": {"-m", none}, "plan": {"-m", none}, "inspect": {none}, "merge": {"-o", filepath.Join(dir, "o.gguf"), none},
		"import": {"-m", none, "-o", filepath.Join(dir, "o.gguf"), "--heavy=1", dir},
	}
	check := unchanged(t, dir)
	for _, cmd := range newRoot().Commands() {
		name := cmd.Name()
		if name == "completion" || name == "help" {
			continue
		}
		wrong := [][]string{{"--no-such-flag"}, {"a", "b", "c"}}
		for _, flag := range []string{"model", "adapter", "budget", "context", "type", "policy", "ubatch", "threads", "memory", "data", "output"} {
			if cmd.Flags().Lookup(flag) != nil {
				wrong = append(wrong, append(slices.Clone(missing[name]), "--"+flag+"="))
			}
		}
		for _, value := range []string{"--budget=0", "--budget=lots", "--context=-1", "--type=q9", "--ubatch=0", "--threads=-1", "--memory=lots", "--policy=newest", "--phi-type=q4_1", "--rotary=odd"} {
			flag, _, _ := strings.Cut(strings.TrimPrefix(value, "--"), "=")
			if cmd.Flags().Lookup(flag) != nil && (name != "import" || flag != "policy") {
				wrong = append(wrong, append(slices.Clone(missing[name]), value))
			}
		}
		for _, args := range wrong {
			if name == "merge" && args[0] == "a" {
				continue // files that are not there
			}
			status, out, stderr := command("", append([]string{name}, args...)...)
			assert.Equal(t, exitUsage, status, "%s %v: %s", name, args, stderr)
			assertOneLine(t, name, stderr)
			assert.Empty(t, out)
		}
		if args := missing[name]; args != nil {
			status, out, stderr := command("", append([]string{name}, args...)...)
			want := exitFailed
			if name == "bench" { // which may be the name of a shape
				want = exitUsage
			}
			assert.Equal(t, want, status, "%s %v: %s", name, args, stderr)
			assertOneLine(t, name, stderr)
			assert.Contains(t, stderr, "none.gguf")
			assert.Empty(t, out)
		}
	}
	for _, name := range []string{"train", "tune"} { // none is no file
		status, _, stderr := command("", name, "-m", model, "-d", text, "-w", noAdapter)
		assert.Equal(t, exitFailed, status)
		assert.Contains(t, stderr, "not enough text")
	}
	for name, args := range map[string][]string{ // 3: what was required does not hold
		"plan": {"-m", model, "--memory=1M"},
	} {
		status, _, stderr := command("", append([]string{name}, args...)...)
		assert.Equal(t, exitChecks, status, stderr)
		assertOneLine(t, name, stderr)
	}
	check()
}

// assertOneLine looks at what a command says that fails.
func assertOneLine(t *testing.T, name, stderr string) {
	t.Helper()
	first, rest, _ := strings.Cut(stderr, "\n")
	said, ok := strings.CutPrefix(first, "lesskv "+name+": ")
	assert.True(t, ok, stderr)
	assert.True(t, rest == "" || rest == "see lesskv "+name+" -h\n", stderr)
	for _, prefix := range []string{"lesskv", name + ":", "worker:", "weights:", "gguf:"} {
		assert.False(t, strings.HasPrefix(said, prefix), stderr)
	}
	assert.NotEmpty(t, said)
	parts := strings.Split(said, ": ")
	for i := 1; i < len(parts); i++ {
		assert.NotEqual(t, parts[i-1], parts[i], "twice: %s", stderr)
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "500M": 500 << 20, "8g": 8 << 30, "20G": 20 << 30, "1T": 1 << 40, "1.5GiB": 3 << 29, "64 MiB": 64 << 20, "2kB": 2048} {
		got, err := parseBytes(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "0", "-1", "G", "lots", "1X", "NaN", "0.5", "9000000000G", "99999999999999999999P", "1 G B"} {
		_, err := parseBytes(text)
		require.ErrorContains(t, err, "want bytes", text)
	}
}
