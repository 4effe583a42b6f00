package assemble

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

// cudaAttention are the pairs of a cache's types whose flash attention upstream compiles by default.
var cudaAttention = []string{"q4_0-q4_0", "q8_0-q8_0", "f16-f16", "bf16-bf16"}

// cudaDefines are upstream's: CUDA graphs, and which pairs of types there are.
func cudaDefines() []string {
	list := []string{"-DGGML_CUDA_USE_GRAPHS", fmt.Sprintf("-DGGML_CUDA_FA_QUANTS=%q", strings.Join(cudaAttention, ","))}
	types := []string{"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16"}
	for _, v := range types {
		for _, k := range types {
			compiled := 0
			if slices.Contains(cudaAttention, k+"-"+v) {
				compiled = 1
			}
			list = append(list, fmt.Sprintf("-DGGML_CUDA_FA_%s_%s=%d", strings.ToUpper(k), strings.ToUpper(v), compiled))
		}
	}
	return list
}

// cudaWeight is a source's size as what the others' takes as long to compile: an instance of a template is a line of text and up to minutes
// of nvcc, the attention by tiles the longest.
func cudaWeight(p string, size int) int {
	switch name := path.Base(p); {
	case strings.HasPrefix(name, "fattn-tile-instance-"):
		return size << 20
	case path.Base(path.Dir(p)) == "template-instances":
		return size << 16
	}
	return size << 4
}

// findCUDA finds nvcc, in PATH or where NVIDIA's packages put it, and the architecture of the GPUs of this machine.
func findCUDA(ctx context.Context, a *assembly) (machine, error) {
	if a.tools.GOOS != "linux" {
		return machine{}, &NeedError{"cuda", "Linux: NVIDIA has no toolkit for this system", ""}
	}
	nvcc, err := exec.LookPath("nvcc")
	if err != nil {
		if nvcc, err = exec.LookPath("/usr/local/cuda/bin/nvcc"); err != nil {
			return machine{}, &NeedError{"cuda", "nvcc in PATH or in /usr/local/cuda/bin, which NVIDIA's cuda-toolkit has, and Debian's non-free part", "nvidia-cuda-toolkit"}
		}
	}
	out, err := exec.CommandContext(ctx, nvcc, "--version").Output()
	if err != nil {
		return machine{}, fmt.Errorf("%s --version: %w", nvcc, err)
	}
	version := regexp.MustCompile(`release (\d+)\.(\d+)`).FindSubmatch(out)
	if version == nil {
		return machine{}, fmt.Errorf("%s --version: it names no release", nvcc)
	}
	major, _ := strconv.Atoi(string(version[1]))
	minor, _ := strconv.Atoi(string(version[2]))

	root := toolkit(nvcc)
	include := []string{"-I" + filepath.Join(root, "include")}
	targets, _ := filepath.Glob(filepath.Join(root, "targets", "*", "include")) // in Conda's packages
	for _, dir := range targets {
		include = append(include, "-I"+dir)
	}
	cublas, err := a.tools.Preprocess(ctx, toolchain.CXX, "#include <cublas_v2.h>\n", include...)
	if err != nil {
		return machine{}, &NeedError{"cuda", "cuBLAS with its cublas_v2.h beside " + nvcc + ": NVIDIA's libcublas-dev-" + string(version[1]) + "-" + string(version[2]) +
			", which cuda-toolkit has too", "nvidia-cuda-toolkit"}
	}

	archs := strings.FieldsFunc(a.CUDAArch, func(c rune) bool { return c == ',' })
	if len(archs) == 0 {
		if archs, err = gpus(ctx); err != nil {
			return machine{}, err
		}
	}
	a.tools.NVCC = append([]string{nvcc, "-ccbin"}, a.tools.CXX[0])
	m := machine{identity: string(out) + tree.Hash([]byte(cublas)), flags: []string{"-use_fast_math", "-extended-lambda", "-Xcompiler=-fPIC,-fvisibility=hidden,-pthread"}}
	for _, arch := range archs {
		m.flags = append(m.flags, fmt.Sprintf("-gencode=arch=compute_%s,code=sm_%[1]s", arch))
	}
	if major > 12 || major == 12 && minor >= 8 {
		m.flags = append(m.flags, "-compress-mode=size")
	}
	m.flags = append(m.flags, cudaDefines()...)
	m.libs = cudaLibs(root)
	return m, nil
}

// gpus returns the architectures of the machine's GPUs as nvcc names them, each once.
func gpus(ctx context.Context) ([]string, error) {
	const help = "name their architectures with -cuda-arch (90 for an H100, 89 for an RTX 40, 120a for an RTX 50)"
	out, err := exec.CommandContext(ctx, "nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").Output()
	if err != nil {
		return nil, fmt.Errorf("-backend cuda compiles for this machine's GPUs, and nvidia-smi names none (%w): %s", err, help)
	}
	var archs []string
	for _, capability := range strings.Fields(string(out)) {
		arch := strings.ReplaceAll(capability, ".", "")
		if strings.HasPrefix(arch, "12") {
			arch += "a" // what Blackwell has of its own, which upstream's sources use, is in these alone
		}
		archs = append(archs, arch)
	}
	slices.Sort(archs)
	if archs = slices.Compact(archs); len(archs) == 0 {
		return nil, fmt.Errorf("-backend cuda compiles for this machine's GPUs, and nvidia-smi names none: %s", help)
	}
	return archs, nil
}

// toolkit is the folder of the toolkit that nvcc belongs to.
func toolkit(nvcc string) string {
	if resolved, err := filepath.EvalSymlinks(nvcc); err == nil {
		nvcc = resolved
	}
	return filepath.Dir(filepath.Dir(nvcc))
}

// cudaLibs are the toolkit's libraries, which programs find where they lie now, and the driver's, for which the toolkit has a
// stand-in to link with.
func cudaLibs(root string) []string {
	var libs []string
	lib := filepath.Join(root, "lib64")
	if _, err := os.Stat(lib); err == nil {
		libs = append(libs, "-L"+lib, "-L"+filepath.Join(lib, "stubs"), "-Wl,-rpath,"+lib)
	}
	return append(libs, "-lcudart", "-lcublas", "-lcuda")
}
