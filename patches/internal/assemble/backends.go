package assemble

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/build"
	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/usage"
)

// A backend is one of ggml's that can be chosen beside the CPU's: the sources in ggml/src/ggml-NAME.
type backend struct {
	name  string
	find  func(ctx context.Context, a *assembly) (machine, error)                     // looks for what it needs
	files func(ctx context.Context, a *assembly, b *build.Builder, t tree.Tree) error // adds what its build generates; nil: nothing
}

// machine is what a backend needs of the machine that compiles it, as it was found there.
type machine struct {
	flags    []string // for its sources
	libs     []string // for what is linked with it
	identity string   // of what flags do not tell: compilers, libraries
}

var backends = []backend{
	{name: "blas", find: findBLAS},
	{name: "cuda", find: findCUDA},
	{name: "metal", find: findMetal, files: embedMetal},
	{name: "rpc", find: func(context.Context, *assembly) (machine, error) { return machine{}, nil }},
	{name: "vulkan", find: findVulkan, files: makeShaderProgram},
}

// A NeedError is something that a backend needs and this machine lacks.
type NeedError struct {
	Backend string
	Need    string // what it is, and where it was looked for
	Debian  string // the package that holds it; "" if none does
}

func (e *NeedError) Error() string {
	text := fmt.Sprintf("-backend %s needs %s", e.Backend, e.Need)
	if e.Debian != "" {
		text += " (Debian, Ubuntu: apt-get install " + e.Debian + ")"
	}
	return text
}

// parseBackends reads -backend: names with commas between them. The CPU's is always there and may be named.
func parseBackends(list string) ([]backend, error) {
	var chosen []backend
	for _, name := range strings.FieldsFunc(list, func(c rune) bool { return c == ',' }) {
		i := slices.IndexFunc(backends, func(b backend) bool { return b.name == name })
		switch {
		case name == "cpu" || i >= 0 && slices.ContainsFunc(chosen, func(b backend) bool { return b.name == name }):
		case i < 0:
			names := []string{"cpu"}
			for _, b := range backends {
				names = append(names, b.name)
			}
			return nil, usage.Errorf("-backend %q: want some of %s, with commas between them", list, strings.Join(names, ", "))
		default:
			chosen = append(chosen, backends[i])
		}
	}
	slices.SortFunc(chosen, func(x, y backend) int { return strings.Compare(x.name, y.name) })
	return chosen, nil
}

// findBackends looks for what the chosen backends need.
func (a *assembly) findBackends(ctx context.Context) error {
	var err error
	if a.backends, err = parseBackends(a.Backends); err != nil {
		return err
	}
	a.recipe.backends = map[string]machine{}
	for _, b := range a.backends {
		if a.recipe.backends[b.name], err = b.find(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// ofBackend returns which backend a file of a release belongs to, "" if none.
func ofBackend(p string) string {
	if p == source.RPCServer {
		return "rpc"
	}
	rest, _ := strings.CutPrefix(p, "ggml/src/ggml-")
	name, _, ok := strings.Cut(rest, "/")
	if ok && slices.ContainsFunc(backends, func(b backend) bool { return b.name == name }) {
		return name
	}
	return ""
}

// chosenFiles are those of the backends' files that belong to a chosen one.
func chosenFiles[T any](files map[string]T, chosen map[string]machine) map[string]T {
	files = maps.Clone(files)
	maps.DeleteFunc(files, func(p string, _ T) bool {
		_, ok := chosen[ofBackend(p)]
		return !ok
	})
	return files
}

// notCompiled says which of a backend's sources upstream compiles for other machines and options only.
func notCompiled(p string) bool {
	name := path.Base(p)
	return name == "transport-apple.cpp" || // RDMA over Thunderbolt
		p == shaderProgram || path.Dir(p) == shaders+"feature-tests" || // of the build
		strings.HasPrefix(name, "fattn-vec-instance-") && !slices.Contains(cudaAttention, strings.TrimSuffix(strings.TrimPrefix(name, "fattn-vec-instance-"), ".cu"))
}

// extraLibs are what a program that holds the chosen backends, and sanitizers, is linked with beside the CPU's libraries.
func (r *recipe) extraLibs() []string {
	libs := r.sanitize.libs()
	for _, name := range slices.Sorted(maps.Keys(r.backends)) {
		libs = append(libs, r.backends[name].libs...)
	}
	return libs
}

// defines makes ggml's registry of backends know the chosen ones.
func (r *recipe) defines() []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(r.backends)) {
		list = append(list, "-DGGML_USE_"+strings.ToUpper(name))
	}
	return list
}

// findBLAS finds OpenBLAS, and on macOS what the system has.
func findBLAS(ctx context.Context, a *assembly) (machine, error) {
	if a.tools.GOOS == "darwin" {
		return machine{flags: []string{"-DGGML_BLAS_USE_ACCELERATE", "-DACCELERATE_NEW_LAPACK", "-DACCELERATE_LAPACK_ILP64"}}, nil
	}
	m := machine{flags: []string{"-DGGML_BLAS_USE_OPENBLAS"}, libs: []string{"-lopenblas"}}
	header, err := a.tools.Preprocess(ctx, toolchain.CXX, "#include <cblas.h>\n")
	if err != nil || !strings.Contains(header, "openblas_set_num_threads") {
		return m, &NeedError{"blas", "OpenBLAS and its cblas.h", "libopenblas-dev"}
	}
	m.identity = tree.Hash([]byte(header))
	return m, nil
}

// addBackends puts the sources of the chosen backends into a tree, and what their builds generate.
func (a *assembly) addBackends(ctx context.Context, bld *build.Builder, t tree.Tree) error {
	for p, data := range chosenFiles(a.devices.Files, a.recipe.backends) {
		if err := t.Add(p, data); err != nil {
			return err
		}
	}
	for _, b := range a.backends {
		if b.files != nil {
			if err := b.files(ctx, a, bld, t); err != nil {
				return err
			}
		}
	}
	return nil
}
