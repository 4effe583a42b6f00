package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/patches/usage"
)

// errInput is that of a target for which an input was found that fails; others are the machine's.
var errInput = errors.New("an input fails")

// A campaign gives targets their time.
type campaign struct {
	build    layout.Layout
	root     string // of the repository
	dir      string
	progress *progress
	left     []target
	env      []string          // of the harnesses
	binaries map[string]string // by target
	cache    string            // of the inputs that go test -fuzz found

	mu   sync.Mutex // of progress, left and busy
	busy map[string]bool
}

// prepare compiles what the targets need.
func (c *campaign) prepare(ctx context.Context, only *regexp.Regexp) error {
	for _, t := range targets() {
		if only.MatchString(t.name) {
			c.left = append(c.left, t)
		}
	}
	if len(c.left) == 0 {
		return usage.Errorf("no target matches %q", only)
	}
	c.binaries, c.busy = map[string]string{}, map[string]bool{}
	if !slices.ContainsFunc(c.left, func(t target) bool { return t.harness != "" }) {
		return nil
	}
	var err error
	if c.env, err = writeInputs(c.dir); err != nil {
		return err
	}
	clang, err := findClang()
	if err != nil {
		return err
	}
	b := builder{build: c.build, harness: filepath.Join(c.root, "integration/campaign/harness"), dir: filepath.Join(c.dir, "harness"), compiler: clang,
		flags: []string{"-fsanitize=fuzzer-no-link"}, link: []string{"-fsanitize=fuzzer"}}
	for _, t := range c.left {
		if t.harness == "" {
			continue
		}
		if c.binaries[t.name], err = b.make(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// compile makes the tests of the Go targets' packages, with what a fuzzer wants to know of their paths.
func (c *campaign) compile(ctx context.Context) error {
	cache, err := exec.CommandContext(ctx, "go", "env", "GOCACHE").Output()
	if err != nil {
		return fmt.Errorf("go env GOCACHE: %w", err)
	}
	c.cache = filepath.Join(strings.TrimSpace(string(cache)), "fuzz")
	made := map[string]string{}
	for _, t := range c.left {
		if t.harness != "" {
			continue
		}
		if made[t.pkg] == "" {
			made[t.pkg] = filepath.Join(c.dir, strings.ReplaceAll(t.pkg, "/", "-")+".test")
			cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-fuzz=^"+t.fuzz+"$", "-o", made[t.pkg], "./"+t.pkg)
			cmd.Dir = c.root
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", t.pkg, err, out)
			}
		}
		c.binaries[t.name] = made[t.pkg]
	}
	return nil
}

// fuzz gives every target its time in turns, jobs at once. A target that failed says why and has no other turn; the error names all of
// them. An input that fails counts as a finding.
func (c *campaign) fuzz(ctx context.Context, total, turn time.Duration, jobs int) error {
	var failures []error
	var all errgroup.Group
	for range jobs {
		all.Go(func() error {
			c.mu.Lock()
			defer c.mu.Unlock()
			for ctx.Err() == nil {
				t := c.progress.next(slices.DeleteFunc(slices.Clone(c.left), func(t target) bool { return c.busy[t.name] }), total)
				if t == nil {
					break // what is left is another's turn
				}
				h := c.progress.Targets[t.name]
				rest := total - time.Duration(h.Seconds*float64(time.Second))
				c.busy[t.name] = true
				c.mu.Unlock()
				err := c.turn(ctx, *t, max(min(turn, rest), 10*time.Second)) // in less it hardly begins
				c.mu.Lock()
				c.busy[t.name] = false
				if err != nil {
					if errors.Is(err, errInput) {
						h.Findings++
					}
					fmt.Fprintf(os.Stderr, "%s: %v\n", t.name, err)
					failures = append(failures, fmt.Errorf("%s failed", t.name))
					c.left = slices.DeleteFunc(slices.Clone(c.left), func(other target) bool { return other.name == t.name })
				}
				if err := c.progress.save(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := all.Wait()
	return errors.Join(append(failures, err)...)
}

// turn runs one target for a time and counts as it goes.
func (c *campaign) turn(ctx context.Context, t target, d time.Duration) error {
	fmt.Fprintf(os.Stderr, "%s %s for %v\n", time.Now().Format(time.TimeOnly), t.name, d.Round(time.Second))
	seconds := strconv.Itoa(int(d.Seconds() + 0.5))
	var cmd *exec.Cmd
	if t.harness == "" {
		found := filepath.Join(c.cache, pins.Self, t.pkg)
		if err := os.MkdirAll(found, 0o755); err != nil {
			return err
		}
		cmd = exec.CommandContext(ctx, c.binaries[t.name], "-test.run=^$", "-test.fuzz=^"+t.fuzz+"$", "-test.fuzztime="+seconds+"s", "-test.parallel=1", "-test.fuzzcachedir="+found,
			"-test.fuzzminimizetime=100x") // or it does nothing else for a minute with each input of interest
		cmd.Dir = filepath.Join(c.root, t.pkg)
	} else {
		grown, findings := filepath.Join(c.dir, "corpus", t.name), filepath.Join(c.dir, "findings")
		for _, dir := range []string{grown, findings} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		args := []string{"-max_total_time=" + seconds, "-max_len=4096", "-timeout=20", "-rss_limit_mb=1024", "-malloc_limit_mb=64", "-print_final_stats=1",
			"-artifact_prefix=" + findings + "/" + t.name + "-", grown}
		if dir := c.corpus(t); exists(dir) {
			args = append(args, dir)
		}
		cmd = exec.CommandContext(ctx, c.binaries[t.name], args...)
		cmd.Env = append(os.Environ(), c.env...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the program that fuzzes starts another, which is fuzzed
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	h := c.progress.Targets[t.name] // no other turn changes it
	before := h.Seconds
	counted := make(chan string)
	go func() { counted <- c.count(t, out) }()
	err := cmd.Run()
	in.Close()
	tail := <-counted
	if state := cmd.ProcessState; state != nil {
		c.mu.Lock()
		h.Seconds = min(h.Seconds, before+(state.UserTime()+state.SystemTime()).Seconds())
		c.mu.Unlock()
	}
	if ctx.Err() != nil {
		return nil
	}
	if err == nil || timeUp.MatchString(tail) {
		if h.Seconds == before { // or its turn would come again for ever
			return fmt.Errorf("%s ran and said nothing of how long and how often\n%s", t.name, tail)
		}
		return nil
	}
	if inputFails.MatchString(tail) {
		err = fmt.Errorf("%w: %w", errInput, err)
	}
	return fmt.Errorf("%w\n%s", err, tail)
}

// inputFails is how a Go fuzzer and libFuzzer name an input that fails: one that was found, or one of the corpus.
var inputFails = regexp.MustCompile(`(?m)^\s*(Failing input written to |failure while testing seed corpus entry: |.*Test unit written to )`)

// timeUp is how a Go fuzzer ends now and then when the time is up in the midst of an input (golang.org/issue/48157).
var timeUp = regexp.MustCompile(`(?m)^--- FAIL: Fuzz\w+ \(.*\)\n    context deadline exceeded$`)

// corpus is the committed one of a harness.
func (c *campaign) corpus(t target) string {
	return filepath.Join(c.root, "integration/campaign/corpus", t.name)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Go's line, and libFuzzer's: its lines of progress, and the last one.
var (
	goLine  = regexp.MustCompile(`^fuzz: elapsed: (\S+), execs: (\d+) `)
	libLine = regexp.MustCompile(`^(?:#|stat::number_of_executed_units: )(\d+)\b`)
)

// count adds what a fuzzer's output says to the progress, and returns its end.
func (c *campaign) count(t target, out io.Reader) (tail string) {
	h := c.progress.Targets[t.name]
	before, start := *h, time.Now()
	var last []string
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if last = append(last, line); len(last) > 60 {
			last = last[1:]
		}
		elapsed, n := time.Since(start), int64(-1)
		if m := goLine.FindStringSubmatch(line); m != nil {
			n, _ = strconv.ParseInt(m[2], 10, 64)
			if d, err := time.ParseDuration(m[1]); err == nil {
				elapsed = d // without the time that starting takes
			}
		} else if m := libLine.FindStringSubmatch(line); m != nil {
			n, _ = strconv.ParseInt(m[1], 10, 64)
		}
		if n < 0 {
			continue
		}
		c.mu.Lock()
		h.Seconds, h.Executions = before.Seconds+elapsed.Seconds(), max(h.Executions, before.Executions+n)
		c.progress.save() // the turn's end reports a full disk
		c.mu.Unlock()
	}
	if err := lines.Err(); err != nil {
		last = append(last, err.Error())
		io.Copy(io.Discard, out) // after a line that is too long: nothing waits for a reader
	}
	return strings.Join(last, "\n")
}

// merge adds to the committed corpora what covers more than they do.
func (c *campaign) merge(ctx context.Context) error {
	for _, t := range c.left {
		grown := filepath.Join(c.dir, "corpus", t.name)
		if t.harness == "" || !exists(grown) {
			continue
		}
		if err := os.MkdirAll(c.corpus(t), 0o755); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, c.binaries[t.name], "-merge=1", "-max_len=512", c.corpus(t), grown)
		cmd.Env = append(os.Environ(), c.env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", t.name, err, out)
		}
	}
	return nil
}
