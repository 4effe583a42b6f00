package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/assemble"
	"github.com/lesskv/lesskv/patches/internal/command"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/outfile"
)

// program is the command that -install installs.
const program = pins.Self + "/cmd/lesskv"

// installCommand assembles the runtime and installs the command lesskv with it. In a checkout that is the checkout's. As go run
// MODULE@VERSION it is that version's: go install MODULE/cmd/lesskv@VERSION would heed no go.work, which is how a module is linked to the
// runtime, so that it is installed from a module of its own in the user's cache directory.
func installCommand(ctx context.Context, o assemble.Options) error {
	dir, err := assemble.Root(o.Dir, "")
	if version := moduleVersion(); version != "" {
		if dir, err = commandModule(ctx, version); err == nil {
			o.App = dir
		}
	}
	if err != nil {
		return err
	}
	if err := assemble.Run(ctx, o); err != nil {
		return err
	}
	flags, err := goCommand(ctx, dir, nil, "env", "CGO_CFLAGS")
	if err != nil {
		return err
	}
	env := []string{"GOWORK=" + filepath.Join(dir, "go.work"), "CGO_CFLAGS=" + flags + " -DLESSKV_ASSEMBLED"}
	target, err := goCommand(ctx, dir, env, "list", "-f", "{{.Target}}", program)
	if err != nil {
		return err
	}
	if err := installProgram(ctx, dir, env, program, target); err != nil {
		return err
	}
	fmt.Fprintf(o.Log, "lesskv: installed %s\n", target)
	return nil
}

// installProgram builds a program for the module in dir and puts it at target, whole or not at all: go install would write into the one that is
// there.
func installProgram(ctx context.Context, dir string, env []string, program, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return outfile.Make(target, func(part string) error {
		_, err := goCommand(ctx, dir, env, "build", "-o", part, program)
		return err
	})
}

// moduleVersion is the version of this module that go run was given, "" in a checkout.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Path != pins.Self || info.Main.Sum == "" { // which only a download has
		return ""
	}
	return info.Main.Version
}

// commandModule makes a module that requires a version of this one, and returns its folder.
func commandModule(ctx context.Context, version string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "lesskv", "command", version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	mod := filepath.Join(dir, "go.mod")
	if err := outfile.WriteBytes(mod, []byte("module lesskv-command\n\ngo 1.24.0\n")); err != nil {
		return "", err
	}
	if _, err := goCommand(ctx, dir, []string{"GOWORK=off"}, "get", program+"@"+version); err != nil {
		return "", err
	}
	return dir, nil
}

// goCommand runs the go command in dir with more in its environment, and returns what it prints.
func goCommand(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := command.Run(ctx, cmd); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
