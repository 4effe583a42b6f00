// Command kills ends processes with SIGKILL at random moments, again and again, and looks at what they leave: every file is there whole,
// as it was or as it was to become, or not at all; what was finished is not done again; and the run that is let through ends with
// the bytes of one that never was killed.
//
//	go run ./integration/kills [-n 200] [-only train,tune,tune-train,verify,state,cache] [-seed 1]
//
// train, tune and verify are the commands, tune-train is tune --train. state and cache are an app that writes two states, or the prompt caches of two prompts, in
// turn to one file, half of the time with LESS.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/usage"
)

func main() {
	ctx, stop := usage.Interruptible(context.Background())
	defer stop()
	n := flag.Int("n", 200, "kills of each")
	only := flag.String("only", strings.Join(victims, ","), "what to kill")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the moments")
	app := flag.String("app", "", "be the app: write state or cache to the `file` that follows, until killed")
	less := flag.Bool("less", false, "with -app: with LESS")
	flag.Parse()
	err := func() error {
		if *app != "" {
			return write(*app, flag.Arg(0), *less)
		}
		if err := check(*n, strings.Split(*only, ",")); err != nil {
			return err
		}
		fmt.Printf("%d kills of each, seed %d\n", *n, *seed)
		k := &killer{ctx: ctx, n: *n, random: rand.New(rand.NewPCG(*seed, 9))}
		return k.all(strings.Split(*only, ","))
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kills:", err)
		stop()
		os.Exit(usage.Status(err))
	}
}

// victims are what can be killed.
var victims = []string{"train", "tune", "tune-train", "verify", "state", "cache"}

// check refuses a command line that makes no sense before anything is killed.
func check(n int, names []string) error {
	if n < 1 {
		return usage.Errorf("-n %d: want 1 at least", n)
	}
	for _, name := range names {
		if !slices.Contains(victims, name) {
			return usage.Errorf("-only %s: want some of %s", name, strings.Join(victims, ","))
		}
	}
	return usage.NoArguments(flag.CommandLine)
}

type killer struct {
	ctx    context.Context
	n      int
	random *rand.Rand
	dir    string
}

func (k *killer) all(names []string) error {
	dir, err := os.MkdirTemp("", "lesskv-kills-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range names {
		k.dir = filepath.Join(dir, name)
		if err := os.Mkdir(k.dir, 0o755); err != nil {
			return err
		}
		start := time.Now()
		var found string
		switch name {
		case "train":
			found, err = k.train()
		case "tune":
			found, err = k.tune()
		case "tune-train":
			found, err = k.tuneTrain()
		case "verify":
			found, err = k.verify()
		default: // state, cache
			found, err = k.app(name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Printf("%-10s  %3d kills: %s (%s)\n", name, k.n, found, time.Since(start).Round(time.Second))
	}
	return nil
}

// command makes the files of a small run of lesskv and returns the program, one for all, and its environment.
func (k *killer) command() (program string, env []string, err error) {
	program = filepath.Join(filepath.Dir(k.dir), "lesskv")
	if _, err := os.Stat(program); err != nil {
		if out, err := exec.CommandContext(k.ctx, "go", "build", "-o", program, "github.com/lesskv/lesskv/cmd/lesskv").CombinedOutput(); err != nil {
			return "", nil, fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	for from, to := range map[string]string{testdata.Model: "model.gguf", testdata.Lambda: "model.lesskv.gguf"} {
		path, err := testdata.PathIn(k.dir, from)
		if err != nil {
			return "", nil, err
		}
		if err := os.Rename(path, filepath.Join(k.dir, to)); err != nil {
			return "", nil, err
		}
	}
	text, err := testdata.Read(testdata.Heldout)
	if err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(filepath.Join(k.dir, "text.txt"), text[:9000], 0o644); err != nil {
		return "", nil, err
	}
	env = os.Environ()
	for tree, name := range map[worker.Tree]string{worker.Patched: "LESSKV_WORKER", worker.Unmodified: "LESSKV_WORKER_UNMODIFIED"} {
		path, err := worker.Path(tree)
		if err != nil {
			return "", nil, err
		}
		env = append(env, name+"="+path)
	}
	return program, env, nil
}

// resumed kills a command n times. Each time it is started again, and once it is through, begun anew. check looks at what each
// kill left; done at what is there when it is through, and takes it away.
func (k *killer) resumed(program string, env, args []string, check, done func() error) (string, error) {
	run := func(after time.Duration) (killed bool, took time.Duration, err error) {
		ctx, cancel := context.WithTimeout(k.ctx, after)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir, cmd.Env = k.dir, env
		var stderr strings.Builder
		cmd.Stderr = &stderr
		start := time.Now()
		err = cmd.Run()
		took = time.Since(start)
		if k.ctx.Err() != nil {
			return false, took, k.ctx.Err()
		}
		if ctx.Err() != nil {
			return true, took, nil
		}
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, stderr.String())
		}
		return false, took, err
	}
	_, whole, err := run(time.Hour)
	if err != nil {
		return "", err
	}
	if err := done(); err != nil {
		return "", err
	}
	finished := 0
	for kills := 0; kills < k.n; {
		killed, _, err := run(time.Duration(k.random.Float64() * float64(whole)))
		if err != nil {
			return "", fmt.Errorf("after %d kills: %w", kills, err)
		}
		if killed {
			kills++
			err = check()
		} else {
			finished++
			err = done()
		}
		if err != nil {
			return "", fmt.Errorf("after %d kills: %w", kills, err)
		}
	}
	if _, _, err = run(time.Hour); err == nil {
		err = done()
	}
	return fmt.Sprintf("runs that came through between them, each with the bytes of the first: %d", finished+1), err
}

func (k *killer) train() (string, error) {
	return k.written([]kept{{pattern: work + "/layer-*.json"}},
		"train", "-m", "model.gguf", "-d", "text.txt", "-c", "256", "-b", "41", "--rank", "4", "--hidden", "8", "--steps", "60", "-t", "1")
}

func (k *killer) tune() (string, error) {
	return k.written([]kept{{pattern: work + "/distance-*"}},
		"tune", "-m", "model.gguf", "-d", "text.txt", "-c", "96", "-b", "16", "--ubatch", "16", "--windows", "1", "--rounds", "1", "-t", "1")
}

// tuneTrain is tune --train, with options under which phi and psi are kept in a layer: it has two fits, and measurements with the second.
func (k *killer) tuneTrain() (string, error) {
	fit := func(layer string) string { // the finished fit that a layer's report goes into
		return filepath.Join(work, strings.TrimSuffix(filepath.Base(filepath.Dir(layer)), ".gguf.work"))
	}
	return k.written([]kept{{pattern: work + "/*-*"}, {pattern: work + ".train/*/layer-*.json", into: fit}},
		"tune", "--train", "-m", "model.gguf", "-d", "text.txt", "-c", "320", "-b", "32", "--windows", "1", "--rounds", "0",
		"--text-tokens", "1536", "--rank", "1", "--hidden", "2", "--steps", "100", "-t", "1")
}

const (
	output = "out.gguf"       // what train and tune write
	work   = output + ".work" // where they keep finished work until then
)

// written kills a command that writes an adapter and a picture, and keeps finished work until then.
func (k *killer) written(finished []kept, args ...string) (string, error) {
	program, env, err := k.command()
	if err != nil {
		return "", err
	}
	whole := outcomes{dir: k.dir, pattern: "out.*"}
	for i := range finished {
		finished[i].dir, finished[i].output = k.dir, output
	}
	return k.resumed(program, env, append(args, "-o", output),
		func() error {
			err := whole.check()
			for i := range finished {
				err = errors.Join(err, finished[i].check())
			}
			return err
		},
		func() error {
			for i := range finished {
				finished[i].forget()
			}
			return errors.Join(k.alone("out", output, "out.png"), whole.take())
		})
}

// alone wants that outputs, whose names begin alike, lie there with nothing beside them.
func (k *killer) alone(begin string, outputs ...string) error {
	left, err := fs.Glob(os.DirFS(k.dir), "*"+begin+"*")
	if err == nil && !slices.Equal(left, outputs) {
		err = fmt.Errorf("there are %v, want %v alone", left, outputs)
	}
	return err
}

func (k *killer) verify() (string, error) {
	program, env, err := k.command()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(k.dir, "report")
	kept := kept{dir: dir, pattern: "work/*-*", output: "report.html"} // behind it are the pictures alone
	reports := outcomes{dir: dir, pattern: "*"}
	args := []string{"verify", "-m", "model.gguf", "-d", "text.txt", "-c", "192", "-b", "41", "--windows", "2", "--policy", "lambda", "--method", "sparse,LESS",
		"--recall", "none", "-n", "4", "--samples", "50", "-t", "1", "-o", "report"}
	return k.resumed(program, env, args,
		func() error { return errors.Join(reports.check(), kept.check()) },
		func() error {
			kept.forget()
			if _, err := os.Stat(filepath.Join(dir, "work")); err == nil {
				return errors.New("the work folder is still there")
			}
			return errors.Join(reports.take(), os.RemoveAll(dir))
		})
}

// outcomes are files, of a pattern in a folder, that are the same after every run. The first, which nobody kills, says which there are.
type outcomes struct {
	dir, pattern string
	want         map[string]string
}

// read returns what is there.
func (o *outcomes) read() (map[string]string, error) {
	names, err := fs.Glob(os.DirFS(o.dir), o.pattern)
	have := map[string]string{}
	for _, name := range names {
		path := filepath.Join(o.dir, name)
		if info, failed := os.Stat(path); failed == nil && info.IsDir() { // the work
			continue
		}
		data, failed := os.ReadFile(path)
		have[name], err = string(data), errors.Join(err, failed)
	}
	return have, err
}

// check looks after a kill: each file is whole, or not there yet.
func (o *outcomes) check() error {
	have, err := o.read()
	for name, want := range o.want {
		if data, ok := have[name]; ok && data != want {
			err = errors.Join(err, fmt.Errorf("%s has %d bytes that are not those of a whole run, %d", name, len(data), len(want)))
		}
	}
	return err
}

// take looks after a run, and takes the files away.
func (o *outcomes) take() error {
	have, err := o.read()
	if o.want == nil {
		o.want = have
	}
	if names, want := slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(o.want)); !slices.Equal(names, want) || len(names) == 0 {
		err = errors.Join(err, fmt.Errorf("there are %q, want %q", names, want))
	}
	err = errors.Join(err, o.check())
	for name := range have {
		err = errors.Join(err, os.Remove(filepath.Join(o.dir, name)))
	}
	return err
}

// kept are files of finished work, which no later run writes again. Where the output is there, a kill may have come while they were
// being taken away, in any order: what is left of them then counts for nothing.
type kept struct {
	dir     string
	pattern string // of the files, in dir
	output  string // in dir
	// into names the file that what is in one goes into, after which it may be gone without an output; nil: none.
	into func(name string) string
	seen map[string]time.Time
}

// there reports whether dir has a file.
func (k *kept) there(name string) bool {
	_, err := os.Stat(filepath.Join(k.dir, name))
	return err == nil
}

func (k *kept) check() error {
	if k.there(k.output) {
		k.forget()
		return nil
	}
	names, err := fs.Glob(os.DirFS(k.dir), k.pattern)
	if err != nil {
		return err
	}
	now := map[string]time.Time{}
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") { // not finished
			continue
		}
		info, err := os.Stat(filepath.Join(k.dir, name))
		if err != nil {
			return err
		}
		now[name] = info.ModTime()
	}
	for name, at := range k.seen {
		switch again, there := now[name]; {
		case there && !again.Equal(at):
			return fmt.Errorf("%s was finished, and was done again", name)
		case !there && (k.into == nil || !k.there(k.into(name))):
			return fmt.Errorf("%s was finished, and is gone", name)
		}
	}
	k.seen = now
	return nil
}

func (k *kept) forget() { k.seen = nil }
