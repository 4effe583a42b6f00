package lesskv_test

import (
	"bytes"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
	"github.com/lesskv/lesskv/integration/tinymodels"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// FuzzBudget: any text is a budget, which is written as it was read, or refused by quoting it; and a budget of any number is one if it
// keeps something.
func FuzzBudget(f *testing.F) {
	for _, s := range []string{"", "1024", "5%", "64MiB", "0.5 GiB", "1e2KiB", "-1", "0x10", "nan%", "1_000", "99999999999", "1/16", "3 / 64", "1/0"} {
		f.Add(s, 5, 0.05)
	}
	f.Fuzz(func(t *testing.T, s string, n int, x float64) {
		fuzztest.Bounded(t, 1<<20+64*len(s), func() {
			b, err := lesskv.ParseBudget(s)
			sameBudget(t, s)
			if err != nil {
				require.ErrorContains(t, err, strconv.Quote(s))
			} else {
				text, err := b.MarshalText()
				require.NoError(t, err)
				require.Equal(t, s, string(text))
				var again lesskv.Budget
				require.NoError(t, again.UnmarshalText(text))
				require.Equal(t, b, again)
			}
			reads := func(b lesskv.Budget) bool {
				_, err := lesskv.ParseBudget(b.String())
				return err == nil
			}
			require.Equal(t, n >= 1 && n <= math.MaxInt32, reads(lesskv.Tokens(n)), "%d tokens", n)
			require.Equal(t, x*100 > 0 && !math.IsInf(x*100, 0), reads(lesskv.Share(x)), "a share of %v", x)
			require.Equal(t, x*(1<<20) >= 1 && x*(1<<20) < 1<<62, reads(lesskv.MiB(x)), "%v MiB", x)
			require.Equal(t, n >= 1 && n <= 16, reads(lesskv.Part(n, 16)), "%d/16", n)
			require.Equal(t, n >= 3 && n <= math.MaxInt32, reads(lesskv.Part(3, n)), "3/%d", n)
			if n >= 0 {
				require.Equal(t, n >= 1 && n < 1<<62, reads(lesskv.Bytes(uint64(n))), "%d bytes", n)
			}
		})
	})
}

// sameBudget fails unless the commands that need no runtime read a budget as the runtime does.
func sameBudget(t *testing.T, s string) {
	t.Helper()
	b, err := llama.ParseLESSKVBudget(s)
	want := memory.Budget{Tokens: int(b.Tokens), Share: min(b.Share, 1), Bytes: int64(b.Bytes), Full: b.Full} // the runtime takes more than all for all
	got, pure := memory.ParseBudget(s)
	require.Equal(t, err == nil, pure == nil, "%q", s)
	require.Equal(t, want, got, "%q", s)
}

// flagValues are, for each flag but the one that switches LESS on and off, the value that says of a configuration what it says; false where
// the flag is not to be given.
var flagValues = map[string]func(c lesskv.Config) (value string, given bool){
	"budget":        func(c lesskv.Config) (string, bool) { return c.Budget.String(), true },
	"policy":        func(c lesskv.Config) (string, bool) { return string(c.Policy), true },
	"heavy":         func(c lesskv.Config) (string, bool) { return strconv.Itoa(max(c.Heavy, 0)), c.Heavy != 0 },
	"pinned":        func(c lesskv.Config) (string, bool) { return strconv.Itoa(max(c.Pinned, 0)), c.Pinned != 0 },
	"type":          func(c lesskv.Config) (string, bool) { return string(c.Keys) + "," + string(c.Values), true },
	"adapter":       func(c lesskv.Config) (string, bool) { return c.Adapter, true },
	"force-adapter": func(c lesskv.Config) (string, bool) { return strconv.FormatBool(c.ForceAdapter), true },
	"device":        func(c lesskv.Config) (string, bool) { return strconv.FormatBool(c.OnDevice), true },
	"checkpoints":   func(c lesskv.Config) (string, bool) { return strconv.Itoa(max(c.Checkpoints, 0)), c.Checkpoints != 0 },
}

// FuzzFlags: any command line is a configuration or an error; flags that say the same as the configuration give it again.
func FuzzFlags(f *testing.F) {
	fs := flag.NewFlagSet("app", flag.ContinueOnError)
	lesskv.RegisterFlags(fs, "lesskv-")
	fs.VisitAll(func(fl *flag.Flag) {
		if name, ok := strings.CutPrefix(fl.Name, "lesskv-"); ok {
			require.Contains(f, flagValues, name, "a flag that is not tested here")
		}
	})
	f.Add("-lesskv\n-lesskv-budget=5%\n-lesskv-policy=peak\n-lesskv-heavy=3\n-lesskv-pinned=0\n-lesskv-type=f16,q8_0\n-lesskv-adapter=none\n-lesskv-force-adapter\n-lesskv-device\n-lesskv-checkpoints=0")
	f.Add("-lesskv-checkpoints\n5")
	f.Add("-lesskv=off\n-lesskv-heavy\n4\nrest\n-x")
	f.Fuzz(func(t *testing.T, line string) {
		flags, err := parse("lesskv-", strings.Split(line, "\n")...)
		if err != nil {
			return
		}
		c := flags.Config()
		options := llama.NewModelOptions(flags.Option()).LESSKV
		if flags.Off() {
			require.Equal(t, &llama.LESSKVOptions{Off: true}, options)
			return
		}
		if options == nil {
			require.Equal(t, lesskv.Config{}, c)
			return
		}
		_, err = llama.ParseLESSKVBudget(options.Budget)
		require.NoError(t, err)
		var args []string
		for name, say := range flagValues {
			if value, given := say(c); given {
				args = append(args, "-lesskv-"+name+"="+value)
			}
		}
		again, err := parse("lesskv-", args...)
		require.NoError(t, err)
		require.Equal(t, c, again.Config())
	})
}

// FuzzLoadState: a state file with bytes changed, taken out or added is refused as such, and leaves the model as it was; one that is
// taken is written as it was read, but for the number of the sequence. How the cache itself reads a state is fuzzed in C++, where the fuzzer sees its code.
func FuzzLoadState(f *testing.F) { fuzzState(f, sparse(8)) }

// FuzzLoadStateOff is FuzzLoadState with LESS off: llama.cpp's own reader, whose states have no checksum, so that much that was changed is
// taken. What comes of it then is a text or an error.
func FuzzLoadStateOff(f *testing.F) { fuzzState(f, lesskv.Disable()) }

func fuzzState(f *testing.F, cache llama.ModelOption) {
	dir := f.TempDir()
	model := fuzzed(f, cache)
	less, err := lesskv.Stats(model)
	require.NoError(f, err)
	state, saved, bad := filepath.Join(dir, "state"), filepath.Join(dir, "saved"), filepath.Join(dir, "bad")
	save := func(t testing.TB, path string) []byte {
		require.NoError(t, model.SaveState(path))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		return b
	}
	require.NoError(f, model.Eval("one text", llama.SetThreads(1)))
	whole := save(f, state)
	require.NoError(f, model.Eval("another, which is longer", llama.SetThreads(1)))
	before := save(f, saved)

	f.Add(uint(0), uint(0), []byte{})
	f.Add(uint(8), uint(0), []byte{1, 2, 3})
	f.Add(uint(300), uint(9), []byte{})
	f.Add(uint(len(whole)-9), uint(2), []byte{7, 7})
	f.Fuzz(func(t *testing.T, at, cut uint, put []byte) {
		i := int(at % uint(len(whole)))
		j := i + int(cut%uint(len(whole)-i+1))
		b := bytes.Join([][]byte{whole[:i], put, whole[j:]}, nil)
		require.NoError(t, os.WriteFile(bad, b, 0o644))
		load := func() (err error) {
			fuzztest.Bounded(t, 1<<20, func() {
				fuzztest.Resident(t, 16<<20+8*int64(len(b)), func() { err = model.LoadState(bad) })
			})
			return err
		}
		again := func() { // the next input finds the cache as this one did
			require.NoError(t, os.WriteFile(saved, before, 0o644))
			require.NoError(t, model.LoadState(saved))
		}
		was := save(t, saved) // without LESS the pairs may lie in another order than in before
		err := load()
		if err == nil && !less.Enabled {
			if out, err := model.Predict("one text, and more", llama.SetThreads(1), llama.SetTokens(1)); err != nil {
				require.Empty(t, out)
				require.ErrorIs(t, err, lesskv.ErrFailed)
			}
			require.NoError(t, load(), "the same state again")
		}
		now := save(t, saved)
		if err == nil {
			again()
			if !less.Enabled && len(now) != len(b) {
				return // llama.cpp's format has no checksum: it reads a damaged cell as another one
			}
			b = b[:min(len(b), len(now))] // what is behind a state is not read, as llama.cpp does not
			require.Equal(t, len(now), len(b))
			differ := 0
			for i := range b {
				if b[i] != now[i] {
					differ++
				}
			}
			require.LessOrEqual(t, differ, 4, "a state that was loaded is saved as another; it may differ in the number of its sequence")
			return
		}
		require.ErrorIs(t, err, lesskv.ErrState)
		if strings.Contains(err.Error(), "the cache has been emptied") { // it has more or fewer tokens than its cache
			again()
			return
		}
		require.True(t, bytes.Equal(was, now), "a state that was refused has changed the cache")
	})
}

// fuzzed loads a small model that says nothing.
func fuzzed(f *testing.F, cache llama.ModelOption) *llama.LLama {
	f.Helper()
	m, err := tinymodels.Find("llama")
	require.NoError(f, err)
	path, err := m.WriteIn(f.TempDir(), gguf.F32, 1)
	require.NoError(f, err)
	lesskv.SetLogOutput(&log{})
	f.Cleanup(func() { lesskv.SetLogOutput(nil) })
	model, err := llama.New(path, llama.SetContext(64), cache)
	require.NoError(f, err)
	f.Cleanup(model.Free)
	return model
}

// FuzzGrammar: any text is a grammar, of which tokens are drawn, or refused; the next call is not the worse for it.
func FuzzGrammar(f *testing.F) {
	model := fuzzed(f, sparse(8))
	greedy := []llama.PredictOption{llama.SetThreads(1), llama.SetTokens(2), llama.SetTemperature(0)}
	want, err := model.Predict("a", greedy...)
	require.NoError(f, err)
	for _, s := range []string{`root ::= "a"`, "root ::= [a-z]+ (x | \"\\n\")?\nx ::= root{2,3}", `root ::= "a"{3,1}`, "root ::= root", "root ::= .*", `root ::= "\xff\u00e9" # no more`,
		"root ::= [^a-\xff]", "x ::= \"a\"", "root ::= <[1]> | !<[2]>", "root ::= . !<[2]>", "root ::= " + strings.Repeat("(", 99), "root ::= " + strings.Repeat("([a-z])? ", 9), ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, grammar string) {
		if strings.Contains(grammar, "\x00") {
			return // C sees what is before it
		}
		var err error
		fuzztest.Bounded(t, 1<<20+64*len(grammar), func() {
			fuzztest.Resident(t, 64<<20, func() { _, err = model.Predict("a", append(greedy, llama.WithGrammar(grammar))...) })
		})
		if err != nil && !(errors.Is(err, lesskv.ErrFailed) && strings.Contains(err.Error(), "the grammar allows none")) { // of the tokens
			require.ErrorIs(t, err, lesskv.ErrArgument)
		}
		got, err := model.Predict("a", greedy...)
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}
