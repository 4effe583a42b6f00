package lesskv_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// limitMemory runs f where the process has no more address space than size beyond what it has: what takes memory without end
// fails, and the machine does not.
func limitMemory(t *testing.T, size uint64, f func()) {
	t.Helper()
	limitTo(t, addressSpace(t)+size, f)
}

// addressSpace is what the process has of it.
func addressSpace(t *testing.T) uint64 {
	t.Helper()
	statm, err := os.ReadFile("/proc/self/statm")
	require.NoError(t, err)
	var pages uint64
	_, err = fmt.Sscan(string(statm), &pages)
	require.NoError(t, err)
	return pages * uint64(os.Getpagesize())
}

func limitTo(t *testing.T, size uint64, f func()) {
	t.Helper()
	var old syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_AS, &old))
	limit := old
	limit.Cur = min(old.Max, size)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_AS, &limit))
	defer func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_AS, &old)) }()
	f()
}

// optional is a grammar of parts in a row that may each be left out: many ways to the same text.
func optional(part string, n int) string { return strings.Repeat("("+part+")? ", n) }

// Grammars come from requests. None takes more memory than a few that are meant to be used, or time that doubles with each part.
func TestGrammarsEnd(t *testing.T) {
	var doubling, copies strings.Builder
	for i := range 100 {
		fmt.Fprintf(&doubling, "r%d ::= \"a\" r%d | \"b\" r%d | r%d | r%d\n", i, i+1, i+1, i+1, i+1)
	}
	for i := range 900 {
		fmt.Fprintf(&copies, "c%d ::= \"%s\"{2000}\n", i, strings.Repeat("a", 45))
	}
	model := open(t)
	refused := func(grammar, says string) {
		t.Helper()
		limitMemory(t, 2<<30, func() {
			out, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(2), llama.SetTemperature(0), llama.WithGrammar(grammar))
			assert.Empty(t, out)
			assertSays(t, err, lesskv.ErrArgument, says)
		})
	}
	refused(`root ::= "a"{3,1}`, "a largest number below its smallest")
	refused(`root ::= "a"{2000,0}`, "a largest number below its smallest")
	refused("root ::= <[1]> | . !<[2]>", "lets a token follow that it cannot take")
	refused("root ::= c1\n"+copies.String(), "64 MiB")
	refused("root ::= "+strings.Repeat("a", 1<<20)+"\n"+strings.Repeat("a", 1<<20)+` ::= "b"{0,2000}`, "64 MiB")
	refused("root ::= "+strings.Repeat(`"`+strings.Repeat("a", 1000)+`" `, 5000), "64 MiB")
	if !testing.Short() { // seconds, under a sanitizer a minute
		refused("root ::= "+optional("[a-z]", 50), "too ambiguous")
	}
	refused("root ::= r0\n"+doubling.String()+`r100 ::= "a"`, "too ambiguous") // left recursion was looked for in each of 2^100 ways
	assert.Equal(t, strings.Repeat("a", 5), predict(t, model, prompt, llama.WithGrammar(`root ::= "a"{5,5}`)), "the model is unharmed")
	assert.Equal(t, "b", predict(t, model, prompt, llama.WithGrammar("root ::= "+optional(`"a"`, 40)+`"b"`), llama.SetLogitBias(biasAgainst(t, model, "a"))))
}

// biasAgainst forbids the token of a text of one.
func biasAgainst(t *testing.T, model *llama.LLama, text string) string {
	_, tokens, err := model.TokenizeString(text)
	require.NoError(t, err)
	return fmt.Sprintf("%d-1000", tokens[len(tokens)-1])
}

// A call ends while a grammar computes what may come next, and not after it.
func TestInterruptInAGrammar(t *testing.T) {
	model := open(t, sparse(512))
	// one token, with which no other begins, is drawn at once; for the next there are too many ways
	grammar := llama.WithGrammar(`root ::= "\x01" ` + optional("[a-z]", 50))
	draft := open(t)
	speculative := func(text string, opts ...llama.PredictOption) (string, error) {
		return model.SpeculativeSampling(draft, text, append(opts, llama.SetNDraft(4))...)
	}
	for name, predict := range map[string]func(string, ...llama.PredictOption) (string, error){"Predict": model.Predict, "SpeculativeSampling": speculative} {
		for _, byContext := range []bool{false, true} {
			for attempt := 0; ; attempt++ {
				require.Less(t, attempt, 20, "it was refused before it could be interrupted")
				ctx, cancel := context.WithCancel(t.Context())
				end := cancel
				if !byContext {
					end = func() { lesskv.Interrupt(model) }
				}
				tokens := 0
				text, err := predict(prompt, llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(3), grammar, lesskv.WithContext(ctx),
					llama.SetTokenCallback(func(string) bool {
						tokens++
						time.AfterFunc(20*time.Millisecond, end)
						return true
					}))
				cancel()
				if errors.Is(err, lesskv.ErrArgument) {
					continue
				}
				if byContext {
					assertSays(t, err, context.Canceled)
				} else {
					assert.NoError(t, err)
				}
				assert.Equal(t, 1, tokens, name)
				assert.Equal(t, "\x01", text)
				assert.Equal(t, "interrupt", timings(t, model).Stop)
				break
			}
		}
	}
	prompted := timings(t, model).Prompt
	for _, layer := range stats(t, model).Layers {
		assert.LessOrEqual(t, layer.Seen, int64(prompted+1), "no guess is left in the cache")
	}
}

// llama.cpp fills a cache before it looks whether there is one. LESS does not care for the context.
func TestContextBeyondMemory(t *testing.T) {
	limitMemory(t, 2<<30, func() {
		for _, n := range []int{1e9, 1 << 30} {
			_, err := llama.New(file(t, testdata.Model), llama.SetContext(n), lesskv.Disable())
			assertSays(t, err, lesskv.ErrFailed, "GiB", fmt.Sprint(n))
		}
		model, err := llama.New(file(t, testdata.Model), llama.SetContext(1e9), sparse(64))
		require.NoError(t, err)
		defer model.Free()
		state := t.TempDir() + "/state"
		predict(t, model, prompt)
		require.NoError(t, model.SaveState(state))
		require.NoError(t, model.LoadState(state))
		predict(t, model, prompt, llama.SetRepeat(-1))
	})
}

// A checkpoint for which there is no memory is left out, and costs the text nothing.
func TestCheckpointWithoutMemory(t *testing.T) {
	model := open(t, lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(2048), Keys: lesskv.F32, Values: lesskv.F32, Adapter: lesskv.NoAdapter, Checkpoints: 1000}))
	text := strings.Repeat(prompt+"\n", 100)[:3900] // longer ones are cut into tokens on a stack of their own
	predict(t, model, text)
	var missing bool
	var want string
	limitMemory(t, 64<<20, func() {
		for i := 0; i < 50 && !missing; i++ {
			before := stats(t, model).Checkpoints
			text += "x"
			want = predict(t, model, text)
			missing = stats(t, model).Checkpoints < before+2 // of the answer before, and of the prompt
		}
	})
	require.True(t, missing)
	assert.Equal(t, want, predict(t, model, text))
}

// confined runs the test again, in a process of its own in which files of the caller's are in the place of those that say what there is of the
// machine and what control groups leave of it: meminfo, cgroup, and groups/... It returns what that process prints. There, inside is true
// and the files are in their places; where that cannot be, the test is skipped.
func confined(t *testing.T, files map[string]string) (out string, inside bool) {
	t.Helper()
	const child, nowhere = "LESSKV_TEST_CONFINED", "no mounts here"
	places := map[string]string{"meminfo": "/proc/meminfo", "cgroup": "/proc/self/cgroup", "groups": "/sys/fs/cgroup"}
	if dir := os.Getenv(child); dir != "" {
		for file, at := range places {
			if err := syscall.Mount(filepath.Join(dir, file), at, "", syscall.MS_BIND, ""); err != nil {
				fmt.Println(nowhere+":", err)
				os.Exit(0)
			}
		}
		return "", true
	}
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "groups", "memory"), 0o755))
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	printed, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) {
		t.Skip("no namespaces here:", err)
	}
	require.NoError(t, err, string(printed))
	if strings.Contains(string(printed), nowhere) {
		t.Skip(string(printed))
	}
	return string(printed), false
}

// meminfo is the file of that name.
func meminfo(availableKiB int) string {
	return fmt.Sprintf("MemTotal: %d kB\nMemAvailable: %d kB\n", 1<<20, availableKiB)
}

// Linux promises more memory than there is, and ends a process that writes to it. A checkpoint that does not fit into what the machine, or
// a control group, has left is not taken.
func TestCheckpointBeyondMemory(t *testing.T) {
	const v2, v1 = "0::/\n", "4:memory:/\n"
	const gib, nearly = "1073741824", "1073741000"
	for name, test := range map[string]struct {
		available int // KiB
		groups    map[string]string
		version   string
		want      int
	}{
		"machine":            {1, nil, v2, 0},
		"enough":             {1 << 20, nil, v2, 1},
		"group":              {1 << 20, map[string]string{"memory.max": gib, "memory.current": nearly}, v2, 0},
		"group, high":        {1 << 20, map[string]string{"memory.max": "max", "memory.high": gib, "memory.current": nearly}, v2, 0},
		"group, no limit":    {1 << 20, map[string]string{"memory.max": "max", "memory.current": nearly}, v2, 1},
		"group, file cache":  {1 << 20, map[string]string{"memory.max": gib, "memory.current": nearly, "memory.stat": "anon 4096\ninactive_file 1073000000\n"}, v2, 1},
		"group v1":           {1 << 20, map[string]string{"memory/memory.limit_in_bytes": gib, "memory/memory.usage_in_bytes": nearly}, v1, 0},
		"group v1, no limit": {1 << 20, map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": nearly}, v1, 1},
	} {
		files := map[string]string{"meminfo": meminfo(test.available), "cgroup": test.version}
		for name, text := range test.groups {
			files["groups/"+name] = text + "\n"
		}
		out, inside := confined(t, files)
		if inside {
			model := open(t, sparse(64))
			predict(t, model, prompt)
			fmt.Println("checkpoints:", stats(t, model).Checkpoints)
			return
		}
		assert.Contains(t, out, fmt.Sprintf("checkpoints: %d\n", test.want), name)
	}
}

// A control group that leaves the process less time than there are CPUs leaves it fewer threads, whatever it asks for.
func TestThreadsOfAControlGroup(t *testing.T) {
	for quota, want := range map[string]int{"max": min(4, runtime.NumCPU()), "100000": 1, "50000": 1, "250000": min(2, runtime.NumCPU())} {
		out, inside := confined(t, map[string]string{"meminfo": meminfo(1 << 20), "cgroup": "0::/\n", "groups/cpu.max": quota + " 100000\n"})
		if inside {
			fmt.Println("threads:", threads(t, open(t), 4))
			return
		}
		assert.Contains(t, out, fmt.Sprintf("threads: %d\n", want), quota)
	}
}

// With LESS the cache is made with the first text: a budget for which there is no memory is refused before, by New; and by the call, one
// that a negative prompt, which has a cache of its own, takes a second time.
func TestBudgetBeyondMemory(t *testing.T) {
	if raced {
		t.Skip("of the address space the race detector takes its part")
	}
	const slot = 6 * 2 * (2*64*2 + 8) // of gopher-5m, in all layers and heads
	limit := addressSpace(t) + 3<<30
	budget := func(size uint64) llama.ModelOption { return sparse(int(size / slot)) }
	limitTo(t, limit, func() {
		_, err := llama.New(file(t, testdata.Model), llama.SetContext(1<<30), budget(limit/10*11))
		assertSays(t, err, lesskv.ErrFailed, "slots takes", "GiB")
		on := lesskv.Config{Budget: lesskv.Tokens(int(limit / 10 * 11 / slot)), Adapter: lesskv.NoAdapter, OnDevice: true}
		_, err = llama.New(file(t, testdata.Model), llama.SetContext(1<<30), lesskv.Enable(on))
		assertSays(t, err, lesskv.ErrFailed, "slots takes", "GiB", "keep the cache in main memory")

		model, err := llama.New(file(t, testdata.Model), llama.SetContext(1<<30), budget(limit/100*52))
		if err != nil {
			t.Skip("the machine itself has less: ", err)
		}
		defer model.Free()
		_, err = model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(2), llama.SetTemperature(0), llama.SetNegativePrompt("not"), llama.SetNegativePromptScale(1.5))
		assertSays(t, err, lesskv.ErrFailed, "slots takes", "the negative prompt's as much again")
	})
}
