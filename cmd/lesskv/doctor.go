package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/cpuid/v2"
	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/patches/quoted"
	"github.com/lesskv/lesskv/weights/memory"
)

func newDoctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look at machine, compiler and runtime, with a short test of it",
		Long: `Look at what lesskv needs: CPU, memory, compiler, the go command, llama.cpp's
sources, and the runtime that is assembled for this folder. Then compute some
tokens of the built-in model with the unmodified runtime and with LESS, before
anything is evicted, and compare the logits. The status is 3 if a check fails.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return examine(cmd.Context(), cmd.OutOrStdout()) },
	}
}

// examine makes every check, and fails with errChecks if one found something.
func examine(ctx context.Context, w io.Writer) error {
	s := newSheet(w)
	bad, all := 0, 0
	report := func(name, found string, err error) {
		all++
		if err != nil {
			bad++
			found = "BAD: " + err.Error()
		}
		s.line(name, "%s", found)
	}
	report("cpu", cpu(), nil)
	available := "not known"
	if n, ok := limits.Memory(); ok {
		available = memory.Size(n) + " available"
	}
	report("memory", available, nil)
	for _, c := range []struct{ name, variable, fallback string }{{"C", "CC", "gcc"}, {"C++", "CXX", "g++"}} {
		found, err := compiler(ctx, c.variable, c.fallback)
		report(c.name, found, err)
	}
	found, err := goCommand(ctx)
	report("go", found, err)
	found, err = sources()
	report("sources", found, err)
	l, err := layout.Find(".")
	state, good := "", false
	if err == nil {
		if state, good, err = stateOf(l); err == nil && !good {
			err = errors.New(state)
		}
	}
	report("runtime", fmt.Sprintf("%s: %s", l, state), err)
	if err == nil {
		found, err := selfTest(ctx)
		report("self-test", found, err)
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d %w", bad, all, errChecks)
	}
	return nil
}

// cpu describes the processor, and which x86-64 level or features of arm64 it has.
func cpu() string {
	text := cmp.Or(provenance.CPU(), "no name")
	text += fmt.Sprintf(", %d threads for this process", limits.CPUs())
	if level := cpuid.CPU.X64Level(); level > 0 {
		text += fmt.Sprintf(", x86-64-v%d", level)
	}
	for _, f := range []struct {
		id   cpuid.FeatureID
		name string
	}{{cpuid.ASIMDDP, "dotprod"}, {cpuid.ASIMDHP, "fp16"}, {cpuid.I8MM, "i8mm"}, {cpuid.SVE, "sve"}} { // of arm64, as -march has them
		if cpuid.CPU.Has(f.id) {
			text += ", " + f.name
		}
	}
	return text
}

// goCommand asks the go command which it is.
func goCommand(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "version").Output()
	if err != nil {
		return "", fmt.Errorf("%w: the runtime can't be assembled without it (https://go.dev/dl)", err)
	}
	return printable(strings.TrimPrefix(strings.TrimSpace(string(out)), "go version ")), nil
}

// sources says where llama.cpp is, or where it would be fetched from, in the order in which an assembly looks.
func sources() (string, error) {
	release := "llama.cpp " + pins.Llama.Tag
	if dir := os.Getenv(layout.SourcesVariable); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "CMakeLists.txt")); err != nil {
			return "", fmt.Errorf("$%s: %w: want a checkout of %s or its unpacked release there", layout.SourcesVariable, err, release)
		}
		return fmt.Sprintf("%s, which $%s names", dir, layout.SourcesVariable), nil
	}
	kept, err := layout.KeptSources()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(kept); err == nil {
		return fmt.Sprintf("%s, in %s", release, kept), nil
	}
	if _, err := exec.LookPath("git"); err != nil { // which opens npm's package too
		return "", fmt.Errorf("%s is not kept here, and can't be fetched: %w (Debian, Ubuntu: apt-get install git); or name a folder that has it in $%s", release, err, layout.SourcesVariable)
	}
	text := fmt.Sprintf("%s is not kept here: git fetches it from %s", release, pins.Llama.Repository)
	if _, err := exec.LookPath("npm"); err != nil {
		return text + "; no npm, which would where that is out of reach", nil
	}
	return text + ", or npm where that is out of reach", nil
}

// compiler asks the compiler that cgo would use what it is.
func compiler(ctx context.Context, variable, fallback string) (string, error) {
	name := os.Getenv(variable)
	if name == "" {
		if out, err := exec.CommandContext(ctx, "go", "env", variable).Output(); err == nil {
			name = strings.TrimSpace(string(out))
		}
	}
	if name == "" {
		name = fallback
	}
	words, err := quoted.Split(name)
	if err != nil {
		return "", fmt.Errorf("$%s is %s: %w", variable, name, err)
	}
	if len(words) == 0 {
		return "", fmt.Errorf("$%s is empty", variable)
	}
	out, err := exec.CommandContext(ctx, words[0], append(words[1:], "--version")...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: the runtime can't be assembled without it (Debian, Ubuntu: apt-get install gcc g++)", name, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return printable(first), nil
}

// tolerance is how far a logit may be off the unmodified runtime's while nothing is evicted: the order of sums differs.
const tolerance = 0.05

// selfTest compares the two runtimes on the built-in model.
func selfTest(ctx context.Context) (string, error) {
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		return "", err
	}
	logits := func(tree worker.Tree, less *worker.LESS) (out []float32, err error) {
		program, err := worker.Path(tree)
		if err != nil {
			return nil, err
		}
		w, err := worker.Start(ctx, program)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		if _, err := w.Open(worker.Config{Model: path, Context: 512, Ubatch: 32, LESS: less}); err != nil {
			return nil, err
		}
		tokens, err := w.Tokenize(strings.Repeat("func (s *Server) Serve(l net.Listener) error {\n", 12), true)
		if err != nil {
			return nil, err
		}
		rows, err := w.Feed(0, 0, tokens, worker.All)
		if err != nil {
			return nil, err
		}
		return rows.Values, nil
	}
	start := time.Now()
	want, err := logits(worker.Unmodified, nil)
	if err != nil {
		return "", err
	}
	got, err := logits(worker.Patched, &worker.LESS{Budget: 512})
	if err != nil {
		return "", err
	}
	if len(got) != len(want) || len(got) == 0 {
		return "", fmt.Errorf("%d logits, the unmodified runtime has %d", len(got), len(want))
	}
	most := 0.0
	for i := range got {
		d := math.Abs(float64(got[i] - want[i]))
		if !(d <= tolerance) {
			return "", fmt.Errorf("logit %d is %v, the unmodified runtime's %v: want them equal to %v", i, got[i], want[i], tolerance)
		}
		most = max(most, d)
	}
	return fmt.Sprintf("LESS is the unmodified runtime to %.2g in %d logits (%.1fs)", most, len(got), time.Since(start).Seconds()), nil
}
