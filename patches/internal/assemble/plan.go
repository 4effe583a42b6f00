package assemble

import (
	"fmt"
	"path"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/build"
	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
)

// llamaTree returns what is assembled of llama.cpp: its sources, and the headers that its build makes.
func llamaTree(release *source.Source) (tree.Tree, error) {
	t := tree.Tree{}
	for p, data := range release.Files {
		if path.Base(p) != "CMakeLists.txt" {
			t[p] = data
		}
	}
	for _, h := range []struct{ path, name, cmake string }{
		{"src/llama-version.h", "LLAMA", "CMakeLists.txt"},
		{"ggml/src/ggml-version.h", "GGML", "ggml/CMakeLists.txt"},
	} {
		header := fmt.Sprintf("#define %s_VERSION %q\n#define %s_COMMIT %q\n", h.name, source.Version(release.Files[h.cmake], h.name), h.name, release)
		if err := t.Add(h.path, []byte(header)); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// goLlamaFile says where a file of the module of the Go API goes, "" if it is not needed. Its binding.cpp would be compiled by
// cgo with upstream's flags; ours goes into the archive.
func goLlamaFile(name string) string {
	dir, _, _ := strings.Cut(name, "/")
	if name == "binding.cpp" || name == "Makefile" || name == ".gitmodules" || dir == "patches" || dir == ".github" {
		return ""
	}
	return name
}

// less is the folder of the assembled trees that holds the sources of cgo/.
const less = "less/"

func isWorker(p string) bool  { return strings.HasPrefix(p, less+"worker") || p == less+"devices.h" }
func isBinding(p string) bool { return strings.HasPrefix(p, less+"binding") }

// lessFile says where a file of cgo/ goes; "" for one that the runtime does without.
func lessFile(name string) string {
	if !layout.Assembled(name) {
		return ""
	}
	return less + path.Base(name)
}

// models is llama.cpp's folder of one source a model, 155 of them, each small and each including everything. In one unit
// they took 23 s on one core, in batches of 16, which is upstream's way, 27 s, and each alone 1 s.
const (
	models    = "src/models/"
	allModels = models + "lesskv-all.cpp"
)

func isModel(p string) bool {
	return strings.HasPrefix(p, models) && path.Ext(p) == ".cpp"
}

// A policy registers itself before main. Of an archive a linker takes only objects that something refers to, which nothing does to a
// policy: it comes with the list that it is in.
const (
	policy      = less + "policy"
	allPolicies = less + layout.Policies
)

func isPolicy(p string) bool {
	return p == policy+".c" || strings.HasPrefix(p, policy+"_") && path.Ext(p) == ".c"
}

// join adds the unit all, which includes the sources beside it that are of a kind; none: there is none.
func join(files tree.Tree, all, comment string, is func(string) bool) error {
	b := strings.Builder{}
	for _, p := range files.Paths() {
		if is(p) {
			fmt.Fprintf(&b, "#include %q\n", path.Base(p))
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return files.Add(all, []byte("// Generated: "+comment+".\n"+b.String()))
}

// joined reports whether a source is part of a unit that join added.
func joined(files tree.Tree, p string) bool {
	return isModel(p) && p != allModels || isPolicy(p) && files[allPolicies] != nil
}

// packageHeaders are the headers of cgo/ that the Go package includes.
var packageHeaders = []string{"binding_lesskv.h", "lesskv-llama.h"}

// A recipe turns the sources of a tree into units.
type recipe struct {
	goos, goarch string
	isa          []string // instruction-set flags
	levels       []level  // of ggml's CPU backend, where it is compiled more than once; the first has the flags isa
	strict       bool     // warnings of our own sources are errors: for checks, another compiler has other warnings
	sanitize     sanitizing
	define       []string // for our own sources
	identity     map[identityKey]string
	compiler     string             // what the C++ compiler calls itself
	backends     map[string]machine // the chosen ones, by name
	shaders      shaderMaker        // of the backend vulkan
}

type identityKey struct {
	lang toolchain.Language
	isa  bool
}

var (
	common = []string{"-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-pthread"}
	ggml   = []string{
		"-O3", "-DGGML_USE_CPU", "-DGGML_USE_CPU_REPACK", "-DGGML_USE_LLAMAFILE",
		"-Iggml/include", "-Iggml/src", "-Iggml/src/ggml-cpu",
	}
	llama = []string{"-O2", "-DGGML_USE_CPU", "-Iinclude", "-Isrc", "-Iggml/include", "-Iggml/src", "-Iless"}
	// Our own sources see llama.cpp's headers as the system's: warnings in them aren't ours.
	ours = []string{
		"-O3", "-Wall", "-Wextra", "-Iless",
		"-isystem", "include", "-isystem", "src", "-isystem", "ggml/include", "-isystem", "ggml/src",
	}
)

// units lists what is compiled of a tree, what runs on any CPU first: where two objects hold the same inline function, the
// linker keeps the first, and that one must not need more than the check for the CPU's features allows.
func (r *recipe) units(files tree.Tree) []build.Unit {
	var plain, isa []build.Unit
	for _, p := range files.Paths() {
		if joined(files, p) {
			continue
		}
		u := build.Unit{Source: p, Flags: common, Weight: len(files[p])}
		flags := func(list ...string) { u.Flags = append(u.Flags[:len(u.Flags):len(u.Flags)], list...) }
		switch path.Ext(p) {
		case ".c", ".m", ".S":
			u.Lang = toolchain.C
		case ".cpp":
			u.Lang = toolchain.CXX
			flags("-std=c++17")
		case ".cu":
			u.Lang = toolchain.CUDA
			u.Flags = []string{"-DNDEBUG", "-std=c++17"} // the others are g++'s
			u.Weight = cudaWeight(p, u.Weight)
		case ".comp":
			u.Lang = toolchain.CXX
			u.Generate = r.shaders.makes(p)
			u.Weight = shaderWeight(p, u.Weight)
			flags("-std=c++17")
		default:
			continue
		}
		if notCompiled(p) || p == levelChoice && len(r.levels) == 0 {
			continue
		}
		if r.goos == "linux" {
			flags("-D_GNU_SOURCE")
		} else {
			flags("-D_DARWIN_C_SOURCE")
		}
		hot := false
		switch dir, _, _ := strings.Cut(p, "/"); dir {
		case "ggml":
			if arch, ok := strings.CutPrefix(p, ggmlLoops+"arch/"); ok && !strings.HasPrefix(arch, ggmlArch[r.goarch]) {
				continue
			}
			hot = strings.HasPrefix(p, ggmlLoops)
			flags("-w")
			flags(ggml...)
			if path.Ext(p) == ".c" {
				flags("-std=gnu11", "-fexceptions") // the binding throws from ggml's assertions
			}
			if p == registry {
				flags(r.defines()...)
			}
			if r.goos == "darwin" && r.goarch == "arm64" {
				flags("-DGGML_USE_ACCELERATE", "-DACCELERATE_NEW_LAPACK", "-DACCELERATE_LAPACK_ILP64")
			}
		case "tools":
			flags("-w")
			flags(ggml...)
		case "src":
			flags("-w")
			flags(llama...)
			if p == allModels {
				for m, data := range files {
					if strings.HasPrefix(m, models) {
						u.Weight += len(data)
					}
				}
			}
		case "less":
			hot = u.Lang == toolchain.C
			flags(ours...)
			flags(r.define...)
			if len(r.levels) > 0 {
				flags("-DLESSKV_GGML_LEVELS")
			}
			if u.Lang == toolchain.C {
				flags("-std=c11")
			}
			u.Strict = r.strict
		}
		flags(r.sanitize.flags(p)...)
		lang := u.Lang
		if lang == toolchain.CUDA {
			lang = toolchain.CXX // which nvcc calls
		}
		u.Identity = r.identity[identityKey{lang, hot}]
		if m, ok := r.backends[ofBackend(p)]; ok {
			flags(m.flags...)
			u.Identity += m.identity
		}
		if len(u.Generate) > 0 {
			u.Identity += r.shaders.identity
		}
		switch {
		case !hot:
			plain = append(plain, u)
		case len(r.levels) > 0 && strings.HasPrefix(p, ggmlLoops):
			for _, l := range r.levels {
				isa = append(isa, l.unit(u))
			}
		default:
			flags(r.isa...)
			isa = append(isa, u)
		}
	}
	return append(plain, isa...)
}

// ggmlLoops is the folder of ggml's operations on a CPU.
const ggmlLoops = "ggml/src/ggml-cpu/"

// registry is the source that lists ggml's backends: the only one that is compiled otherwise where there are more.
const registry = "ggml/src/ggml-backend-reg.cpp"

var ggmlArch = map[string]string{"amd64": "x86/", "arm64": "arm/"}

// libs are what a program that holds llama.cpp is linked with, beside extraLibs.
func (r *recipe) libs() []string {
	if r.goos == "darwin" {
		return []string{"-lm", "-framework", "Accelerate"}
	}
	return []string{"-pthread", "-lm", "-ldl"}
}

// stampFile is the Go file of the assembled package that changes with the archive. The constants are exported: an
// unused one that isn't would leave the compiled package as it was, and the go command would not link anew.
func stampFile(archive, runtime, flags, compiler string, libs []string) []byte {
	link := ""
	if len(libs) > 0 {
		link = fmt.Sprintf("\n// #cgo LDFLAGS: %s\nimport \"C\"\n", strings.Join(libs, " "))
	}
	return fmt.Appendf(nil, `// Code generated by %s/patches; DO NOT EDIT.

package llama
%s
// What libbinding.a was built from. The go command does not look into an archive behind -lbinding: this file is what
// makes it build and link anew when the archive changes.
const (
	LesskvArchive  = %q // SHA-256
	LesskvRuntime  = %q
	LesskvFlags    = %q
	LesskvCompiler = %q
)
`, pins.Self, link, archive, runtime, flags, compiler)
}
