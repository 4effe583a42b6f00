package toolchain

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/patches/quoted"
)

// FindObjcopy finds objcopy, and tries whether the tools can make one object of several and hide what is in it. isa: the flags that the
// compiler gets; it returns those that it needs beside them. The command is $OBJCOPY, or the one that belongs to AR, or that of the system.
func (t *Toolchain) FindObjcopy(ctx context.Context, isa []string) (flags []string, err error) {
	words, err := t.objcopy()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "lesskv-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	source, object, all := filepath.Join(dir, "probe.cpp"), filepath.Join(dir, "probe.o"), filepath.Join(dir, "all.o")
	if err := os.WriteFile(source, []byte("inline int & last() { static int n; return n; }\nextern \"C\" int next() { return ++last(); }\n"), 0o644); err != nil {
		return nil, err
	}
	compile := func() error {
		_, err := run(ctx, "", t.CXX[0], slices.Concat(t.CXX[1:], isa, flags, []string{"-c", source, "-o", object})...)
		return err
	}
	flags = []string{"-fno-gnu-unique"} // g++'s unique symbols cannot be hidden; clang++ has none, and does not know the flag
	if compile() != nil {
		flags = nil
		if err := compile(); err != nil {
			return nil, err
		}
	}
	tried := *t
	tried.Objcopy = words
	for _, command := range [][]string{
		tried.CombineCommand(all, []string{object}),
		tried.HideCommand(all, []string{"next"}),
	} {
		if _, err := run(ctx, "", command[0], command[1:]...); err != nil {
			return nil, err
		}
	}
	t.Objcopy = words
	return flags, nil
}

func (t *Toolchain) objcopy() ([]string, error) {
	if words, err := quoted.Split(os.Getenv("OBJCOPY")); err != nil || len(words) > 0 {
		return words, err
	}
	names := []string{"objcopy"}
	if prefix, ok := strings.CutSuffix(t.AR[0], "ar"); ok {
		names = []string{prefix + "objcopy", "objcopy"} // as in llvm-ar; gcc-ar has none
	}
	var err error
	for _, name := range names {
		if _, err = exec.LookPath(name); err == nil {
			return []string{name}, nil
		}
	}
	return nil, err
}

// CombineCommand makes one object of several. Its functions that others may define too (inline ones, templates) are its own then, which no
// linker joins with those.
func (t *Toolchain) CombineCommand(path string, objects []string) []string {
	return slices.Concat(t.CXX, []string{"-r", "-nostdlib", "-Wl,--force-group-allocation", "-o", path}, objects)
}

// HideCommand leaves the symbols keep alone visible of those that an object defines.
func (t *Toolchain) HideCommand(object string, keep []string) []string {
	command := slices.Clone(t.Objcopy)
	for _, symbol := range keep {
		command = append(command, "--keep-global-symbol="+symbol)
	}
	return append(command, object)
}
