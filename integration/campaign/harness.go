package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// A compiler is a C and a C++ compiler of one kind.
type compiler struct{ cc, cxx string }

// findClang returns a clang, which alone has libFuzzer.
func findClang() (compiler, error) {
	for _, version := range []string{"", "-20", "-19", "-18", "-17", "-16", "-15", "-14"} {
		c := compiler{"clang" + version, "clang++" + version}
		_, err1 := exec.LookPath(c.cc)
		_, err2 := exec.LookPath(c.cxx)
		if err1 == nil && err2 == nil {
			return c, nil
		}
	}
	return compiler{}, errors.New("no clang here, which the harnesses of the C and C++ readers need: install it (Debian: clang), or leave them out with -only")
}

// writeInputs writes the model and the adapter that the harnesses use into a folder and returns the variables that name them.
func writeInputs(dir string) ([]string, error) {
	m, err := tinymodels.Find("llama")
	if err != nil {
		return nil, err
	}
	path, err := m.WriteIn(dir, gguf.F32, 1)
	if err != nil {
		return nil, err
	}
	model, err := weights.ReadModel(path)
	if err != nil {
		return nil, err
	}
	a := weights.Random(model, 2, 2, weights.Trained{Policy: "h2o", Heavy: 3, Recent: 3, Ubatch: 8, Context: 64}, 1)
	a.Kernels[1] = weights.Random(model, 3, 1, a.Trained, 1).Kernels[1] // of another size
	for i := 2; i < len(a.Kernels); i++ {
		a.Kernels[i] = weights.Kernels{} // small, and a layer without
	}
	a.Kernels[0].Scale.Values = make([]float32, model.Heads)
	adapter := filepath.Join(dir, "adapter.gguf")
	if err := a.Write(adapter); err != nil {
		return nil, err
	}
	return []string{"LESSKV_FUZZ_MODEL=" + path, "LESSKV_FUZZ_ADAPTER=" + adapter}, nil
}

// A builder compiles harnesses with the sanitizers, against the sources and the archive of the patched runtime.
type builder struct {
	build    layout.Layout
	harness  string // folder of the harnesses
	dir      string // where what it makes goes
	compiler compiler
	flags    []string // of compiling, beside the sanitizers'
	link     []string // sources and flags of linking: what has a main function
	objects  map[string]bool
}

// make compiles a harness and what it reads with, and returns the program.
func (b *builder) make(ctx context.Context, t target) (string, error) {
	if b.objects == nil {
		b.objects = map[string]bool{}
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return "", err
	}
	less := filepath.Join(b.build.Sources(), "less")
	sources := []string{filepath.Join(b.harness, t.harness)}
	own, err := b.build.Own(t.sources...)
	if err != nil {
		return "", err
	}
	sources = append(sources, own...)
	// no checksum is looked at: what lies behind it is the fuzzer's
	flags := append([]string{"-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Werror=incompatible-pointer-types",
		"-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION", "-DLESSKV", "-D_GNU_SOURCE", "-pthread", "-I", less, "-I", b.build.Package()}, b.flags...)
	for _, d := range []string{"include", "src", "ggml/include", "ggml/src"} {
		flags = append(flags, "-isystem", filepath.Join(b.build.Sources(), d))
	}
	if runtime.GOARCH == "amd64" {
		flags = append(flags, "-march=native")
	}
	var link []string
	for _, source := range append(sources, b.link...) {
		command, std := b.compiler.cxx, "-std=c++17"
		switch filepath.Ext(source) {
		case ".c":
			command, std = b.compiler.cc, "-std=c11"
		case ".cpp":
		default: // a flag
			link = append(link, source)
			continue
		}
		object := filepath.Join(b.dir, filepath.Base(source)+".o")
		link = append(link, object)
		if b.objects[object] { // another harness has it too
			continue
		}
		if err := execute(ctx, command, append([]string{std, "-c", source, "-o", object}, flags...)...); err != nil {
			return "", err
		}
		b.objects[object] = true
	}
	program := filepath.Join(b.dir, t.name)
	link = append(link, filepath.Join(b.build.Package(), "libbinding.a"), "-fsanitize=address,undefined", "-pthread", "-lm", "-ldl", "-o", program)
	return program, execute(ctx, b.compiler.cxx, link...)
}

func execute(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
