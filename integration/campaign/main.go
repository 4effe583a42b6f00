// Command campaign fuzzes everything that parses what others wrote: each target for a time, in turns, one worker at a time (-j: several).
// It remembers in integration/campaign/progress.json, which is committed, how long each has run and how many inputs it was given, so that
// runs add up, on any machine and wherever they were interrupted, and prints both as a table. How long is time of a processor: on a busy
// machine a target waits, and that is not counted.
//
//	go run ./integration/campaign                # half an hour for each target, less what it has had
//	go run ./integration/campaign -for 2h -only 'adapter|state'
//	go run ./integration/campaign -table         # nothing but the table, also while another run goes on
//	go run ./integration/campaign -merge         # what was found of interest in C and C++ joins the corpora in integration/campaign/corpus
//
// The runtime must be there (go run ./patches), and clang for the harnesses of the C and C++ readers. What is found ends the target's
// turn and makes the exit status 1, as an interruption does, and a fault of the machine, which counts as no finding. For Go targets the
// input is in the package's testdata/fuzz then, where it is a test; for the others in build/campaign/findings, from where it belongs into
// the corpus once its fault is mended.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights/lock"
)

func main() {
	total := flag.Duration("for", 30*time.Minute, "how long each target is to run, what it has had before included")
	turn := flag.Duration("turn", 3*time.Minute, "how long at a time: the target that has had least goes next")
	jobs := flag.Int("j", 1, "how many targets at once")
	only := flag.String("only", "", "the targets whose name matches this regular `expression`; default all")
	dir := flag.String("dir", "", "`folder` of findings and grown corpora; default build/campaign")
	table := flag.Bool("table", false, "print the table and end")
	merge := flag.Bool("merge", false, "add what covers new code to the committed corpora of the C and C++ harnesses, and end")
	usage.Main("campaign", func(ctx context.Context) error { return run(ctx, *total, *turn, *jobs, *only, *dir, *table, *merge) })
}

func run(ctx context.Context, total, turn time.Duration, jobs int, only, dir string, table, merge bool) error {
	if jobs < 1 {
		return usage.Errorf("-j %d: want one at least", jobs)
	}
	pattern, err := regexp.Compile(only)
	if err != nil {
		return usage.Errorf("-only: %w", err)
	}
	build, err := layout.Find(".")
	if err != nil {
		return err
	}
	if dir == "" {
		dir = filepath.Join(string(build), "campaign")
	}
	if dir, err = filepath.Abs(dir); err != nil { // programs in it are run elsewhere
		return err
	}
	gomod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	p, err := readProgress(filepath.Join(root, "integration", "campaign", "progress.json"))
	if err != nil {
		return err
	}
	if table {
		p.table(os.Stdout)
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	alone, err := lock.Try(filepath.Join(dir, "lock"))
	if err != nil {
		return fmt.Errorf("another campaign must not run there: %w", err)
	}
	defer alone.Release()

	c := &campaign{build: build, root: root, dir: dir, progress: p}
	if err := c.prepare(ctx, pattern); err != nil {
		return err
	}
	if merge {
		return c.merge(ctx)
	}
	if err := c.compile(ctx); err != nil {
		return err
	}
	failed := c.fuzz(ctx, total, turn, jobs)
	p.table(os.Stdout)
	if ctx.Err() != nil {
		return errors.Join(failed, errors.New("interrupted; the same command goes on"))
	}
	return failed
}
