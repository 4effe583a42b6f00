package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/usage"
)

const root = "../.."

// A wrong command line is one, by the exit status too.
func TestUsage(t *testing.T) {
	run := func(jobs int, only string) error {
		return run(t.Context(), time.Minute, time.Minute, jobs, only, t.TempDir(), false, false)
	}
	assert.Equal(t, 2, usage.Status(run(1, "(")))
	assert.Equal(t, 2, usage.Status(run(1, "no such target")))
	assert.Equal(t, 2, usage.Status(run(0, "words")))
}

// Every fuzz function of the repository is a target, and every harness.
func TestTargets(t *testing.T) {
	var want, got []string
	function := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if d.IsDir() && (name == "build" || strings.HasPrefix(d.Name(), ".") && name != ".") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range function.FindAllSubmatch(text, -1) {
				want = append(want, filepath.Dir(name)+" "+string(m[1]))
			}
		}
		return nil
	})
	require.NoError(t, err)
	harnesses, err := filepath.Glob("harness/*.c*")
	require.NoError(t, err)
	for _, path := range harnesses {
		if name := filepath.Base(path); name != "main.c" {
			want = append(want, name)
		}
	}
	for _, x := range targets() {
		got = append(got, strings.TrimSpace(x.pkg+" "+x.fuzz+x.harness))
	}
	assert.ElementsMatch(t, want, got)
}

// The C and C++ readers, under the sanitizers, hold what their harnesses ask of them for each input of the corpora.
func TestHarnesses(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the C++ sources with sanitizers")
	}
	build, err := layout.Find(".")
	require.NoError(t, err)
	dir := t.TempDir()
	env, err := writeInputs(dir)
	require.NoError(t, err)
	c, err := findClang()
	if err != nil {
		c = compiler{"gcc", "g++"}
	}
	b := builder{build: build, harness: "harness", dir: dir, compiler: c, flags: []string{"-O0"}, link: []string{"harness/main.c"}}
	for _, target := range targets() {
		if target.harness == "" {
			continue
		}
		t.Run(target.name, func(t *testing.T) {
			program, err := b.make(t.Context(), target)
			require.NoError(t, err)
			corpus, err := filepath.Glob(filepath.Join("corpus", target.name, "*"))
			require.NoError(t, err)
			require.NotEmpty(t, corpus)
			cmd := exec.Command(program, corpus...)
			cmd.Env = append(os.Environ(), env...)
			out, err := cmd.CombinedOutput()
			assert.NoError(t, err, "%s", out)
			for _, path := range corpus {
				stat, err := os.Stat(path)
				require.NoError(t, err)
				assert.Less(t, stat.Size(), int64(4096), "%s: the corpora are to stay small", path)
			}
		})
	}
}

// What fuzzers print is counted, on top of what was there; and what was counted is there the next time.
func TestProgress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "progress.json")
	p, err := readProgress(path)
	require.NoError(t, err)
	first := targets()[0]
	*p.Targets[first.name] = had{Seconds: 57, Executions: 1000}
	c := &campaign{progress: p}
	tail := c.count(first, strings.NewReader("fuzz: elapsed: 3s, execs: 325 (108/sec), new interesting: 11 (total: 202)\nfuzz: elapsed: 1m3s, execs: 5000 (74/sec), new\nPASS\n"))
	assert.Contains(t, tail, "PASS")
	assert.Equal(t, had{Seconds: 120, Executions: 6000}, *p.Targets[first.name])
	i := slices.IndexFunc(targets(), func(x target) bool { return x.harness != "" })
	lib := targets()[i]
	c.count(lib, strings.NewReader("#2\tINITED cov: 5\n#1024\tpulse  cov: 7\nDone 2000 runs in 3 second(s)\nstat::number_of_executed_units: 2000\n"))
	assert.Equal(t, int64(2000), p.Targets[lib.name].Executions)

	again, err := readProgress(path)
	require.NoError(t, err)
	assert.Equal(t, *p.Targets[first.name], *again.Targets[first.name])
	assert.Equal(t, int64(2000), again.Targets[lib.name].Executions)
	var table bytes.Buffer
	again.table(&table)
	assert.Contains(t, table.String(), "| 2.0 | 6,000 | 0 |")

	require.NoError(t, os.WriteFile(path, []byte("{"), 0o644))
	_, err = readProgress(path)
	assert.ErrorContains(t, err, path)
}

// The target that has had least goes next, until all have had their time.
func TestNext(t *testing.T) {
	p := &progress{Targets: map[string]*had{"a": {Seconds: 50}, "b": {Seconds: 10}, "c": {Seconds: 100}}}
	left := []target{{name: "a"}, {name: "b"}, {name: "c"}}
	assert.Equal(t, "b", p.next(left, time.Minute).name)
	p.Targets["b"].Seconds = 60
	assert.Equal(t, "a", p.next(left, time.Minute).name)
	assert.Nil(t, p.next(left, 50*time.Second))
}

// The end of the time in the midst of an input is no finding, a failing input is one.
func TestTimeUp(t *testing.T) {
	assert.Regexp(t, timeUp, "fuzz: elapsed\n--- FAIL: FuzzParse (5.08s)\n    context deadline exceeded\nFAIL\n")
	assert.NotRegexp(t, timeUp, "--- FAIL: FuzzParse (5.08s)\n    --- FAIL: FuzzParse (0.00s)\n        gguf_test.go:5: context deadline exceeded\n")
}

// Of targets that run two at once each is counted by what it took of a processor, however long it waited. What has no input that fails is no finding.
func TestFuzz(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755))
		return path
	}
	waits := script("waits", "for i in 1 2 3; do echo \"#${i}000 pulse\"; sleep 1; done; echo stat::number_of_executed_units: 4000\n")
	fails := script("fails", "echo '#7 pulse'; echo \"artifact_prefix='x/'; Test unit written to x/crash-1\"; exit 77\n")
	breaks := script("breaks", "echo '#7 pulse'; echo 'cannot write: no space left on device'; exit 1\n")
	c := &campaign{root: dir, dir: dir, progress: &progress{path: filepath.Join(dir, "progress.json"), Targets: map[string]*had{}}, busy: map[string]bool{},
		binaries: map[string]string{"a": waits, "b": waits, "fails": fails, "breaks": breaks, "says-nothing": script("silent", "exit 0\n"), "missing": filepath.Join(dir, "none")}}
	for name := range c.binaries {
		c.left = append(c.left, target{name: name, harness: name})
		c.progress.Targets[name] = &had{}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { // a and b would have turns for ever: they take next to no time of a processor
		for ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
			c.mu.Lock()
			if len(c.left) == 2 && min(c.progress.Targets["a"].Executions, c.progress.Targets["b"].Executions) >= 4000 {
				stop()
			}
			c.mu.Unlock()
		}
	}()
	err := c.fuzz(ctx, time.Minute, 10*time.Second, 2)
	for name, h := range c.progress.Targets {
		switch name {
		case "a", "b":
			assert.GreaterOrEqual(t, h.Executions, int64(4000), name)
			assert.Less(t, h.Seconds, 1.5, "%s: it slept for 3", name)
			assert.NotContains(t, err.Error(), name+" failed")
		default:
			assert.ErrorContains(t, err, name+" failed")
		}
		findings := 0
		if name == "fails" {
			findings = 1
		}
		assert.Equal(t, findings, h.Findings, name)
	}
	again, err := readProgress(c.progress.path)
	require.NoError(t, err)
	assert.Equal(t, *c.progress.Targets["a"], *again.Targets["a"])
}

// What names an input that fails, of either fuzzer.
func TestInputFails(t *testing.T) {
	for text, want := range map[string]bool{
		"--- FAIL: FuzzParse (0.02s)\n    Failing input written to testdata/fuzz/FuzzParse/771e938e4458e983\n": true,
		"failure while testing seed corpus entry: FuzzParse/seed#0\nfuzz: elapsed: 0s\n":                       true,
		"==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='f/'; Test unit written to f/crash-da39a3\n":   true,
		"--- FAIL: FuzzParse (0.02s)\n    open cache: no space left on device\n":                               false,
		"signal: killed": false,
	} {
		assert.Equal(t, want, inputFails.MatchString(text), text)
	}
}
