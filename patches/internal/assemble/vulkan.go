package assemble

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/build"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

const (
	vulkan        = "ggml/src/ggml-vulkan/"
	shaders       = vulkan + "vulkan-shaders/"
	shaderProgram = shaders + "vulkan-shaders-gen.cpp" // upstream's: has glslc compile a shader in all its variants, and makes C++ of them
	shaderHeader  = vulkan + "ggml-vulkan-shaders.hpp" // which it makes, too
)

// shaderExtensions are those of which upstream's shaders have variants where glslc knows them.
var shaderExtensions = []struct{ name, define string }{
	{"GL_KHR_cooperative_matrix", "COOPMAT"},
	{"GL_NV_cooperative_matrix2", "COOPMAT2"},
	{"GL_NV_cooperative_matrix_decode_vector", "COOPMAT2_DECODE_VECTOR"},
	{"GL_EXT_integer_dot_product", "INTEGER_DOT"},
	{"GL_EXT_bfloat16", "BFLOAT16"},
	{"GL_EXT_float_e2m1", "FLOAT_E2M1"},
	{"GL_EXT_float_e4m3", "FLOAT_E4M3"},
}

// findVulkan finds glslc, which compiles shaders, and the headers of Vulkan and of SPIR-V: those of the SDK that VULKAN_SDK names, or the
// system's.
func findVulkan(ctx context.Context, a *assembly) (machine, error) {
	if a.tools.GOOS != "linux" {
		return machine{}, &NeedError{"vulkan", "Linux: on macOS there is the backend metal", ""}
	}
	m := machine{flags: []string{"-I" + path.Clean(vulkan)}}
	glslc := "glslc"
	if sdk := os.Getenv("VULKAN_SDK"); sdk != "" {
		glslc = filepath.Join(sdk, "bin", glslc)
		lib := filepath.Join(sdk, "lib")
		m.flags = append(m.flags, "-I"+filepath.Join(sdk, "include"))
		m.libs = []string{"-L" + lib, "-Wl,-rpath," + lib}
	}
	m.libs = append(m.libs, "-lvulkan")
	glslc, err := exec.LookPath(glslc)
	if err != nil {
		return machine{}, &NeedError{"vulkan", "glslc, which compiles its shaders: " + err.Error(), "glslc"}
	}
	version, err := exec.CommandContext(ctx, glslc, "--version").Output()
	if err != nil {
		return machine{}, fmt.Errorf("%s --version: %w", glslc, err)
	}
	core, err := a.tools.Preprocess(ctx, toolchain.CXX, "#include <vulkan/vulkan_core.h>\n", m.flags...)
	if err != nil {
		return machine{}, &NeedError{"vulkan", "Vulkan's headers with vulkan/vulkan_core.h", "libvulkan-dev"}
	}
	spirv, err := a.tools.Preprocess(ctx, toolchain.CXX, "#include <spirv/unified1/spirv.hpp>\n", m.flags...)
	if err != nil {
		return machine{}, &NeedError{"vulkan", "SPIR-V's headers with spirv/unified1/spirv.hpp", "spirv-headers"}
	}
	m.identity = string(version) + tree.Hash([]byte(core+spirv))

	// What of v0.5.0's sources is written for newer ones only.
	const newer = ": Debian 13 has newer ones, and so has LunarG's Vulkan SDK, whose setup-env.sh sets VULKAN_SDK"
	if !strings.Contains(core, "VkLayerSettingsCreateInfoEXT") {
		return machine{}, &NeedError{"vulkan", "Vulkan's headers (Debian: libvulkan-dev) of 1.3.272 or later, with VK_EXT_layer_settings, and those that are here are too old" + newer, ""}
	}
	for _, e := range shaderExtensions {
		known, err := knows(ctx, glslc, e.name)
		switch {
		case err != nil:
			return machine{}, err
		case known:
			m.flags = append(m.flags, "-DGGML_VULKAN_"+e.define+"_GLSLC_SUPPORT")
		case e.define == "COOPMAT": // the shaders of flash attention use it whether or not it is known
			name, _, _ := strings.Cut(string(version), "\n")
			return machine{}, &NeedError{"vulkan", "a glslc that knows " + e.name + ", of shaderc with glslang 13 or later, and " + glslc + " is too old, of " + name + newer, ""}
		}
	}
	if !hasDriver() {
		a.logf("warning: there is no driver for Vulkan here, without which there is no device: that of a GPU, or Mesa's, which has a device in software, too (Debian, Ubuntu: apt-get install mesa-vulkan-drivers)")
	}
	a.tools.GLSLC = glslc
	return m, nil
}

// knows asks glslc for an extension of the shaders' language, as upstream's build does.
func knows(ctx context.Context, glslc, extension string) (bool, error) {
	cmd := exec.CommandContext(ctx, glslc, "-fshader-stage=compute", "--target-env=vulkan1.3", "-o", os.DevNull, "-")
	cmd.Stdin = strings.NewReader("#version 460\n#extension " + extension + " : require\nvoid main() {}\n")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "extension not supported: "+extension) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return true, nil
}

// hasDriver looks for a driver's description where Vulkan's loader does.
func hasDriver() bool {
	for _, name := range []string{"VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	home, _ := os.UserHomeDir()
	dirs := []string{
		"/etc", cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")), cmp.Or(os.Getenv("XDG_CONFIG_DIRS"), "/etc/xdg"),
		cmp.Or(os.Getenv("XDG_DATA_HOME"), filepath.Join(home, ".local/share")), cmp.Or(os.Getenv("XDG_DATA_DIRS"), "/usr/local/share:/usr/share"),
	}
	for _, dir := range filepath.SplitList(strings.Join(dirs, ":")) {
		if found, _ := filepath.Glob(filepath.Join(dir, "vulkan/icd.d/*.json")); len(found) > 0 {
			return true
		}
	}
	return false
}

// A shaderMaker turns a shader into C++.
type shaderMaker struct {
	command  []string // to which the shader and the file to make are added
	identity string   // of all files that a shader may include, and of the program
}

// makeShaderProgram compiles upstream's program, with which the units of the shaders are made, and adds the header that it makes.
func makeShaderProgram(ctx context.Context, a *assembly, b *build.Builder, t tree.Tree) error {
	dir := a.generated()
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	spirv, program, header := filepath.Join(dir, "spirv"), filepath.Join(dir, "vulkan-shaders-gen"), filepath.Join(dir, path.Base(shaderHeader))
	if err := os.MkdirAll(spirv, 0o755); err != nil {
		return err
	}
	source := filepath.Join(dir, "source")
	alone := tree.Tree{shaderProgram: t[shaderProgram]}
	if err := alone.Sync(source); err != nil {
		return err
	}
	unit := build.Unit{
		Source: shaderProgram, Lang: toolchain.CXX,
		Flags:    append([]string{"-O2", "-std=c++17", "-w", "-pthread"}, a.recipe.backends["vulkan"].flags...),
		Identity: a.recipe.identity[identityKey{toolchain.CXX, false}],
	}
	objects, err := b.Compile(ctx, []build.Job{{Dir: source, Files: alone, Units: []build.Unit{unit}}})
	if err != nil {
		return err
	}
	if err := b.Link(ctx, program, objects[0], a.recipe.libs()); err != nil {
		return err
	}
	command := []string{program, "--glslc", a.tools.GLSLC, "--output-dir", spirv, "--target-hpp", header}
	if _, err := b.Run(ctx, dir, shaderHeader, command); err != nil {
		return err
	}
	data, err := os.ReadFile(header)
	if err != nil {
		return err
	}
	var all strings.Builder
	for _, p := range t.Paths() {
		if strings.HasPrefix(p, shaders) {
			fmt.Fprintln(&all, p, tree.Hash(t[p]))
		}
	}
	a.recipe.shaders = shaderMaker{command, tree.Hash([]byte(all.String()))}
	return t.Add(shaderHeader, data)
}

// generated is the folder of what a run makes on the way to objects.
func (a *assembly) generated() string { return filepath.Join(string(a.out), ".generated") }

// makes is the command that makes C++ of a shader at the path that is added to it.
func (s shaderMaker) makes(p string) []string {
	return append(s.command[:len(s.command):len(s.command)], "--source", p, "--target-cpp")
}

// shaderWeight is a shader's size as what C++ takes as long to compile: the products of matrices have hundreds of variants.
func shaderWeight(p string, size int) int {
	if strings.HasPrefix(path.Base(p), "mul_m") {
		return size << 12
	}
	return size << 8
}
