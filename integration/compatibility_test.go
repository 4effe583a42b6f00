package integration

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo"
	"github.com/lesskv/lesskv/docs"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
)

// docs/compatibility.md has a row for everything that upstream exports but fields, and the test that it names exists and uses it.
func TestCompatibility(t *testing.T) {
	page, err := os.ReadFile("../docs/compatibility.md")
	require.NoError(t, err)
	tests := testSources(t)
	for _, name := range regexp.MustCompile(`Test\w+`).FindAllString(string(page), -1) {
		assert.NotEmpty(t, tests[name], "there is no %s", name)
	}

	want := map[string]bool{}
	for name := range declarations(t, moduleDir(t, pins.GoLlama)) {
		structure, _, isField := strings.Cut(name, "Options.")
		if !isField || structure == "" {
			want[strings.TrimPrefix(name, "*")] = true
		}
	}
	got := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([\\w.]+)` \\| ([^|]+) \\|[^|]*\\| (Test\\w+) \\|$").FindAllStringSubmatch(string(page), -1) {
		assert.False(t, got[row[1]], "%s stands twice", row[1])
		name := row[1][strings.LastIndex(row[1], ".")+1:]
		if row[3] != "TestUpstreamsDeclarations" {
			assert.True(t, regexp.MustCompile(`\b`+name+`\b`).MatchString(tests[row[3]]), "%s has no %s in it", row[3], row[1])
		}
		got[row[1]] = true
		assert.Contains(t, []string{"works", "differs", "no effect"}, row[2], row[1])
	}
	assert.Equal(t, want, got)
}

// testSources returns the sources of the tests here and of the plugin by their names, each with those of the functions that it calls.
func testSources(t *testing.T) map[string]string {
	t.Helper()
	tests := map[string]string{}
	for _, dir := range []string{".", "../plugin"} {
		functions := map[string]string{}
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		require.NoError(t, err)
		for _, file := range files {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, m := range regexp.MustCompile(`(?ms)^func (\w+)\(t .*?^}`).FindAllSubmatch(source, -1) {
				functions[string(m[1])] = string(m[0])
			}
		}
		for name, source := range functions {
			for _, call := range regexp.MustCompile(`\b(\w+)\(t\b`).FindAllStringSubmatch(source, -1) {
				source += functions[call[1]]
			}
			if strings.HasPrefix(name, "Test") {
				tests[name] = source
			}
		}
	}
	return tests
}

// docs/models.md has a row for every architecture that there is a tiny model of, with the right answer, the reason where it is no, and
// a test that exists.
func TestModelsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/models.md")
	require.NoError(t, err)
	tests := testSources(t)
	for _, name := range regexp.MustCompile(`Test\w+`).FindAllString(string(page), -1) {
		assert.NotEmpty(t, tests[name], "there is no %s", name)
	}
	rows := map[string]string{}
	for _, row := range docs.Architectures() {
		assert.Empty(t, rows[row.Name], "%s stands twice", row.Name)
		rows[row.Name] = row.LESS
	}
	for _, name := range refusedByName(t) {
		if !slices.ContainsFunc(tinymodels.All(), func(m tinymodels.Model) bool { return m.Architecture == name }) {
			delete(rows, name) // TestRefusedByName's
		}
	}
	missing := maps.Clone(rows)
	for _, m := range tinymodels.All() {
		delete(missing, m.Architecture)
		switch less := rows[m.Architecture]; {
		case m.Refused == "":
			assert.Regexp(t, "^yes", less, m.Architecture)
		default:
			assert.Regexp(t, "^no: ", less, m.Architecture)
			assert.Contains(t, less, m.Refused, m.Architecture)
		}
	}
	assert.Empty(t, missing, "no tiny model")
}

// refusedByName returns the architectures that lesskv_supported knows by name and refuses, as a model's file has them.
func refusedByName(t *testing.T) (names []string) {
	t.Helper()
	source, err := cgo.Sources.ReadFile("llama/lesskv-model.cpp")
	require.NoError(t, err)
	build, err := layout.Find(".")
	require.NoError(t, err)
	all, err := os.ReadFile(filepath.Join(build.Sources(), "src/llama-arch.cpp"))
	require.NoError(t, err)
	for _, use := range regexp.MustCompile(`model->arch == (LLM_ARCH_\w+)`).FindAllStringSubmatch(string(source), -1) {
		name := regexp.MustCompile(`\{ ` + use[1] + `, +"([^"]+)"`).FindStringSubmatch(string(all))
		require.NotNil(t, name, use[1])
		names = append(names, name[1])
	}
	return names
}

// What the runtime refuses by name is refused on the page.
func TestRefusedByName(t *testing.T) {
	names := refusedByName(t)
	require.Greater(t, len(names), 8)
	for _, name := range names {
		i := slices.IndexFunc(docs.Architectures(), func(a docs.Architecture) bool { return a.Name == name })
		if assert.GreaterOrEqual(t, i, 0, "%s is in no row", name) {
			assert.Regexp(t, "^no: ", docs.Architectures()[i].LESS, name)
		}
	}
}
