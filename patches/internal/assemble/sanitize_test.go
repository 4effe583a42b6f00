package assemble_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What has which sanitizer, and that a program with it is linked with it. What has none is the same object as in every other runtime.
func TestSanitize(t *testing.T) {
	b := newBench(t)
	require.NotContains(t, b.commands(), "-fsanitize")
	b.did()

	b.o.Sanitize = "part"
	commands := b.commands()
	did := b.did()
	for _, source := range []string{"ggml/src/ggml-cpu/quants.c", "src/models/lesskv-all.cpp"} {
		require.NotContains(t, did, source, "it is compiled already")
	}
	require.Contains(t, line(t, commands, "-c src/llama.cpp"), "-fsanitize=address ")
	require.Contains(t, line(t, commands, "-c less/select.c"), "-fsanitize=address,undefined ")
	require.Contains(t, line(t, commands, "lesskv-worker.part.tmp"), "-fsanitize=address,undefined")
	stamp, err := os.ReadFile(filepath.Join(b.layout().Package(), "zz_lesskv_build.go"))
	require.NoError(t, err)
	require.Contains(t, string(stamp), "// #cgo LDFLAGS: -fsanitize=address,undefined\n")

	b.o.Sanitize = "all"
	commands = b.commands()
	for _, source := range []string{"ggml/src/ggml-cpu/quants.c", "src/models/lesskv-all.cpp"} {
		require.Contains(t, line(t, commands, "-c "+source), "-fsanitize=address ")
	}

	b.o.Sanitize = "some"
	b.fail(`-sanitize "some": want part or all`)
}
