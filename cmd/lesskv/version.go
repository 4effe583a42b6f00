package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/cgo"
	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/patches/layout"
)

// A linkedRuntime is the runtime in this command: which, and the instruction sets that it chose for this CPU, of LESS and of ggml where it has several.
type linkedRuntime struct{ base, flags, compiler, archive, level, ggml string }

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which lesskv this is, and which runtime it has",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return printVersion(cmd.OutOrStdout()) },
	}
}

// noArguments refuses arguments.
func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q: want no argument", args[0])}
	}
	return nil
}

func printVersion(w io.Writer) error {
	s := newSheet(w)
	s.line("lesskv", "%s", provenance.Version())
	s.line("go", "%s, %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if linked.base == "" {
		s.line("runtime", "none: this lesskv was built without cgo")
	} else {
		s.line("runtime", "%s, %s for kernels and CPU backend, archive %.12s…", linked.base, linked.flags, linked.archive)
		s.line("compiler", "%s", linked.compiler)
		s.line("kernels", "%s, chosen for this CPU", linked.level)
		if linked.ggml != "" {
			s.line("ggml", "%s, chosen for this CPU", linked.ggml)
		}
	}
	l, err := layout.Find(".")
	if err != nil {
		s.line("assembled", "none for this folder")
		return s.w.Flush()
	}
	state, _, err := stateOf(l)
	if err != nil {
		return err
	}
	s.line("assembled", "%s: %s", l, state)
	return s.w.Flush()
}

// stateOf says whether an assembled runtime is what this command would make and has linked; good tells it.
func stateOf(l layout.Layout) (state string, good bool, err error) {
	stale, err := staleFile(l)
	switch {
	case err != nil:
		return "", false, err
	case stale != "":
		return fmt.Sprintf("stale, %s differs: GOWORK=off go run ./patches in the checkout makes it anew", stale), false, nil
	}
	if linked.archive == "" {
		return "up to date", true, nil
	}
	data, err := os.ReadFile(filepath.Join(l.Package(), "libbinding.a"))
	if err != nil {
		return "", false, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != linked.archive {
		return "up to date, but not the one in this lesskv: build it again", false, nil
	}
	return "up to date, and the one in this lesskv", true, nil
}

// staleFile returns a source of this project that the runtime was made without, or from another version of; "" if there is none.
func staleFile(l layout.Layout) (stale string, err error) {
	err = fs.WalkDir(cgo.Sources, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || stale != "" {
			return err
		}
		made, readErr := os.ReadFile(filepath.Join(l.Sources(), "less", path.Base(name)))
		want, err := cgo.Sources.ReadFile(name)
		if layout.Assembled(name) && (readErr != nil || !bytes.Equal(made, want)) {
			stale = "cgo/" + name
		}
		return err
	})
	return stale, err
}
