package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// peak41 is gopher-5m's adapter for 2 % of the context, with the budget that it was trained for.
func peak41() *worker.LESS {
	return &worker.LESS{Policy: "peak", Budget: 41, Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf"}
}

// A story is a generation that can be interrupted: a prompt, greedy decoding, and after the interruption more of both.
type story struct {
	prompt []int32
	reply  int     // tokens decoded one by one before the interruption
	second []int32 // prompt after it
}

// begin decodes up to the interruption in a sequence, and returns the next token and its position.
func (s story) begin(t *testing.T, w *worker.Worker, seq int) (next int32, pos int) {
	t.Helper()
	out, err := w.Feed(seq, 0, s.prompt, worker.Last)
	require.NoError(t, err)
	best, _ := top(out.Row(0))
	next, pos = int32(best), len(s.prompt)
	if s.reply > 0 {
		found, _, err := w.Greedy(seq, pos, next, s.reply, false)
		require.NoError(t, err)
		next, pos = found[s.reply-1], pos+s.reply
	}
	return next, pos
}

// end decodes what follows the interruption and returns all its logits.
func (s story) end(t *testing.T, w *worker.Worker, seq int, next int32, pos int) *worker.Output {
	t.Helper()
	const n = 24
	_, out, err := w.Greedy(seq, pos, next, n, true)
	require.NoError(t, err)
	more, err := w.Feed(seq, pos+n, s.second, worker.All)
	require.NoError(t, err)
	out.Values = append(out.Values, more.Values...)
	return out
}

// Every model that is served takes an adapter that Go made for it, its memory stands still as the text goes on, and a saved state goes on in
// another process, in another sequence, as if nothing had been. So it is with LESS on the device.
func TestMemoryOfEveryModel(t *testing.T) {
	for _, m := range tinymodels.Supported() {
		t.Run(m.Name, func(t *testing.T) { memoryOfModel(t, m, false) })
		t.Run(m.Name+", on the device", func(t *testing.T) { memoryOfModel(t, m, true) })
	}
}

func memoryOfModel(t *testing.T, m tinymodels.Model, device bool) {
	t.Parallel()
	c := worker.Config{Model: write(t, m, gguf.F16), Context: 2048, Ubatch: 32, Sequences: 2, LESS: &worker.LESS{Budget: 40, OnDevice: device}}
	model, err := weights.ReadModel(c.Model)
	require.NoError(t, err)
	c.LESS.Adapter = filepath.Join(t.TempDir(), "a.lesskv.gguf")
	a := unequal(model, weights.Trained{Policy: "h2o", Heavy: 20, Recent: 20, Ubatch: 32, Context: 2048}, 1)
	require.NoError(t, a.Write(c.LESS.Adapter))
	w, other := open(t, worker.Patched, c), open(t, worker.Patched, c)
	tokens := randomTokens(180, 384)
	s := story{prompt: tokens[:130], reply: 7, second: tokens[140:]}
	next, pos := s.begin(t, w, 0)
	state, err := w.Save(0)
	require.NoError(t, err)
	before, err := w.LESS()
	require.NoError(t, err)
	if device { // "LESS on the device" in algorithm.md
		layers, err := w.Layers(0)
		require.NoError(t, err)
		slots, state := int64(0), int64(0)
		for _, l := range layers {
			of := model.Layer(l.Layer)
			pair := 2 * (of.KeyLength + of.ValueLength)
			if l.Window {
				slots += int64(2*of.HeadsKV*(m.Window-1+32)*pair + 4*32)
				continue
			}
			slots += int64(2 * of.HeadsKV * ((40+32)*pair + 40*(4+4)))
			state += int64(2 * of.HeadsKV * a.Kernels[l.Layer].Rank * (of.ValueLength + 1) * 4)
		}
		assert.Equal(t, []int64{slots, state}, []int64{before.SlotBytes, before.StateBytes})
	}
	want := s.end(t, w, 0, next, pos)
	after, err := w.LESS()
	require.NoError(t, err)
	assert.Equal(t, before, after)
	_, err = other.Feed(0, 0, tokens[100:150], worker.None)
	require.NoError(t, err)
	_, err = other.Load(1, state)
	require.NoError(t, err)
	sameBits(t, want, s.end(t, other, 1, next, pos))
}

// Generation that continues from a saved state equals generation that was never interrupted, bit for bit: at a boundary of
// micro-batches and in the middle of decoding, whole contexts and single sequences, in memory and in files, in another
// process and in another sequence.
func TestSaveAndRestore(t *testing.T) {
	for _, c := range []struct {
		name  string
		model string
		less  *worker.LESS
	}{
		{"peak with an adapter", gopher, peak41()},
		{"peak with an adapter, on the device", gopher, &worker.LESS{Policy: "peak", Budget: 41, Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf", OnDevice: true}},
		{"peak, by head, on the device", gopher, &worker.LESS{Policy: "peak", Slots: byHead, Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf", OnDevice: true}},
		{"lambda, f32 slots, on the device", gopher, &worker.LESS{Policy: "lambda", Budget: 41, TypeK: "f32", TypeV: "f32", OnDevice: true}},
		{"h2o, f32 slots", gopher, &worker.LESS{Policy: "h2o", Budget: 64, TypeK: "f32", TypeV: "f32"}},
		{"h2o, keys in q4_0", gopher, &worker.LESS{Policy: "h2o", Budget: 64, TypeK: "q4_0", TypeV: "q8_0"}},
		{"peak, types by layer", gopher, &worker.LESS{Policy: "peak", Budget: 64, TypeK: "q8_0,0=q4_0", TypeV: "q8_0,5=q4_0,3=f16"}},
		{"peak, by head", gopher, &worker.LESS{Policy: "peak", Slots: byHead, Adapter: "testdata/gopher-5m.peak-41.lesskv.gguf"}},
		{"shared layers", "gemma3n", &worker.LESS{Policy: "peak", Budget: 64}},
		{"shared layers of other heads, keys in q4_0", "gemma4-64", &worker.LESS{Policy: "h2o", Budget: 64, TypeK: "q4_0", TypeV: "q8_0"}},
		{"lambda, sliding windows", "gemma2", &worker.LESS{Policy: "lambda", Budget: 64}},
		{"shared layers, on the device", "gemma3n", &worker.LESS{Policy: "peak", Budget: 64, OnDevice: true}},
		{"lambda, sliding windows, on the device", "gemma2", &worker.LESS{Policy: "lambda", Budget: 64, OnDevice: true}},
		{"h2o, delta net", "qwen35", &worker.LESS{Policy: "h2o", Budget: 64}},
		{"peak, short convolutions and sliding windows", "lfm2-window", &worker.LESS{Policy: "peak", Budget: 64}},
		{"h2o, Mamba 2", "nemotron_h", &worker.LESS{Policy: "h2o", Budget: 64}},
		{"h2o, Mamba 2, on the device", "nemotron_h", &worker.LESS{Policy: "h2o", Budget: 64, OnDevice: true}},
		{"h2o, Mamba 2 in every layer", "falcon-h1", &worker.LESS{Policy: "h2o", Budget: 64}},
		{"peak, Mamba 2 in every layer, by head", "falcon-h1", &worker.LESS{Policy: "peak", Slots: []int{100, 20, 7, 64, 1, 33, 65, 8}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.model != gopher {
				c.model = tiny(t, c.model)
			}
			config := worker.Config{Model: c.model, Context: 2048, Ubatch: 32, Sequences: 3, LESS: c.less}
			w := start(t, worker.Patched)
			info, err := w.Open(config)
			require.NoError(t, err)
			tokens := randomTokens(400, info.Vocab)
			other := open(t, worker.Patched, config)
			for _, s := range []story{
				{prompt: tokens[:320], second: tokens[320:]},
				{prompt: tokens[:320], reply: 23, second: tokens[320:]},
				{prompt: tokens[:20], reply: 3, second: tokens[20:]}, // nothing evicted yet
			} {
				t.Run(fmt.Sprintf("%d tokens and %d", len(s.prompt), s.reply), func(t *testing.T) {
					require.NoError(t, w.Clear())
					next, pos := s.begin(t, w, 0)
					want := s.end(t, w, 0, next, pos)

					require.NoError(t, w.Clear())
					_, err := w.Decode(2, 0, tokens[:50], worker.None) // of no concern to sequence 0
					require.NoError(t, err)
					s.begin(t, w, 0)
					whole, err := w.Save(worker.End)
					require.NoError(t, err)
					one, err := w.Save(0)
					require.NoError(t, err)
					dir := t.TempDir()
					wholeFile, oneFile := filepath.Join(dir, "whole"), filepath.Join(dir, "one")
					require.NoError(t, w.SaveFile(worker.End, wholeFile, s.prompt))
					require.NoError(t, w.SaveFile(0, oneFile, s.prompt))
					sameBits(t, want, s.end(t, w, 0, next, pos)) // saving changed nothing

					for _, restore := range []struct {
						name string
						seq  int
						load func() error
					}{
						{"whole", 0, func() error { _, err := other.Load(worker.End, whole); return err }},
						{"one sequence into another", 1, func() error { _, err := other.Load(1, one); return err }},
						{"whole, from a file", 0, func() error { _, err := other.LoadFile(worker.End, wholeFile); return err }},
						{"one sequence, from a file", 2, func() error { _, err := other.LoadFile(2, oneFile); return err }},
					} {
						t.Run(restore.name, func(t *testing.T) {
							_, err := other.Feed(0, 0, tokens[100:300], worker.None) // to be replaced
							require.NoError(t, err)
							require.NoError(t, restore.load())
							again, err := other.Save(restore.seq)
							require.NoError(t, err)
							assert.Equal(t, len(one), len(again))
							sameBits(t, want, s.end(t, other, restore.seq, next, pos))
							require.NoError(t, other.Clear())
						})
					}
				})
			}
		})
	}
}

// In a unified context a sequence of any number is saved, not only the first n_seq_max.
func TestSaveInUnifiedContext(t *testing.T) {
	besideAndOn(t, func(t *testing.T, less *worker.LESS) {
		w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 512, Ubatch: 32, Sequences: 1, Unified: true, LESS: less})
		tokens := heldOut(t, w, 120)
		_, err := w.Feed(5, 0, tokens[:100], worker.None)
		require.NoError(t, err)
		state, err := w.Save(5)
		require.NoError(t, err)
		want, err := w.Feed(5, 100, tokens[100:], worker.All)
		require.NoError(t, err)
		_, err = w.Load(7, state)
		require.NoError(t, err)
		got, err := w.Feed(7, 100, tokens[100:], worker.All)
		require.NoError(t, err)
		sameBits(t, want, got)
	})
}

// A state that was cut short or made under other settings is refused, saying why, and the running sequence goes on as if
// nothing had been tried.
func TestForeignStateIsRefused(t *testing.T) {
	t.Parallel()
	config := worker.Config{Model: gopher, Context: 2048, Ubatch: 32, LESS: peak41()}
	w := open(t, worker.Patched, config)
	tokens := heldOut(t, w, 300)
	s := story{prompt: tokens[:200], reply: 5, second: tokens[200:]}
	next, pos := s.begin(t, w, 0)
	want := s.end(t, w, 0, next, pos)
	require.NoError(t, w.Clear())
	s.begin(t, w, 0)

	refuse := func(t *testing.T, what, says string, err error) {
		t.Helper()
		var e *worker.Error
		if assert.ErrorAs(t, err, &e, what) {
			assert.Contains(t, e.Message, says, what)
		}
	}
	for _, seq := range []int{0, worker.End} {
		good, err := w.Save(seq)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "state")
		require.NoError(t, w.SaveFile(seq, file, tokens))
		saved, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, n := range []int{0, 1, 7, 40, len(good) / 2, len(good) - 1} {
			_, err := w.Load(seq, good[:n])
			says := "unexpectedly reached end"
			if seq == worker.End && n < 40 {
				says = "not the state of a llama model"
			}
			refuse(t, fmt.Sprintf("%d of %d bytes into %d", n, len(good), seq), says, err)
			head := 12 + 4*len(tokens) // magic, version, number of tokens; a file's state has no magic and number of its own
			n = min(head+n, len(saved)-1)
			require.NoError(t, os.WriteFile(file, saved[:n], 0o666))
			_, err = w.LoadFile(seq, file)
			refuse(t, fmt.Sprintf("%d of %d bytes of a file into %d", n, len(saved), seq), says, err)
		}
	}

	scaled, err := weights.Read(peak41().Adapter)
	require.NoError(t, err)
	scaled.Kernels[3].Scale.Values = slices.Repeat([]float32{1}, scaled.Heads)
	anotherScale := filepath.Join(t.TempDir(), "scaled.gguf")
	require.NoError(t, scaled.Write(anotherScale))

	for _, c := range []struct {
		name, says string
		tree       worker.Tree
		change     func(*worker.Config)
	}{
		{"the unmodified runtime's", "not the state of a LESS cache", worker.Unmodified, func(c *worker.Config) { c.LESS = nil }},
		{"LESS off", "not the state of a LESS cache", worker.Patched, func(c *worker.Config) { c.LESS = nil }},
		{"another policy", "policy is h2o there and peak here", worker.Patched, func(c *worker.Config) { c.LESS = &worker.LESS{Policy: "h2o", Budget: 41, Heavy: worker.Int(10)} }},
		{"no adapter", "SHA-256 is (none) there", worker.Patched, func(c *worker.Config) { c.LESS.Adapter = "" }},
		{"another adapter", "adapter's SHA-256", worker.Patched, func(c *worker.Config) { c.LESS.Adapter = "testdata/gopher-5m.peak-102.lesskv.gguf" }},
		{"another scale", "adapter's SHA-256", worker.Patched, func(c *worker.Config) { c.LESS.Adapter = anotherScale }},
		{"another budget", "budget is 42 there and 41 here", worker.Patched, func(c *worker.Config) { c.LESS.Budget = 42; c.LESS.Heavy = worker.Int(10) }},
		{"budgets by head", "heads with budgets of their own is 12 there and 0 here", worker.Patched, func(c *worker.Config) {
			c.LESS.Budget, c.LESS.Slots, c.LESS.Heavy = 0, byHead, worker.Int(10)
		}},
		{"another split", "heavy is 11 there and 10 here", worker.Patched, func(c *worker.Config) { c.LESS.Heavy = worker.Int(11) }},
		{"f32 keys", "key type", worker.Patched, func(c *worker.Config) { c.LESS.TypeK = "f32" }},
		{"q4_0 keys", "key type", worker.Patched, func(c *worker.Config) { c.LESS.TypeK = "q4_0" }},
		{"f32 values", "value type", worker.Patched, func(c *worker.Config) { c.LESS.TypeV = "f32" }},
		{"types by layer", "key type is one for each layer there and 1 here", worker.Patched, func(c *worker.Config) { c.LESS.TypeV = "f16,5=q4_0" }},
		{"another micro-batch", "n_ubatch is 16 there and 32 here", worker.Patched, func(c *worker.Config) { c.Ubatch = 16 }},
		{"another RoPE base", "rope_freq_base is 20000 there", worker.Patched, func(c *worker.Config) { c.RopeBase = 20000 }},
		{"another RoPE scale", "rope_freq_scale is 0.5 there", worker.Patched, func(c *worker.Config) { c.RopeScale = .5 }},
	} {
		foreign := config
		less := *config.LESS
		foreign.LESS = &less
		c.change(&foreign)
		f := open(t, c.tree, foreign)
		_, err := f.Feed(0, 0, randomTokens(100, 384), worker.None)
		require.NoError(t, err, c.name)
		for _, seq := range []int{0, worker.End} {
			state, err := f.Save(seq)
			require.NoError(t, err, c.name)
			_, err = w.Load(seq, state)
			refuse(t, c.name, c.says, err)
		}
	}
	sameBits(t, want, s.end(t, w, 0, next, pos))

	// The context's length is none of these settings.
	state, err := w.Save(0)
	require.NoError(t, err)
	config.Context = 4096
	_, err = open(t, worker.Patched, config).Load(0, state)
	assert.NoError(t, err)
}

// Types of layers are compared one by one.
func TestStateOfOtherTypesByLayerIsRefused(t *testing.T) {
	t.Parallel()
	config := func(k, v string) worker.Config {
		return worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: &worker.LESS{Policy: "peak", Budget: 41, TypeK: k, TypeV: v}}
	}
	w := open(t, worker.Patched, config("q8_0,0=q4_0", "q8_0"))
	for says, c := range map[string]worker.Config{
		"key type in layer 0 is 8 there and 2 here":   config("q8_0,1=q4_0", "q8_0"),
		"value type in layer 0 is 2 there and 8 here": config("q8_0,0=q4_0", "q8_0,0=q4_0"),
		"key type is 8 there and one for each layer":  config("q8_0", "q8_0"),
	} {
		f := open(t, worker.Patched, c)
		_, err := f.Feed(0, 0, randomTokens(100, 384), worker.None)
		require.NoError(t, err)
		state, err := f.Save(0)
		require.NoError(t, err)
		_, err = w.Load(0, state)
		require.ErrorContains(t, err, says)
	}
}

// Two allocations of one sum are two settings.
func TestStateOfAnotherAllocationIsRefused(t *testing.T) {
	t.Parallel()
	config := worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: &worker.LESS{Policy: "peak", Slots: byHead}}
	w := open(t, worker.Patched, config)
	swapped := slices.Clone(byHead)
	swapped[3], swapped[10] = swapped[10], swapped[3]
	config.LESS = &worker.LESS{Policy: "peak", Slots: swapped}
	f := open(t, worker.Patched, config)
	_, err := f.Feed(0, 0, randomTokens(100, 384), worker.None)
	require.NoError(t, err)
	state, err := f.Save(0)
	require.NoError(t, err)
	_, err = w.Load(0, state)
	var e *worker.Error
	require.ErrorAs(t, err, &e)
	assert.Contains(t, e.Message, "the budget of KV head 3, counted through the layers, is 350 there and 9 here")
}

// The shape of the slots is part of a state: another model's is refused even where the settings agree.
func TestStateOfAnotherModelIsRefused(t *testing.T) {
	t.Parallel()
	config := worker.Config{Model: gopher, Context: 512, LESS: &worker.LESS{Budget: 64}}
	w := open(t, worker.Patched, config)
	for _, name := range []string{"llama", "qwen3"} {
		config.Model = tiny(t, name)
		foreign := open(t, worker.Patched, config)
		_, err := foreign.Feed(0, 0, randomTokens(100, 384), worker.None)
		require.NoError(t, err)
		state, err := foreign.Save(0)
		require.NoError(t, err)
		_, err = w.Load(0, state)
		var e *worker.Error
		require.ErrorAs(t, err, &e)
		assert.Contains(t, e.Message, "can't load the state: ")
		t.Logf("%s: %s", name, e.Message)
	}
}

// A saved size that damage has made large takes no memory that the state does not fill.
func TestStateOfADamagedSize(t *testing.T) {
	t.Parallel()
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 1 << 17, Ubatch: 32, LESS: &worker.LESS{Budget: 1 << 17, TypeK: "f16", TypeV: "f16"}})
	_, err := w.Feed(0, 0, randomTokens(10, 384), worker.None)
	require.NoError(t, err)
	state, err := w.Save(0)
	require.NoError(t, err)
	layers, err := w.Layers(0)
	require.NoError(t, err)
	at := bytes.Index(state, []byte("lesskv\x00\x02")) - 8 // of the first layer
	require.Positive(t, at)
	binary.LittleEndian.PutUint64(state[at:], uint64(2*layers[0].SlotBytes))

	require.NoError(t, w.ResetPeak())
	before, err := w.Memory()
	require.NoError(t, err)
	require.Greater(t, layers[0].SlotBytes, int64(64<<20))
	_, err = w.Load(0, state)
	require.Error(t, err)
	after, err := w.Memory()
	require.NoError(t, err)
	assert.Less(t, after.Peak-before.Peak, int64(16<<20))
}

// A state with a flipped bit is refused, or it was one that says nothing; it breaks nothing.
func TestDamagedState(t *testing.T) {
	for _, name := range []string{"gemma2", "qwen35"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testDamagedState(t, tiny(t, name))
		})
	}
}

func testDamagedState(t *testing.T, model string) {
	t.Helper()
	config := worker.Config{Model: model, Context: 512, Ubatch: 32, Sequences: 2, LESS: &worker.LESS{Budget: 40}}
	w := open(t, worker.Patched, config)
	tokens := randomTokens(300, 384)
	s := story{prompt: tokens[:200], second: tokens[200:]}
	next, pos := s.begin(t, w, 0)
	want := s.end(t, w, 0, next, pos)
	require.NoError(t, w.Clear())
	s.begin(t, w, 0)
	state, err := w.Save(0)
	require.NoError(t, err)

	_, err = w.Load(1, state)
	require.NoError(t, err)
	same, err := w.Save(1)
	require.NoError(t, err)

	r := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for i := range 500 {
		at := i // the header, and then anything
		if i >= 200 {
			at = r.IntN(len(state))
		}
		damaged := slices.Clone(state)
		damaged[at] ^= 1 << r.IntN(8)
		var e *worker.Error
		_, err := w.Load(1, damaged)
		if errors.As(err, &e) {
			refused++
		} else {
			require.NoError(t, err, "byte %d", at)
		}
		saved, err := w.Save(1)
		require.NoError(t, err, "byte %d", at)
		require.True(t, bytes.Equal(same, saved), "byte %d: another state", at)
	}
	t.Logf("%d of 500 refused", refused)
	assert.Greater(t, refused, 350)
	sameBits(t, want, s.end(t, w, 0, next, pos))
}
