package assemble_test

import (
	"bytes"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/assemble"
	"github.com/lesskv/lesskv/patches/pins"
)

const rpcPatch = `From 0 Mon Sep 17 00:00:00 2001
From: A <a@example.com>
Subject: [PATCH] rpc

So that it is patched.
---
diff --git a/ggml/src/ggml-rpc/ggml-rpc.cpp b/ggml/src/ggml-rpc/ggml-rpc.cpp
--- a/ggml/src/ggml-rpc/ggml-rpc.cpp
+++ b/ggml/src/ggml-rpc/ggml-rpc.cpp
@@ -1 +1 @@
-int rpc;
+long rpc;
`

// program puts a shell script into PATH for the test.
func (b *bench) program(name, script string) {
	b.Helper()
	dir := b.TempDir()
	require.NoError(b, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755))
	b.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// header makes the compiler find a header.
func (b *bench) header(name, text string) {
	b.Helper()
	dir := b.TempDir()
	b.write(filepath.Join(dir, name), text)
	b.Setenv("FAKE_INCLUDE", dir)
}

// commands assembles and returns what was run, a line each.
func (b *bench) commands() string {
	b.Helper()
	var trace bytes.Buffer
	b.o.Trace = &trace
	b.run()
	b.o.Trace = nil
	return trace.String()
}

// line returns the command that compiles a source, or links a program.
func line(t *testing.T, commands, of string) string {
	t.Helper()
	for l := range strings.Lines(commands) {
		if strings.Contains(l, of) {
			return l
		}
	}
	require.Fail(t, "no command for "+of, commands)
	return ""
}

// One file knows the list of backends, and it alone is compiled anew. Without the flag everything is as it was.
func TestBackendRPC(t *testing.T) {
	b := newBench(t)
	b.sers["ggml-rpc/0001-rpc.patch"] = &fstest.MapFile{Data: []byte(rpcPatch)}
	b.run()
	plain := b.all(b.layout().Package())
	require.NoFileExists(t, filepath.Join(b.layout().Sources(), "ggml/src/ggml-rpc/ggml-rpc.cpp"))
	require.NoFileExists(t, b.layout().RPCServer())
	b.did()

	b.o.Backends = "cpu,rpc"
	commands := b.commands()
	require.Equal(t, []string{
		"archive libbinding.a", "ggml/src/ggml-backend-reg.cpp", "ggml/src/ggml-rpc/ggml-rpc.cpp", "ggml/src/ggml-rpc/ggml-rpc.cpp", // patched and not
		"link ggml-rpc-server", "link lesskv-worker", "link lesskv-worker-unmodified", "tools/rpc/rpc-server.cpp",
	}, b.did())
	require.Contains(t, line(t, commands, "ggml-backend-reg.cpp"), "-DGGML_USE_CPU_REPACK ", "as in upstream's own build")
	require.Contains(t, line(t, commands, "ggml-backend-reg.cpp"), "-DGGML_USE_RPC ")
	require.Contains(t, b.read(b.layout().Package(), "libbinding.a"), "long rpc;")
	require.NotContains(t, b.read(b.layout().Package(), "libbinding.a"), "int server;")
	require.Contains(t, b.read(b.layout().UnmodifiedWorker()), "int rpc;")
	require.Contains(t, b.read(b.layout().RPCServer()), "int server;")
	require.NotContains(t, b.read(b.layout().RPCServer()), "int llama;")
	require.NotContains(t, b.read(b.layout().Package(), "zz_lesskv_build.go"), "cgo")
	require.Contains(t, b.run(), "is up to date")

	b.o.Backends = ""
	b.run()
	require.Equal(t, plain, b.all(b.layout().Package()))
	require.NoFileExists(t, filepath.Join(b.layout().Sources(), "ggml/src/ggml-rpc/ggml-rpc.cpp"))
	require.NotContains(t, b.did(), "ggml/src/ggml-backend-reg.cpp", "it was still there")
}

// An app's runtime is another folder for each set of backends.
func TestBackendOfApps(t *testing.T) {
	b := newBench(t)
	b.forApp(b.app)
	folder := func(list string) string {
		b.o.Backends = list
		b.run()
		out, err := goCommand(b.app, "list", "-m", "-f", "{{.Dir}}", pins.GoLlama.Path)
		require.NoError(t, err, out)
		return out
	}
	cpu, rpc := folder("cpu"), folder("rpc")
	require.NotEqual(t, cpu, rpc)
	require.Equal(t, cpu, folder(""))
	require.Equal(t, rpc, folder("cpu,rpc,rpc"))
}

func TestBackendCUDA(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no toolkit")
	}
	b := newBench(t)
	b.o.Backends = "cuda,rpc"
	if _, err := exec.LookPath("nvcc"); err != nil {
		err := b.fail("-backend cuda needs nvcc")
		need := (*assemble.NeedError)(nil)
		require.ErrorAs(t, err, &need)
		require.ErrorContains(t, err, "apt-get install nvidia-cuda-toolkit")
	}
	b.program("nvcc", `case $1 in --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit;; esac; shift 2; exec "$CC" "$@"`)
	err := b.fail("-backend cuda needs cuBLAS with its cublas_v2.h") // the fake compiler finds none
	require.ErrorContains(t, err, "libcublas-dev-13-0")
	require.ErrorContains(t, err, "apt-get install nvidia-cuda-toolkit")
	b.header("cublas_v2.h", "// cuBLAS\n")
	b.program("nvidia-smi", "exit 9")
	b.fail("-cuda-arch")
	b.program("nvidia-smi", `printf '9.0\n9.0\n12.0\n'`)
	commands := b.commands()
	one := line(t, commands, "-c ggml/src/ggml-cuda/acc.cu")
	for _, flag := range []string{
		"nvcc -ccbin ", "-gencode=arch=compute_120a,code=sm_120a -gencode=arch=compute_90,code=sm_90 ", "-compress-mode=size", "-DGGML_CUDA_USE_GRAPHS",
		"-DGGML_CUDA_FA_F16_F16=1", "-DGGML_CUDA_FA_Q5_0_F16=0", "-use_fast_math", "-Xcompiler=-fPIC,", "-O3",
	} {
		require.Contains(t, one, flag)
	}
	require.NotContains(t, one, " -fPIC")
	require.Contains(t, line(t, commands, "ggml-backend-reg.cpp"), "-DGGML_USE_CUDA -DGGML_USE_RPC ")
	require.Contains(t, commands, "fattn-vec-instance-f16-f16.cu")
	require.Contains(t, line(t, commands, "lesskv-worker.part.tmp"), "-lcudart -lcublas -lcuda ")
	require.Contains(t, b.read(b.layout().Package(), "zz_lesskv_build.go"), "// #cgo LDFLAGS: -lcudart -lcublas -lcuda\nimport \"C\"\n")

	b.did()
	b.o.CUDAArch = "90"
	b.run()
	require.Contains(t, b.did(), "ggml/src/ggml-cuda/acc.cu", "for another GPU it is another object")

	b.o.CUDAArch, b.o.Jobs = "80", 1
	var order []string
	for _, m := range regexp.MustCompile(`-c ggml/src/ggml-cuda/(\S+)\.cu `).FindAllStringSubmatch(b.commands(), -1) {
		order = append(order, path.Base(m[1]))
	}
	require.Equal(t, []string{"fattn-tile-instance-dkq40", "fattn-vec-instance-f16-f16", "acc"}, order, "what takes longest begins first")
}

func TestBackendBLAS(t *testing.T) {
	b := newBench(t)
	b.o.Backends = "blas"
	t.Setenv("GOOS", "linux")
	const need = "-backend blas needs OpenBLAS and its cblas.h (Debian, Ubuntu: apt-get install libopenblas-dev)"
	b.fail(need)
	b.header("cblas.h", "// of another BLAS\n")
	b.fail(need)
	b.header("cblas.h", "void openblas_set_num_threads(int);\n")
	commands := b.commands()
	require.Contains(t, line(t, commands, "-c ggml/src/ggml-blas/ggml-blas.cpp"), "-DGGML_BLAS_USE_OPENBLAS")
	require.Contains(t, line(t, commands, "ggml-backend-reg.cpp"), "-DGGML_USE_BLAS ")
	require.Contains(t, line(t, commands, "lesskv-worker.part.tmp"), "-lopenblas ")
	require.Contains(t, b.read(b.layout().Package(), "zz_lesskv_build.go"), "// #cgo LDFLAGS: -lopenblas\nimport \"C\"\n")
	b.did()
	b.header("cblas.h", "void openblas_set_num_threads(int);\n// another version\n")
	b.run()
	require.Contains(t, b.did(), "ggml/src/ggml-blas/ggml-blas.cpp", "for another OpenBLAS it is another object")
}

// On macOS it is the system's Accelerate, with which everything is linked anyway.
func TestBackendBLASOnMacOS(t *testing.T) {
	b := newBench(t)
	b.o.Backends = "blas"
	t.Setenv("GOOS", "darwin")
	t.Setenv("GOARCH", "arm64")
	b.o.Preset = "portable"
	commands := b.commands()
	require.Contains(t, line(t, commands, "-c ggml/src/ggml-blas/ggml-blas.cpp"), "-DGGML_BLAS_USE_ACCELERATE -DACCELERATE_NEW_LAPACK -DACCELERATE_LAPACK_ILP64")
	require.Contains(t, line(t, commands, "lesskv-worker.part.tmp"), "-framework Accelerate")
	require.NotContains(t, commands, "openblas")
}

func TestBackendMetal(t *testing.T) {
	b := newBench(t)
	b.o.Backends = "metal"
	if runtime.GOOS == "linux" {
		b.fail("-backend metal needs macOS")
		t.Setenv("GOOS", "darwin")
		t.Setenv("GOARCH", "arm64")
		b.o.Preset = "portable"
	}
	commands := b.commands()
	require.Contains(t, line(t, commands, "-c ggml/src/ggml-metal/ggml-metal-device.m"), "-DGGML_METAL_EMBED_LIBRARY")
	require.NotContains(t, line(t, commands, "-c ggml/src/ggml-metal/ggml-metal-device.m"), "-std=")
	require.Contains(t, line(t, commands, "lesskv-worker.part.tmp"), "-framework Foundation -framework Metal -framework MetalKit")
	embedded := "ggml/src/ggml-metal/lesskv-embedded/"
	require.Contains(t, commands, "-c "+embedded+"fa.S")
	require.Equal(t, "// impl.h\n// ggml-common.h\n// quantize.h\nkernel cpy;\n", b.read(b.layout().Sources(), embedded+"cpy.metal"))
	require.Equal(t, "// impl.h\n// ggml-common.h\nkernel fa;\n", b.read(b.layout().Sources(), embedded+"fa.metal"))
	s := b.read(b.layout().Sources(), embedded+"fa.S")
	require.Contains(t, s, ".incbin \""+embedded+"fa.metal\"")
	require.Contains(t, s, "_ggml_metallib_fa_start:")
}

func TestBackendUnknown(t *testing.T) {
	b := newBench(t)
	b.o.Backends = "cpu,opencl"
	b.fail(`-backend "cpu,opencl": want some of cpu, blas, cuda, metal, rpc, vulkan, with commas between them`)
}

// shaderProgram stands for upstream's: of the fake compiler's programs the text is what runs.
const shaderProgram = `#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	--glslc) glslc=$2;;
	--source) source=$2;;
	--target-hpp) header=$2;;
	--target-cpp) made=$2;;
	esac
	shift
done
if [ -z "$source" ]; then echo "// of all shaders" > "$header"; exit; fi
echo "x: $source" > "$made.d"
"$glslc" "$source" > "$made"
`

// glslc stands for Debian 13's, which does not know everything either, and oldGLSLC for Debian 12's.
const (
	glslc = `case "$*" in
--version) echo "shaderc v2025";;
*vulkan1.3*) if grep -q bfloat16; then echo "error: '#extension' : extension not supported: GL_EXT_bfloat16" >&2; exit 1; fi;;
*) echo "int spirv;"; cat "$1";;
esac
`
	oldGLSLC = `case "$*" in
--version) printf 'shaderc v2022\nspirv-tools v2022\n';;
*) echo "error: '#extension' : extension not supported: $(sed -n 's/^#extension \([^ ]*\).*/\1/p')" >&2; exit 1;;
esac
`
)

// vulkanSDK is a folder with glslc and the headers, which VULKAN_SDK names and where the fake compiler finds headers.
func (b *bench) vulkanSDK() string {
	b.Helper()
	dir := b.TempDir()
	b.Setenv("GOOS", "linux")
	b.Setenv("VULKAN_SDK", dir)
	b.Setenv("FAKE_INCLUDE", filepath.Join(dir, "include"))
	b.files(dir, map[string]string{
		"bin/glslc":                        "#!/bin/sh\n" + glslc,
		"include/vulkan/vulkan_core.h":     "struct VkLayerSettingsCreateInfoEXT;\n",
		"include/spirv/unified1/spirv.hpp": "// SPIR-V\n",
	})
	require.NoError(b, os.Chmod(filepath.Join(dir, "bin/glslc"), 0o755))
	b.o.Backends = "vulkan"
	return dir
}

// Each shader is C++ that upstream's program makes with glslc, and is compiled again when any of what it may include changes.
func TestBackendVulkan(t *testing.T) {
	b := newBench(t)
	sdk := b.vulkanSDK()
	b.o.Jobs = 1
	commands := b.commands()
	const add, mul = "vulkan-shaders/add.comp --target-cpp ", "vulkan-shaders/mul_mm.comp --target-cpp "
	require.Equal(t, 1, strings.Count(commands, add), "for both trees")
	require.Less(t, strings.Index(commands, mul), strings.Index(commands, add), "what takes longest begins first")
	require.NotContains(t, commands, "feature-tests")
	for _, of := range []string{"-c ggml/src/ggml-vulkan/vulkan-shaders/vulkan-shaders-gen.cpp", "-c ggml/src/ggml-vulkan/ggml-vulkan.cpp"} {
		one := line(t, commands, of)
		require.Contains(t, one, "-DGGML_VULKAN_COOPMAT_GLSLC_SUPPORT -DGGML_VULKAN_COOPMAT2_GLSLC_SUPPORT ")
		require.NotContains(t, one, "BFLOAT16", "which this glslc does not know")
	}
	require.Contains(t, line(t, commands, "ggml-backend-reg.cpp"), "-DGGML_USE_VULKAN ")
	lib := filepath.Join(sdk, "lib")
	libs := "-L" + lib + " -Wl,-rpath," + lib + " -lvulkan"
	require.Contains(t, line(t, commands, "lesskv-worker.part.tmp"), libs+" ")
	require.Contains(t, b.read(b.layout().Package(), "zz_lesskv_build.go"), "// #cgo LDFLAGS: "+libs+"\nimport \"C\"\n")
	archive := b.read(b.layout().Package(), "libbinding.a")
	require.Contains(t, archive, "int spirv;\nint add;")
	require.NotContains(t, archive, "#!/bin/sh", "the program is none of the runtime's")
	require.Contains(t, b.read(b.layout().UnmodifiedWorker()), "int spirv;\nint mul;")
	require.Equal(t, "// of all shaders\n", b.read(b.layout().Sources(), "ggml/src/ggml-vulkan/ggml-vulkan-shaders.hpp"))
	require.NoDirExists(t, filepath.Join(string(b.layout()), ".generated"))
	left, err := filepath.Glob(filepath.Join(b.layout().Objects(), "*.cpp*"))
	require.NoError(t, err)
	for _, path := range left {
		require.Regexp(t, `\.(o|deps)$`, path, "what an object was made of goes")
	}
	require.Contains(t, b.run(), "is up to date")
	b.write(filepath.Join(sdk, "include/vulkan/vulkan_core.h"), "struct VkLayerSettingsCreateInfoEXT; // of another version\n")
	require.Contains(t, b.commands(), add, "for other headers they are other objects")

	b.o.Backends = ""
	require.NotContains(t, b.commands(), "vulkan")
	t.Setenv("VULKAN_SDK", "")
	b.program("glslc", glslc)
	b.o.Backends = "vulkan"
	commands = b.commands()
	require.NotContains(t, line(t, commands, "-c ggml/src/ggml-vulkan/ggml-vulkan.cpp"), sdk, "those of the system")
	require.Contains(t, line(t, commands, "lesskv-worker.part.tmp"), " -lvulkan ")
}

// A shader that glslc refuses is an error with what it said, and the next run goes on from there.
func TestBackendVulkanShaderFails(t *testing.T) {
	b := newBench(t)
	sdk := b.vulkanSDK()
	b.o.Jobs = 1
	b.write(filepath.Join(sdk, "bin/glslc"), "#!/bin/sh\ncase $1 in *add.comp) echo add.comp: no >&2; exit 1; esac\n"+glslc)
	b.fail("add.comp: no")
	b.write(filepath.Join(sdk, "bin/glslc"), "#!/bin/sh\n"+glslc)
	commands := b.commands()
	require.Contains(t, commands, "add.comp --target-cpp")
	require.NotContains(t, commands, "mul_mm.comp --target-cpp", "which came before it")
}

// What is missing, or too old for this version, is said before anything is compiled.
func TestBackendVulkanNeeds(t *testing.T) {
	for name, test := range map[string]struct {
		file, text string // of the SDK that is another; "": it is not there
		wants      []string
	}{
		"no glslc":          {"bin/glslc", "", []string{"glslc, which compiles its shaders", "apt-get install glslc)"}},
		"no headers":        {"include/vulkan/vulkan_core.h", "", []string{"vulkan/vulkan_core.h", "apt-get install libvulkan-dev)"}},
		"no headers of two": {"include/spirv/unified1/spirv.hpp", "", []string{"spirv/unified1/spirv.hpp", "apt-get install spirv-headers)"}},
		"old headers":       {"include/vulkan/vulkan_core.h", "// of 1.3.239\n", []string{"of 1.3.272 or later", "too old", "Debian 13 has newer ones"}},
		"old glslc":         {"bin/glslc", "#!/bin/sh\n" + oldGLSLC, []string{"knows GL_KHR_cooperative_matrix", "glslang 13 or later", "too old, of shaderc v2022: Debian 13"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			path := filepath.Join(b.vulkanSDK(), test.file)
			if test.text == "" {
				require.NoError(t, os.Remove(path))
			} else {
				b.write(path, test.text)
			}
			err := b.fail("-backend vulkan needs ")
			need := (*assemble.NeedError)(nil)
			require.ErrorAs(t, err, &need)
			for _, want := range test.wants {
				require.ErrorContains(t, err, want)
			}
			require.Empty(t, b.did())
		})
	}
	t.Run("a glslc that does not run", func(t *testing.T) {
		b := newBench(t)
		b.write(filepath.Join(b.vulkanSDK(), "bin/glslc"), "#!/bin/sh\n[ $1 = --version ] || { echo broken >&2; exit 3; }\n")
		b.fail("exit status 3\nbroken")
	})
	t.Run("macOS", func(t *testing.T) {
		b := newBench(t)
		b.vulkanSDK()
		t.Setenv("GOOS", "darwin")
		t.Setenv("GOARCH", "arm64")
		b.o.Preset = "portable"
		b.fail("-backend vulkan needs Linux")
	})
}

// A driver is not needed to assemble, and where there is none that is said.
func TestBackendVulkanDriver(t *testing.T) {
	if found, _ := filepath.Glob("/etc/vulkan/icd.d/*.json"); len(found) > 0 {
		t.Skip("this machine has one in /etc")
	}
	b := newBench(t)
	b.vulkanSDK()
	share := t.TempDir()
	for _, name := range []string{"VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"} {
		t.Setenv(name, "")
	}
	for _, name := range []string{"XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME", "XDG_DATA_DIRS"} {
		t.Setenv(name, t.TempDir()+":"+share)
	}
	const warning = "apt-get install mesa-vulkan-drivers"
	require.Contains(t, b.run(), warning)
	b.files(share, map[string]string{"vulkan/icd.d/lvp_icd.json": "{}"})
	require.NotContains(t, b.run(), warning)
	require.NoError(t, os.RemoveAll(filepath.Join(share, "vulkan")))
	t.Setenv("VK_DRIVER_FILES", "/a/driver.json")
	require.NotContains(t, b.run(), warning)
}
