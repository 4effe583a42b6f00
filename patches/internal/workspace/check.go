package workspace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/patches/pins"
)

// A NotUsedError says that a module is linked to a runtime, but that the go command doesn't take it from there.
type NotUsedError struct {
	Dir, File string // the module's folder, and the file that links it
	Want      string // the runtime's folder
	Got       string // another folder, or what the go command says instead of one, or "" where it would not build in Dir
	Why, Do   string
}

func (e *NotUsedError) Error() string {
	got := "would not use it"
	switch {
	case filepath.IsAbs(e.Got):
		got = "takes it from " + e.Got
	case e.Got != "":
		got = fmt.Sprintf("says %q", e.Got)
	}
	return fmt.Sprintf("%s takes %s from %s, but the go command in %s %s: %s. %s. -undo removes the link again",
		e.File, pins.GoLlama.Path, e.Want, e.Dir, got, e.Why, e.Do)
}

// An UnansweredError says that the go command can't say where a linked module comes from, for a reason that lies elsewhere: no
// network, a requirement that is missing. Its own words say what to do.
type UnansweredError struct {
	Dir, File string
	Words     string
}

func (e *UnansweredError) Error() string {
	return fmt.Sprintf("%s links the module to the runtime, but the go command in %s can't say yet whether it is used: %s", e.File, e.Dir, e.Words)
}

// Check asks the go command in dir, in the environment as it is, whether it takes the module from runtime, as file says.
// Otherwise the error is a *NotUsedError or an *UnansweredError. It writes to no file of the module.
func Check(ctx context.Context, dir, file, runtime string) error {
	out, err := goCommand(ctx, dir, "env", "-json", "GOWORK", "GOFLAGS")
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &UnansweredError{dir, file, err.Error()}
	}
	var env struct{ GOWORK, GOFLAGS string }
	if err := json.Unmarshal([]byte(out), &env); err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	c := check{dir: dir, file: file, work: env.GOWORK, mod: flag(env.GOFLAGS, "mod"), modfile: flag(env.GOFLAGS, "modfile"), listed: true}
	list := []string{"list"}
	if c.mod == "mod" && !c.inWork() {
		list = append(list, "-mod=readonly") // -mod=mod would write to go.mod
	}

	main, err := goCommand(ctx, dir, append(list, "-m", "-f", "{{.Dir}}")...)
	var got string
	if err == nil {
		c.listed = slices.ContainsFunc(strings.Split(main, "\n"), func(d string) bool { return same(d, dir) })
		// -e: where the package is, whatever else is wrong with it.
		got, err = goCommand(ctx, dir, append(list, "-e", "-find", "-f", "{{or .Dir .Error}}", pins.GoLlama.Path)...)
		if err == nil && !filepath.IsAbs(got) {
			err = errors.New(got)
		}
	}
	if err == nil && c.listed && holds(got, runtime) {
		return nil
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		got = err.Error()
	}
	why, do := c.explain(got)
	switch {
	case why != "":
	case err != nil:
		return &UnansweredError{dir, file, got}
	default:
		why, do = "something else goes before it", "See go env GOFLAGS and the other lines of "+file
	}
	if !c.listed {
		got = "" // the runtime's folder, in which dir has no part
	}
	got, _, _ = strings.Cut(strings.TrimPrefix(got, "go: "), "\n")
	return &NotUsedError{Dir: dir, File: file, Want: runtime, Got: got, Why: why, Do: do}
}

// check is what is known where a link does not take effect.
type check struct {
	dir, file    string
	work         string // GOWORK: a go.work's path, off, or ""
	mod, modfile string // of GOFLAGS
	listed       bool   // dir is one of the go command's main modules
}

// inWork reports whether the go command heeds a go.work.
func (c *check) inWork() bool { return c.work != "" && c.work != "off" }

// explain says why the link does not take effect, and what to do; "" if it is for none of the known reasons. got is the folder that the
// go command found, or its words.
func (c *check) explain(got string) (why, do string) {
	byWork := filepath.Base(c.file) == "go.work"
	const unset = "Unset GOWORK (go env -u GOWORK, where go env -w set it), or link with -replace"
	switch {
	case byWork && c.work == "off":
		return "GOWORK=off makes it ignore every go.work", unset
	case byWork && c.work != "" && !same(c.work, c.file):
		return "GOWORK names " + c.work + " instead", unset
	case c.inWork() && c.mod == "mod":
		do = "Take -mod=mod out of GOFLAGS (go env -u GOFLAGS, where go env -w set it)"
		if byWork {
			do += ", or link with -replace"
		}
		return "GOFLAGS=-mod=mod and a go.work exclude each other", do
	case c.modfile != "":
		return "GOFLAGS=-modfile=" + c.modfile + " goes before go.mod and excludes a go.work", "Take -modfile out of GOFLAGS"
	case c.inWork() && !c.listed:
		do = "Add it: go work use " + c.dir
		if !byWork {
			do += "; or build with GOWORK=off"
		}
		return c.work + " does not list that folder", do
	}
	vendor, sync := filepath.Join(c.dir, "vendor"), "go mod vendor"
	if c.inWork() {
		vendor, sync = filepath.Join(filepath.Dir(c.work), "vendor"), "go work vendor"
	}
	switch _, err := os.Stat(vendor); {
	case c.mod == "vendor" && errors.Is(err, fs.ErrNotExist):
		return "GOFLAGS=-mod=vendor asks for " + vendor + ", which is not there", "Build with GOFLAGS=-mod=readonly, or run " + sync
	case c.mod == "vendor" || c.mod == "" && err == nil && strings.Contains(got, "vendor"):
		return vendor + " goes before it and holds no copy of this runtime",
			"Build with GOFLAGS=-mod=readonly, which ignores that folder, or run " + sync + " after each new runtime"
	}
	return "", ""
}

// flag returns the value of a flag in a GOFLAGS, "" if it is not there.
func flag(flags, name string) (value string) {
	for _, f := range strings.Fields(flags) {
		if v, ok := strings.CutPrefix(strings.Replace(f, "--", "-", 1), "-"+name+"="); ok {
			value = v
		}
	}
	return value
}

// holds reports whether the package in got is the runtime's: its folder, or a copy that go mod vendor made of it, which
// lacks some files.
func holds(got, runtime string) bool {
	if same(got, runtime) {
		return true
	}
	entries, err := os.ReadDir(got)
	if err != nil {
		return false
	}
	archive := false
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		have, err := os.ReadFile(filepath.Join(got, e.Name()))
		if err != nil {
			return false
		}
		want, err := os.ReadFile(filepath.Join(runtime, e.Name()))
		if err != nil || !bytes.Equal(have, want) {
			return false
		}
		archive = archive || e.Name() == "libbinding.a"
	}
	return archive
}

// same reports whether two paths are one file, whatever links lead to it.
func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// goCommand runs the go command in dir and returns what it prints; the error is what it complains of.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if words := strings.TrimSpace(stderr.String()); words != "" {
			return "", errors.New(words)
		}
		return "", fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return strings.TrimSpace(stdout.String()), nil
}
