// Command patches assembles the runtime: github.com/go-skynet/go-llama.cpp on a current llama.cpp, with LESS in its
// KV cache.
//
//	go run ./patches                                           in a checkout: build/ and go.work
//	go run github.com/lesskv/lesskv/patches@VERSION -app DIR   for an app: under the user's cache directory
//	go run github.com/lesskv/lesskv/patches@VERSION -install   the command lesskv, where go install puts programs
//
// README.md in this folder says what it does and how the patch series are kept.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"github.com/lesskv/lesskv/cgo"
	"github.com/lesskv/lesskv/patches/internal/assemble"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/usage"
)

//go:embed llama.cpp/*.patch go-llama.cpp/*.patch ggml-rpc/*.patch
var patches embed.FS

func main() {
	ctx, stop := usage.Interruptible(context.Background())
	defer stop()
	err := run(ctx, os.Args[1:], os.Stderr)
	if status := usage.Status(err); status != 0 {
		fmt.Fprintln(os.Stderr, "lesskv:", explain(err))
		stop()
		os.Exit(status)
	}
}

func run(ctx context.Context, args []string, log io.Writer) error {
	o := assemble.Options{Dir: ".", Series: patches, Sources: cgo.Sources, Log: log}
	var clean, prune, undo, install, verbose bool
	flags := flag.NewFlagSet("patches", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.StringVar(&o.App, "app", "", "assemble for the app whose go.mod is in this `folder`, under the user's cache directory")
	flags.BoolVar(&install, "install", false, "assemble, and install the command lesskv with the runtime in it where go install puts programs")
	flags.BoolVar(&o.Replace, "replace", false, "with -app: link it by a replace in its go.mod instead of a go.work")
	flags.BoolVar(&undo, "undo", false, "unlink the app (or this checkout) from the runtime")
	flags.BoolVar(&clean, "clean", false, "delete the build folder and the go.work of this checkout")
	flags.BoolVar(&prune, "prune", false, "delete the runtimes in the user's cache directory that no app uses, and releases of llama.cpp there that this version does not")
	flags.StringVar(&o.Build, "build", "", "the build `folder` (default build beside go.mod, or one in the user's cache directory)")
	flags.StringVar(&o.Trees, "tree", "", "patched, unmodified (what everything is verified against) or all (default all, with -app patched)")
	flags.StringVar(&o.Preset, "preset", "native", "instruction sets: native (this machine) or portable (x86-64-v3, with AVX-512 where a CPU has it; armv8.2-a with dotprod and fp16)")
	flags.StringVar(&o.March, "march", "", "`value` of -march, instead of the preset's")
	flags.StringVar(&o.Llama, "llama", os.Getenv(layout.SourcesVariable), "a `folder` with llama.cpp, instead of fetching it (default $LESSKV_LLAMA)")
	flags.StringVar(&o.Backends, "backend", "cpu", "ggml's backends, with commas between them: cpu, and blas, cuda, metal, rpc, vulkan")
	flags.StringVar(&o.CUDAArch, "cuda-arch", "", "the GPU `architectures` that CUDA is compiled for, as 90 or 89,90 (default those of this machine's GPUs)")
	flags.IntVar(&o.Jobs, "j", 0, "compilers at a time (default one for each CPU)")
	flags.BoolVar(&o.Strict, "strict", false, "warnings of this project's own sources are errors, also where an earlier run compiled them")
	flags.StringVar(&o.Sanitize, "sanitize", "", "`what` is compiled with the address sanitizer, and this project's own with that of undefined behaviour, for tests: all, or part, without ggml's loops and the models' graphs")
	flags.BoolVar(&verbose, "v", false, "print the commands")
	if err := flags.Parse(args); err != nil {
		return usage.Errorf("%w", err)
	}
	if err := usage.NoArguments(flags); err != nil {
		return err
	}
	if err := toolchain.CheckTarget(runtime.GOOS, runtime.GOARCH); err != nil {
		return err
	}
	if verbose {
		o.Trace = log
	}
	if o.Trees == "" {
		o.Trees = "all"
		if o.App != "" {
			o.Trees = "patched"
		}
	}
	switch {
	case clean && o.App != "":
		return usage.Errorf("-clean is for a checkout: -undo unlinks an app, and -prune deletes the runtimes in the user's cache directory that no app uses any more")
	case o.Replace && o.App == "":
		return usage.Errorf("-replace is for apps: a replace in this module's go.mod would break go run MODULE@VERSION")
	case install && (o.App != "" || clean || undo || prune || o.Trees != "all"):
		return usage.Errorf("-install goes without -app, -clean, -undo, -prune and -tree: it assembles both trees, which verify and bench compare")
	case install:
		return installCommand(ctx, o)
	case prune && (o.App != "" || clean || undo):
		return usage.Errorf("-prune goes alone: it looks at the runtimes of all apps")
	case prune:
		return assemble.Prune(ctx, o)
	case clean:
		return assemble.Clean(ctx, o)
	case undo:
		return assemble.Undo(o)
	}
	return assemble.Run(ctx, o)
}

// explain adds what to do to the errors that have nothing to do with the runtime.
func explain(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted: what is compiled is kept, the next run goes on from there")
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("the disk is full: make room and run again, what is compiled is kept: %w", err)
	}
	return err
}
