//go:build cgo

package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// tuneQuickly is a tuning of seconds, of the model and the book in dir.
func tuneQuickly(dir string) []string {
	return []string{"tune", "-t1", "-c96", "-b16", "--ubatch=16", "--windows=1", "--rounds=0", "-m", filepath.Join(dir, "model.gguf"), "-d", filepath.Join(dir, "book.txt")}
}

// A model whose logits are not finite is no model that is tuned well.
func TestTuneNotFinite(t *testing.T) {
	dir, _ := verifyFiles(t)
	spoil(t, filepath.Join(dir, "model.gguf"))
	out := filepath.Join(dir, "new.gguf")
	status, stdout, stderr := command("", append(tuneQuickly(dir), "-o", out)...)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stderr, "logits of the full cache that are not finite")
	assert.Empty(t, stdout)
	assert.NoFileExists(t, out)
}

// Phi and psi bring the budget along that the allocation was tuned for: without -b a cache has as many slots.
func TestTuneAdapter(t *testing.T) {
	dir, _ := verifyFiles(t)
	trained, out := filepath.Join(dir, "model.lesskv.gguf"), filepath.Join(dir, "new.gguf")
	status, _, stderr := command("", append(tuneQuickly(dir), "-w", trained, "-o", out, "--plot=none")...)
	require.Equal(t, exitOK, status, stderr)
	was, err := weights.Read(trained)
	require.NoError(t, err)
	a, err := weights.Read(out)
	require.NoError(t, err)
	assert.NotEmpty(t, a.Budget)
	assert.Equal(t, was.Kernels, a.Kernels)
	want := was.Trained
	want.Heavy, want.Recent = 4, 12
	assert.Equal(t, want, a.Trained)
	model, err := weights.ReadModel(filepath.Join(dir, "model.gguf"))
	require.NoError(t, err)
	n, err := slotsOf(budget{}, memory.Cache{Context: 96, Pinned: 1, Adapter: a}, model)
	require.NoError(t, err)
	assert.Equal(t, 16, n)
}

// The output has the types of slots that it was tuned for, unless they are those that there are without it.
func TestTuneTypes(t *testing.T) {
	dir, _ := verifyFiles(t)
	out, again := filepath.Join(dir, "new.gguf"), filepath.Join(dir, "again.gguf")
	mixed := func(keys, values gguf.Type) []weights.SlotTypes {
		all := weights.SameSlotTypes(weights.SlotTypes{Key: gguf.Q8_0, Value: gguf.Q8_0}, 6)
		all[0].Key, all[5].Value = keys, values
		return all
	}
	for _, c := range []struct {
		args []string
		file string
		want []weights.SlotTypes
	}{
		{[]string{"--type=q8_0,0.k=q4_0,5.v=q4_0", "-b=30KiB"}, out, mixed(gguf.Q4_0, gguf.Q4_0)},
		{[]string{"-w", out}, again, mixed(gguf.Q4_0, gguf.Q4_0)},
		{[]string{"-w", out, "--type=q8_0"}, again, nil},
	} {
		status, stdout, stderr := command("", append(append(tuneQuickly(dir), c.args...), "-o", c.file, "--plot=none")...)
		require.Equal(t, exitOK, status, stderr)
		assert.NotContains(t, stdout+stderr, "--type")
		a, err := weights.Read(c.file)
		require.NoError(t, err)
		assert.Equal(t, c.want, a.SlotTypes, c.args)
	}
	// In the bytes of f32 slots there are several times as many of 8 bits or fewer, which are closer.
	status, stdout, stderr := command("", append(tuneQuickly(dir), "-b=60KiB", "--type=f32", "--find-types", "-o", again, "--plot=none")...)
	require.Equal(t, exitOK, status, stderr)
	said := regexp.MustCompile(`^Types by layer: (\S+)\. With f32 KL is [0-9.]+, on text that was not tuned on ([0-9.]+)\.\n`).FindStringSubmatch(stdout)
	require.NotNil(t, said, stdout)
	assert.NotContains(t, said[1], "f32")
	a, err := weights.Read(again)
	require.NoError(t, err)
	model, err := weights.ReadModel(filepath.Join(dir, "model.gguf"))
	require.NoError(t, err)
	assert.Equal(t, said[1], worker.DefaultSlots(model, a))
	valid := regexp.MustCompile(`this allocation +[0-9.]+, on text that was not tuned on ([0-9.]+)\*`).FindStringSubmatch(stdout)
	require.NotNil(t, valid, stdout)
	was, err := strconv.ParseFloat(said[2], 64)
	require.NoError(t, err)
	now, err := strconv.ParseFloat(valid[1], 64)
	require.NoError(t, err)
	assert.Less(t, now, was)
	// Types that an adapter has are not replaced by the default without a word.
	status, _, stderr = command("", append(tuneQuickly(dir), "-q", "-o", out, "--plot=none")...)
	require.Equal(t, exitOK, status, stderr)
	assert.Equal(t, out+" has types of slots that what replaces it will not have: --type q8_0,0.k=q4_0,5.v=q4_0 keeps them\n", stderr)
	status, _, stderr = command("", append(tuneQuickly(dir), "-q", "-o", out, "--plot=none")...)
	require.Equal(t, exitOK, status)
	assert.Empty(t, stderr)
	status, _, stderr = command("", append(tuneQuickly(dir), "--type=q8_0,6=q4_0", "-o", out)...)
	assert.Equal(t, exitUsage, status)
	assert.Contains(t, stderr, "layer 6: the model has 6")
}

// In the bytes of more than half a window of f16 slots there are q8_0 slots for all of its tokens: nothing is evicted then, and that is closest.
func TestTuneTypesOfAll(t *testing.T) {
	dir, _ := verifyFiles(t)
	out := filepath.Join(dir, "new.gguf")
	status, stdout, stderr := command("", append(tuneQuickly(dir), "-b58", "--type=f16", "--find-types", "-o", out, "--plot=none")...)
	require.Equal(t, exitOK, status, stderr)
	assert.Regexp(t, `^Types by layer: q8_0\. With f16 `, stdout)
	a, err := weights.Read(out)
	require.NoError(t, err)
	assert.Nil(t, a.SlotTypes, "q8_0 is the default")
	assert.NotEmpty(t, a.Budget)
}

// What was found before the types is written where these fail.
func TestTuneTypesFail(t *testing.T) {
	dir, _ := verifyFiles(t)
	out := filepath.Join(dir, "new.gguf")
	var stdout strings.Builder
	args := append(tuneQuickly(dir), "-b=30KiB", "--type=q8_0,0.k=f16", "--find-types", "-o", out, "--plot=none")
	status := execute(t.Context(), args, strings.NewReader(""), &stdout, writerFunc(func(line []byte) {
		if strings.HasPrefix(string(line), string(tune.Types)+":") {
			require.NoError(t, os.Remove(filepath.Join(dir, "model.gguf")))
		}
	}))
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stdout.String(), "this allocation")
	a, err := weights.Read(out)
	require.NoError(t, err)
	assert.NotEmpty(t, a.Budget)
	assert.Equal(t, gguf.F16, a.SlotTypes[0].Key)
	assert.DirExists(t, out+".work", "the same command goes on")
}

// writerFunc is told what is written.
type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// merge writes types of slots into what it makes, also of one adapter.
func TestMergeTypes(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Peak102: "a.gguf"})
	in, out, again := filepath.Join(dir, "a.gguf"), filepath.Join(dir, "o.gguf"), filepath.Join(dir, "again.gguf")
	status, _, stderr := command("", "merge", "-o", out, "--type", "q8_0,0.k=q4_0,1-2.v=f16", in)
	require.Equal(t, exitOK, status, stderr)
	a, err := weights.Read(out)
	require.NoError(t, err)
	assert.Equal(t, "q8_0,0.k=q4_0,1.v=f16,2.v=f16", worker.FormatTypes(a.SlotTypes))
	was, err := weights.Read(in)
	require.NoError(t, err)
	assert.Equal(t, was.Kernels, a.Kernels)
	status, _, stderr = command("", "merge", "-o", again, out)
	require.Equal(t, exitOK, status, stderr)
	b, err := weights.Read(again)
	require.NoError(t, err)
	assert.Equal(t, a.SlotTypes, b.SlotTypes)
	status, _, stderr = command("", "merge", "-o", again, out)
	require.Equal(t, exitOK, status)
	assert.Empty(t, stderr, "they are kept")
	status, _, stderr = command("", "merge", "-o", again, in)
	require.Equal(t, exitFailed, status)
	assert.Contains(t, stderr, "types of slots, which would be lost")
	status, _, stderr = command("", "merge", "-o", again, "--type", "q8_0", in)
	require.Equal(t, exitOK, status, stderr)
	status, _, stderr = command("", "merge", "-o", again, "--type", "f16", in)
	require.Equal(t, exitOK, status, stderr)
	status, _, stderr = command("", "merge", "-o", again, "--type", "q8_0,9=f16", in)
	assert.Equal(t, exitUsage, status)
	assert.Contains(t, stderr, "layer 9: the model has 6")

	alone := *b
	alone.Kernels, alone.SlotTypes = make([]weights.Kernels, len(b.Kernels)), weights.SameSlotTypes(weights.SlotTypes{Key: gguf.F16, Value: gguf.F16}, b.Layers)
	other := filepath.Join(dir, "alone.gguf")
	require.NoError(t, alone.Write(other))
	status, _, stderr = command("", "merge", "-o", filepath.Join(dir, "both.gguf"), out, other)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stderr, "other types")
	status, _, stderr = command("", "merge", "-o", filepath.Join(dir, "both.gguf"), "--type", "q4_0", out, other)
	assert.Equal(t, exitOK, status, "the adapters' own are replaced: %s", stderr)

	v := verifyOptions{}
	v.Model, v.Adapters = filepath.Join(dir, "none.gguf"), []string{in, out}
	v.Bytes = []verify.Budget{{Bytes: 1}}
	require.NoError(t, v.defaultTypes())
	assert.Equal(t, append(verify.CandidateTypes(), "q8_0,0.k=q4_0,1.v=f16,2.v=f16"), v.SlotTypes, "verify tries those of the adapters too")
	v.Bytes = nil
	v.Model, err = testdata.PathIn(dir, testdata.Model)
	require.NoError(t, err)
	require.NoError(t, v.defaultTypes())
	assert.Equal(t, "q8_0,0.k=q4_0,1.v=f16,2.v=f16", v.SlotType)
	v.Adapters = v.Adapters[:1]
	require.NoError(t, v.defaultTypes())
	assert.Equal(t, "q8_0", v.SlotType)
}

// Why heads are measured that were to be replayed is said even to those who want no progress.
func TestTuneEvents(t *testing.T) {
	var out strings.Builder
	meter := progress.New(&out, true)
	showTuning(meter, tune.Event{Stage: tune.Replays, Done: 1, Total: 2})
	assert.Empty(t, out.String())
	showTuning(meter, tune.Event{Stage: tune.Replays, Why: "no output projection"})
	assert.Equal(t, "heads are measured one by one, in more passes: replays can't compare them: no output projection\n", out.String())
}

// The last line says what is in the output: beside an allocation, the phi and psi that were named.
func TestTuneTable(t *testing.T) {
	for adapter, want := range map[string]string{
		"":             "o.gguf: the allocation, which takes no memory\n",
		"trained.gguf": "o.gguf: the allocation, and phi and psi of trained.gguf\n",
	} {
		o := tuneOptions{output: "o.gguf", Options: tune.Options{Adapter: adapter}}
		var out strings.Builder
		require.NoError(t, o.table(&out, &tune.Trained{Without: &tune.Result{}}, &weights.Adapter{}))
		assert.Contains(t, out.String(), want)
		assert.Regexp(t, `this allocation .*, on text that was not tuned on [0-9.]+\*\n`, out.String())
		assert.Contains(t, out.String(), "* It took part in the choice", "said beside the number")
	}
	o := tuneOptions{}
	var out strings.Builder
	require.NoError(t, o.table(&out, &tune.Trained{Without: &tune.Result{Budget: 40, Levels: []int{8, 10, 20, 40, 80, 160}, Replayed: true,
		Heads: []tune.Head{{Layer: 3, Distance: []float64{.6, .5, .4, .3, .2, .1}, Slots: 40}}}}, &weights.Adapter{}))
	assert.Regexp(t, `layer +head +KL at 10 +KL at 40 +KL at 160 +slots\n +3 +0 +~0.50000 +~0.30000 +~0.10000 +40\n`, out.String())
	assert.Contains(t, out.String(), "~ a share of its layer's, by replays.")
}

// The last line of all is the command that runs the model with what was written. An allocation alone does not bring its budget.
func TestTuneRunLine(t *testing.T) {
	dir := unpacked(t, map[string]string{testdata.Peak102: "trained.gguf"})
	trained, err := weights.Read(filepath.Join(dir, "trained.gguf"))
	require.NoError(t, err)
	o := tuneOptions{Options: tune.Options{Model: "my model.gguf"}, output: "my model.lesskv.gguf"}
	assert.Equal(t, "lesskv run -m 'my model.gguf' -b 215", o.runLine(&weights.Adapter{}, 215))
	assert.Equal(t, "lesskv run -m 'my model.gguf'", o.runLine(trained, 215))
	o.output = "tuned.gguf"
	assert.Equal(t, "lesskv run -m 'my model.gguf' -w tuned.gguf -b 215", o.runLine(&weights.Adapter{}, 215))
}

// With --train the table says which layers have phi and psi, and why others have none.
func TestTuneTrainTable(t *testing.T) {
	plain, with := &tune.Result{TunedValid: .3}, &tune.Result{TunedValid: .2}
	layers := []tune.Fitted{{Layer: 0, Rank: 8, Hidden: 8, Error: .125, Bytes: 4048, Kept: true}, {Layer: 5, Rank: 4, Hidden: 2, Error: .75, Bytes: 4048}}
	sizes := []tune.Sizing{{Layer: 0, Rank: 8, Hidden: 8, Before: .25, After: .125, Kept: true}, {Layer: 0, Rank: 16, Hidden: 16, Before: .125, After: .5}}
	for want, r := range map[string]*tune.Trained{
		"in no layer would they pay for their bytes":      {Without: plain},
		"not trained: no output projection":               {Without: plain, Why: "no output projection"},
		"No layer gains more by them than by as many byt": {Without: plain, Layers: layers[1:]},
		"With them KL is 0.3000 on text that was not tun": {Without: with, With: plain, Layers: layers},
		"none of phi, psi   0.0000, on text that was not": {Without: plain, With: with, Layers: layers, Better: true},
		"the allocation, and phi and psi, which take 0 B": {Without: plain, With: with, Layers: layers, Better: true},
		"Larger or smaller phi and psi of one layer":      {Without: plain, With: with, Layers: layers, Sizes: sizes, Better: true},
	} {
		var out strings.Builder
		o := tuneOptions{output: "o.gguf", train: true}
		require.NoError(t, o.table(&out, r, &weights.Adapter{}))
		assert.Contains(t, out.String(), want)
		if len(r.Layers) == 2 {
			assert.Regexp(t, `(?m)^ +0 +8 +8 +0\.125 +4048 +yes *$`, out.String())
			if r.Sizes != nil {
				assert.Regexp(t, `(?m)^ +0 +16 +16 +0\.12500 +0\.50000 +no *$`, out.String())
			}
			assert.Regexp(t, `(?m)^ +5 +4 +2 +0\.750 +4048 +no *$`, out.String())
		}
	}
}

func TestTuneUsage(t *testing.T) {
	dir, _ := verifyFiles(t)
	for want, args := range map[string][]string{
		"--rank is for training: want --train":  {"--rank", "4"},
		"--steps is for training: want --train": {"--steps", "10"},
		"--train and --find-types":              {"--train", "--find-types"},
		"--train and --adapter":                 {"--train", "-w", filepath.Join(dir, "model.gguf")},
	} {
		status, _, stderr := command("", append(tuneQuickly(dir), args...)...)
		assert.Equal(t, exitUsage, status, stderr)
		assert.Contains(t, stderr, want)
	}
	// The command that is said to follow --train, whose output is there, is one that works.
	_, _, stderr := command("", append(tuneQuickly(dir), "--train", "--find-types")...)
	said := regexp.MustCompile(`behind --train: lesskv (tune .*)\n`).FindStringSubmatch(stderr)
	require.NotNil(t, said, stderr)
	args := strings.Fields(said[1])
	assert.Contains(t, args, filepath.Join(dir, "model.lesskv.gguf"))
	status, _, stderr := command("", append(args, "--rounds=0", "--plot=none", "-q")...)
	require.Equal(t, exitOK, status, stderr)
	assert.Empty(t, stderr)
	a, err := weights.Read(filepath.Join(dir, "model.lesskv.types.gguf"))
	require.NoError(t, err)
	assert.Positive(t, a.Bytes())
}

// How many windows there are is said; to those who want no progress only where they are fewer than were asked for.
func TestTuneWindows(t *testing.T) {
	dir, _ := verifyFiles(t)
	for want, args := range map[string][]string{
		`^\d+ tokens of text; 19 windows of 96 tokens to tune on, 1 for validation\n$`:                                  {"--windows=19"},
		`^\d+ tokens of text; \d+ windows of 96 tokens to tune on, of the 500 that were asked for, 1 for validation\n$`: {"--windows=500", "-q"},
	} {
		ctx, stop := context.WithCancel(t.Context())
		var said []string
		args = slices.Concat(tuneQuickly(dir), []string{"-o", filepath.Join(dir, "new.gguf")}, args)
		status := execute(ctx, args, strings.NewReader(""), io.Discard, writerFunc(func(line []byte) {
			said = append(said, string(line))
			stop() // nothing need be measured
		}))
		assert.Equal(t, exitInterrupted, status)
		assert.Regexp(t, want, said[0])
	}
}
