package assemble_test

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

// newPortableBench is newBench for a portable runtime on x86-64 and Linux, with the sources that choose a level.
func newPortableBench(t *testing.T) *bench {
	b := newBench(t)
	b.o.Preset = "portable"
	t.Setenv("GOOS", "linux")
	t.Setenv("GOARCH", "amd64")
	b.code["kernels/level_cpu.h"] = &fstest.MapFile{Data: []byte("// level_cpu.h\n")}
	b.code["llama/lesskv-ggml-level.cpp"] = &fstest.MapFile{Data: []byte("#include \"level_cpu.h\"\nint choice;\n")}
	return b
}

// ggml's CPU backend is compiled for each level, of which each becomes one object with its own names, in both trees; what chooses between
// them is for any CPU.
func TestPortableHasTwoLevels(t *testing.T) {
	b := newPortableBench(t)
	commands := b.commands()
	require.Equal(t, []string{
		"archive libbinding.a",
		"combine ggml_src_ggml-cpu_v3", "combine ggml_src_ggml-cpu_v3", "combine ggml_src_ggml-cpu_v4", "combine ggml_src_ggml-cpu_v4",
		"ggml/src/ggml-backend-reg.cpp",
		"ggml/src/ggml-cpu/arch/x86/quants.c", "ggml/src/ggml-cpu/arch/x86/quants.c", "ggml/src/ggml-cpu/quants.c", "ggml/src/ggml-cpu/quants.c",
		"ggml/src/ggml.c",
		"less/attend.c", "less/binding.cpp", "less/lesskv-ggml-level.cpp", "less/lesskv-ggml-level.cpp", // with -DLESSKV and without
		"less/select.c", "less/worker.cpp", "less/worker.cpp", "link lesskv-worker", "link lesskv-worker-unmodified",
		"src/llama.cpp", "src/llama.cpp", "src/models/lesskv-all.cpp",
	}, b.did())

	both := compiles(commands, "ggml/src/ggml-cpu/quants.c")
	require.Len(t, both, 2)
	slices.Sort(both)
	for i, level := range []string{"v3", "v4"} {
		require.Contains(t, both[i], " -march=x86-64-"+level+" ")
		for _, entry := range []string{"ggml_backend_cpu_reg", "ggml_get_type_traits_cpu", "ggml_graph_plan", "ggml_graph_compute"} {
			require.Contains(t, both[i], " -D"+entry+"="+entry+"_"+level+" ")
			require.Contains(t, commands, " --keep-global-symbol="+entry+"_"+level+" ")
		}
	}
	for _, c := range compiles(commands, "less/lesskv-ggml-level.cpp") {
		require.NotContains(t, c, "-march=")
		require.Contains(t, c, " -DLESSKV_GGML_LEVELS ")
	}
	for _, source := range []string{"less/select.c", "ggml/src/ggml.c", "ggml/src/ggml-backend-reg.cpp"} {
		require.NotContains(t, line(t, commands, "-c "+source), "x86-64-v4")
		require.NotContains(t, line(t, commands, "-c "+source), "_v3")
	}

	for _, path := range []string{b.layout().Package() + "/libbinding.a", b.layout().Worker(), b.layout().UnmodifiedWorker()} {
		require.Equal(t, 2, strings.Count(b.read(path), "int quants;"), path)
		require.Contains(t, b.read(path), "int choice;", path)
	}
	require.NotContains(t, b.read(b.layout().Package(), "libbinding.a"), "ggml_src_ggml-cpu_quants.c")
	stamp, err := b.layout().Stamp()
	require.NoError(t, err)
	require.Equal(t, "-march=x86-64-v3 and -march=x86-64-v4 -mavx512vnni", stamp.Flags)
	require.Contains(t, b.read(b.layout().Sources(), "less/lesskv-cpu-features.h"), "flags -march=x86-64-v3.", "what a CPU must have")

	require.Contains(t, b.run(), "is up to date")
	require.Empty(t, b.did())
}

// compiles returns the commands that compile a source.
func compiles(commands, source string) (list []string) {
	for l := range strings.Lines(commands) {
		if strings.Contains(l, " -c "+source+" ") {
			list = append(list, l)
		}
	}
	return list
}

// A server of devices has both levels too.
func TestLevelsOfTheRPCServer(t *testing.T) {
	b := newPortableBench(t)
	b.sers["ggml-rpc/0001-rpc.patch"] = &fstest.MapFile{Data: []byte(rpcPatch)}
	b.o.Backends = "rpc"
	b.run()
	server := b.read(b.layout().RPCServer())
	require.Equal(t, 2, strings.Count(server, "int quants;"))
	require.Contains(t, server, "int choice;")
	require.NotContains(t, server, "int worker;")
}

// Every other runtime has the one level that it had, and so does this one where a tool is missing or too old, which is said.
func TestOneLevel(t *testing.T) {
	for _, test := range []struct {
		name string
		said bool
		set  func(b *bench)
	}{
		{"native", false, func(b *bench) {
			b.o.Preset = "native"
			b.Setenv("GOOS", runtime.GOOS)
			b.Setenv("GOARCH", runtime.GOARCH)
		}},
		{"-march", false, func(b *bench) { b.o.March = "x86-64-v2" }},
		{"arm64", false, func(b *bench) { b.Setenv("GOARCH", "arm64") }},
		{"macOS", false, func(b *bench) { b.Setenv("GOOS", "darwin") }},
		{"sanitizers", false, func(b *bench) { b.o.Sanitize = "all" }},
		{"no objcopy", true, func(b *bench) { b.Setenv("OBJCOPY", "no-such-objcopy") }},
		{"objcopy of something else", true, func(b *bench) { b.Setenv("OBJCOPY", "false") }},
		{"objcopy in an open quotation", true, func(b *bench) { b.Setenv("OBJCOPY", "'objcopy") }},
		{"an old linker", true, func(b *bench) {
			b.program("old-linker", "case \"$*\" in *force-group-allocation*) echo unknown option >&2; exit 1;; esac\nexec \"$CC\" \"$@\"\n")
			b.Setenv("CXX", "old-linker")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newPortableBench(t)
			test.set(b)
			commands := b.commands()
			require.Equal(t, test.said, strings.Contains(b.log.String(), "ggml's CPU backend is for x86-64-v3 alone, which is slower on a CPU with AVX-512: "), b.log.String())
			require.Len(t, compiles(commands, "ggml/src/ggml-cpu/quants.c"), 1)
			require.Empty(t, compiles(commands, "less/lesskv-ggml-level.cpp"))
			for _, not := range []string{"_v3", "x86-64-v4", "--keep-global-symbol"} {
				require.NotContains(t, commands, not)
			}
			stamp, err := b.layout().Stamp()
			require.NoError(t, err)
			require.NotContains(t, stamp.Flags, " and ")
		})
	}
}

// With a tool that comes, or goes, a run makes another runtime.
func TestLevelsComeAndGo(t *testing.T) {
	b := newPortableBench(t)
	b.run()
	two := b.all(b.layout().Package())
	objcopy := os.Getenv("OBJCOPY")
	t.Setenv("OBJCOPY", "no-such-objcopy")
	b.run()
	require.NotEqual(t, two, b.all(b.layout().Package()))
	b.did()
	t.Setenv("OBJCOPY", objcopy)
	b.run()
	require.Equal(t, two, b.all(b.layout().Package()))
	require.NotContains(t, b.did(), "ggml/src/ggml-cpu/quants.c", "it was still there")
}
