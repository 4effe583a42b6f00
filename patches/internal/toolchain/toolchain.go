// Package toolchain finds the C and C++ compilers that cgo would use too, asks them what they are, and chooses the
// instruction-set flags.
package toolchain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/command"
	"github.com/lesskv/lesskv/patches/quoted"
	"github.com/lesskv/lesskv/patches/usage"
)

// A Toolchain is the compilers and the target of one assembly.
type Toolchain struct {
	CC, CXX, AR  []string // commands with their leading arguments
	NVCC         []string `json:",omitempty"` // of CUDA, where that was asked for
	GLSLC        string   `json:",omitempty"` // of Vulkan's shaders, likewise
	Objcopy      []string `json:",omitempty"` // where FindObjcopy has found it
	GOOS, GOARCH string   // the target
}

// A MissingError says that a tool of the toolchain isn't there.
type MissingError struct {
	Tool     string // the command, as it was looked for
	Variable string // the environment variable that names another
	Package  string // the Debian package that holds it
	Err      error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%v: install a C and C++ compiler (Debian, Ubuntu: apt-get install %s; macOS: xcode-select --install), or set %s",
		e.Err, e.Package, e.Variable)
}

func (e *MissingError) Unwrap() error { return e.Err }

// An UnsupportedError says that the runtime can't be built for a target.
type UnsupportedError struct{ GOOS, GOARCH string }

func (e *UnsupportedError) Error() string {
	if e.GOOS == "windows" {
		return "windows is not supported: the runtime is built and tested on Linux and macOS; use WSL 2"
	}
	return fmt.Sprintf("%s/%s is not supported: want linux or darwin on amd64 or arm64", e.GOOS, e.GOARCH)
}

// CheckTarget returns an *UnsupportedError unless the runtime can be built for the target.
func CheckTarget(goos, goarch string) error {
	if (goos == "linux" || goos == "darwin") && (goarch == "amd64" || goarch == "arm64") {
		return nil
	}
	return &UnsupportedError{goos, goarch}
}

// Find returns the toolchain that the go command would use for cgo: CC, CXX, AR, GOOS and GOARCH from the environment or
// from go env.
func Find(ctx context.Context) (*Toolchain, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "-json", "CC", "CXX", "AR", "GOOS", "GOARCH")
	cmd.Dir = os.TempDir() // of no module: a broken go.work must not get in the way
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	var env struct{ CC, CXX, AR, GOOS, GOARCH string }
	if err := json.Unmarshal(out, &env); err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	if err := CheckTarget(env.GOOS, env.GOARCH); err != nil {
		return nil, err
	}
	t := &Toolchain{GOOS: env.GOOS, GOARCH: env.GOARCH}
	for _, tool := range []struct {
		command  string
		variable string
		pkg      string
		to       *[]string
	}{
		{env.CC, "CC", "gcc libc6-dev", &t.CC},
		{env.CXX, "CXX", "g++", &t.CXX},
		{env.AR, "AR", "binutils", &t.AR},
	} {
		words, err := quoted.Split(tool.command)
		if err != nil {
			return nil, fmt.Errorf("%s is %s: %w", tool.variable, tool.command, err)
		}
		if len(words) == 0 {
			return nil, &MissingError{tool.variable, tool.variable, tool.pkg, errors.New(tool.variable + " is empty")}
		}
		if _, err := exec.LookPath(words[0]); err != nil {
			return nil, &MissingError{words[0], tool.variable, tool.pkg, err}
		}
		*tool.to = words
	}
	return t, nil
}

// A Language is what a source file is written in.
type Language int

const (
	C Language = iota // Objective-C and assembly, too
	CXX
	CUDA
)

// Compiler returns the command that compiles lang.
func (t *Toolchain) Compiler(lang Language) []string {
	switch lang {
	case C:
		return t.CC
	case CUDA:
		return t.NVCC
	}
	return t.CXX
}

// Identity returns a text that differs whenever the compiler, its headers or the meaning of the flags differ: the
// version, and every macro that is predefined with these flags (-march=native shows in them) or by the library.
func (t *Toolchain) Identity(ctx context.Context, lang Language, flags []string) (string, error) {
	compiler := t.Compiler(lang)
	version, err := run(ctx, "", compiler[0], slices.Concat(compiler[1:], []string{"--version"})...)
	if err != nil {
		return "", err
	}
	macros, err := t.macros(ctx, lang, flags)
	if err != nil {
		return "", err
	}
	return version + "\n" + macros, nil
}

func (t *Toolchain) macros(ctx context.Context, lang Language, flags []string) (string, error) {
	compiler := t.Compiler(lang)
	name, probe := "c", "#include <stdio.h>\n"
	if lang == CXX {
		name, probe = "c++", "#include <vector>\n"
	}
	args := slices.Concat(compiler[1:], flags, []string{"-E", "-dM", "-x", name, "-"})
	return run(ctx, probe, compiler[0], args...)
}

// Preprocess returns what the preprocessor makes of a text, with these flags.
func (t *Toolchain) Preprocess(ctx context.Context, lang Language, text string, flags ...string) (string, error) {
	compiler := t.Compiler(lang)
	name := "c"
	if lang == CXX {
		name = "c++"
	}
	return run(ctx, text, compiler[0], slices.Concat(compiler[1:], flags, []string{"-E", "-x", name, "-"})...)
}

func run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := command.New(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := command.Run(ctx, cmd); err != nil {
		if ctx.Err() != nil {
			return "", err
		}
		return "", fmt.Errorf("%s: %w\n%s\nthe compiler can't be used like this; on Debian and Ubuntu, apt-get install g++ gives a complete one",
			strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// ISA returns the instruction-set flags of a preset, "native" or "portable"; march, where not empty, replaces them.
// They apply to ggml's CPU backend and to the LESS kernels: everything else is compiled for any CPU of the
// architecture, so that the check for the features can run before them.
func (t *Toolchain) ISA(preset, march string) ([]string, error) {
	if march != "" {
		return []string{"-march=" + march}, nil
	}
	apple := t.GOOS == "darwin" && t.GOARCH == "arm64"
	switch preset {
	case "native":
		if t.GOARCH != runtime.GOARCH || t.GOOS != runtime.GOOS {
			return nil, usage.Errorf("preset native means this machine, but the target is %s/%s: choose -preset portable or -march", t.GOOS, t.GOARCH)
		}
		if t.GOARCH == "arm64" {
			return []string{"-mcpu=native"}, nil
		}
		return []string{"-march=native"}, nil
	case "portable":
		switch {
		case apple:
			return []string{"-mcpu=apple-m1"}, nil
		case t.GOARCH == "arm64":
			return []string{"-march=armv8.2-a+dotprod+fp16"}, nil
		}
		return []string{"-march=x86-64-v3"}, nil
	}
	return nil, usage.Errorf("preset %q: want native or portable", preset)
}
