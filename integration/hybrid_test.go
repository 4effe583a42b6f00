package integration

import (
	"bytes"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// hybrids returns the models that LESS serves in which some layers are recurrent.
func hybrids(t *testing.T) (all []tinymodels.Model) {
	t.Helper()
	for _, m := range tinymodels.Supported() {
		if m.Attends != nil {
			all = append(all, m)
		}
	}
	require.Greater(t, len(all), 10)
	return all
}

// hybrid returns a configuration under which a text of a few hundred tokens evicts.
func hybrid(t *testing.T, name string) worker.Config {
	t.Helper()
	return worker.Config{Model: tiny(t, name), Context: 1024, Ubatch: 32, Sequences: 3, LESS: &worker.LESS{Budget: 40}}
}

// refusedWith fails unless err is an error of the worker that says something.
func refusedWith(t *testing.T, err error, says string) {
	t.Helper()
	var e *worker.Error
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Message, says)
}

// The layers that attend have caches, the others none. What is reported of the two parts is what the unmodified runtime logs of its
// own two: of its KV cache at n_ctx, and of its recurrent states.
func TestHybridLayers(t *testing.T) {
	t.Parallel()
	for _, m := range hybrids(t) {
		path := write(t, m, gguf.F32)
		c := worker.Config{Model: path, Context: 4096, Ubatch: 32, Sequences: 2, LESS: &worker.LESS{Budget: 40}}
		w := open(t, worker.Patched, c)
		_, err := w.Feed(0, 0, randomTokens(200, 384), worker.None)
		require.NoError(t, err)
		layers, err := w.Layers(0)
		require.NoError(t, err)
		var attend []int
		for _, l := range layers {
			attend = append(attend, l.Layer)
			assert.Equal(t, m.Window > 0, l.Window, m.Name)
			assert.EqualValues(t, 200, l.Seen, m.Name)
			if !l.Window {
				assert.EqualValues(t, 40, l.Kept, m.Name)
				assert.EqualValues(t, 160, l.Folded, m.Name)
			}
		}
		assert.Equal(t, m.Attends, attend, m.Name)
		info, err := w.LESS()
		require.NoError(t, err)
		assert.Equal(t, len(m.Attends), info.Layers+info.WindowLayers, m.Name)

		c.LESS, c.WindowOnly, c.Unified = nil, false, false
		u := open(t, worker.Unmodified, c)
		log, err := u.Log()
		require.NoError(t, err)
		const mib, step = 1 << 20, .01 / 2 * (1 << 20) // what is logged is rounded
		size := func(what string) (sum float64, n int) {
			for _, s := range regexp.MustCompile(what+` buffer size = +([0-9.]+) MiB`).FindAllStringSubmatch(log, -1) {
				x, err := strconv.ParseFloat(s[1], 64)
				require.NoError(t, err)
				sum += x * mib
				n++
			}
			require.NotZero(t, n, "no %s in the log of %s:\n%s", what, m.Name, log)
			return sum, n
		}
		kv, n := size("KV")
		assert.InDelta(t, kv, 2*info.FullBytes, 2*step*float64(n), "%s: two sequences", m.Name)
		recurrent, n := size("RS")
		assert.InDelta(t, recurrent, info.RecurrentBytes, step*float64(n), m.Name)
		assert.Positive(t, info.RecurrentBytes, m.Name)
	}
}

// Evicting changes what a hybrid computes, the fast kernels and the plain loops in the same way.
func TestHybridEvicts(t *testing.T) {
	t.Parallel()
	for _, m := range hybrids(t) {
		t.Run(m.Name, func(t *testing.T) {
			c := worker.Config{Model: write(t, m, gguf.F32), Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: 40, TypeK: "f32", TypeV: "f32"}}
			tokens := randomTokens(300, 384)
			w := open(t, worker.Patched, c)
			fast := chatter.decode(t, w, tokens)
			require.NoError(t, w.Clear())
			c.LESS.Reference = true
			assert.GreaterOrEqual(t, sameButForTies(t, w, open(t, worker.Patched, c), tokens, m.Experts, 1e-3, 1e-5), leastCompared(m.Experts))
			c.LESS.Reference, c.LESS.Budget = false, 512
			all := chatter.decode(t, open(t, worker.Patched, c), tokens)
			if m.Window > 0 {
				sameBits(t, all, fast) // no layer has a budget
				return
			}
			assert.Greater(t, compare(t, all, fast).max, .05)
		})
	}
}

// Kernels serve the layers of a hybrid that attend, where those have all the same heads.
func TestHybridKernels(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qwen35", "falcon-h1", "qwen3vl"} {
		m, err := tinymodels.Find(name)
		require.NoError(t, err)
		c := hybrid(t, name)
		c.LESS.TypeK, c.LESS.TypeV = "f32", "f32"
		model, err := weights.ReadModel(c.Model)
		require.NoError(t, err)
		a := weights.Random(model, 4, 8, weights.Trained{Policy: "h2o", Heavy: 20, Recent: 20, Ubatch: 32, Context: 1024}, 1)
		c.LESS.Adapter = filepath.Join(t.TempDir(), "adapter.gguf")
		require.NoError(t, a.Write(c.LESS.Adapter))
		tokens := randomTokens(300, 384)
		w := open(t, worker.Patched, c)
		fast := chatter.decode(t, w, tokens)
		info, err := w.LESS()
		require.NoError(t, err)
		attend := len(m.Attends)
		if m.Attends == nil {
			attend = model.Layers
		}
		assert.Equal(t, attend, info.KernelLayers, name)
		c.LESS.Reference = true
		require.NoError(t, w.Clear())
		assert.GreaterOrEqual(t, sameButForTies(t, w, open(t, worker.Patched, c), tokens, m.Experts, 1e-2, 1e-5), leastCompared(m.Experts))
		c.LESS.Reference, c.LESS.Adapter = false, ""
		assert.Greater(t, compare(t, chatter.decode(t, open(t, worker.Patched, c), tokens), fast).max, .05, "%s: what is folded counts", name)
	}
}

// What a hybrid holds does not grow.
func TestHybridMemoryStandsStill(t *testing.T) {
	t.Parallel()
	const few, many = 2000, 24000
	for _, name := range []string{"qwen35", "nemotron_h"} {
		w := open(t, worker.Patched, worker.Config{Model: tiny(t, name), Context: many, Ubatch: 64, Batch: few, LESS: &worker.LESS{Budget: 64}})
		tokens := randomTokens(many, 384)
		_, err := w.Feed(0, 0, tokens[:few], worker.None)
		require.NoError(t, err)
		early, err := w.LESS()
		require.NoError(t, err)
		before, err := w.Memory()
		require.NoError(t, err)
		_, err = w.Feed(0, few, tokens[few:], worker.None)
		require.NoError(t, err)
		late, err := w.LESS()
		require.NoError(t, err)
		after, err := w.Memory()
		require.NoError(t, err)
		assert.Equal(t, early, late, name)
		t.Logf("%s: %d bytes of slots, %d of recurrent states, %d of the full cache; the process grew by %d", name, late.SlotBytes, late.RecurrentBytes, late.FullBytes, after.Anon-before.Anon)
		assert.Greater(t, late.FullBytes, int64(5<<20), "%s: or else this measures nothing", name)
		assert.Less(t, after.Anon-before.Anon, int64(3<<20), name)
	}
}

// Sequences of one batch do not see each other.
func TestHybridSequencesAreApart(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qwen35", "lfm2-window", "falcon-h1", "jamba"} {
		c := hybrid(t, name)
		c.Sequences = 2
		w := open(t, worker.Patched, c)
		tokens := randomTokens(256, 384)
		apart(t, w, tokens[:128], 1, tokens[128:], 0)
	}
}

// A graph of a hybrid is used again, and computes what graphs built anew do.
func TestHybridGraphReuse(t *testing.T) {
	for _, name := range []string{"qwen35", "lfm2-window"} {
		c := hybrid(t, name)
		tokens := randomTokens(100, 384)
		w := open(t, worker.Patched, c)
		reused := byOne.decode(t, w, tokens)
		info, err := w.Info()
		require.NoError(t, err)
		assert.Greater(t, info.GraphsReused, 90, name)

		t.Setenv("LLAMA_GRAPH_REUSE_DISABLE", "1")
		w = open(t, worker.Patched, c)
		sameBits(t, byOne.decode(t, w, tokens), reused)
		info, err = w.Info()
		require.NoError(t, err)
		assert.Zero(t, info.GraphsReused, name)
		t.Setenv("LLAMA_GRAPH_REUSE_DISABLE", "")
	}
}

// A hybrid is cut back where both of its parts can be: without states to go back to nowhere but at its end and as a whole. What is
// refused changes nothing.
func TestHybridCut(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qwen35", "lfm2-window", "falcon-h1", "jamba"} {
		c := hybrid(t, name)
		if name == "jamba" {
			c.Rollback = 4 // of which its architecture knows nothing
		}
		w := open(t, worker.Patched, c)
		tokens := randomTokens(200, 384)
		_, err := w.Feed(0, 0, tokens[:100], worker.None)
		require.NoError(t, err)
		want, err := w.Feed(0, 100, tokens[100:], worker.All)
		require.NoError(t, err)

		require.NoError(t, w.Clear())
		_, err = w.Feed(0, 0, tokens[:100], worker.None)
		require.NoError(t, err)
		before, err := w.Save(0)
		require.NoError(t, err)
		lo, hi, err := w.SeqPos(0)
		require.NoError(t, err)
		assert.Equal(t, []int{99, 99}, []int{lo, hi}, name)
		for _, p := range [][2]int{{99, worker.End}, {98, worker.End}, {50, worker.End}, {1, worker.End}, {0, 50}, {10, 20}} {
			err := w.SeqRemove(0, p[0], p[1])
			var e *worker.Error
			require.ErrorAs(t, err, &e, "%s %v", name, p)
			if p == [2]int{99, worker.End} {
				assert.Contains(t, e.Message, "recurrent", name)
			}
		}
		require.NoError(t, w.SeqRemove(0, 100, worker.End), "nothing to remove")
		refusedWith(t, w.SeqRemove(worker.End, 50, worker.End), "")
		after, err := w.Save(0)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(before, after), name)
		got, err := w.Feed(0, 100, tokens[100:], worker.All)
		require.NoError(t, err)
		sameBits(t, want, got)

		require.NoError(t, w.SeqRemove(worker.End, worker.End, worker.End), "all sequences, whole")
		_, hi, err = w.SeqPos(0)
		require.NoError(t, err)
		assert.Equal(t, -1, hi, name)
	}
}

// With states to go back to, a hybrid is cut back within its last micro-batch, once, as far as the slots allow it too.
func TestHybridRollback(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qwen35", "qwen35moe", "lfm2", "nemotron_h"} {
		t.Run(name, func(t *testing.T) {
			c := hybrid(t, name)
			c.Rollback, c.LESS.Budget = 4, 512
			w := open(t, worker.Patched, c)
			tokens := randomTokens(200, 384)
			feed := func(pos, n int) *worker.Output {
				out, err := w.Decode(0, pos, tokens[pos:pos+n], worker.All)
				require.NoError(t, err)
				return out
			}
			cut := func(p int) error { return w.SeqRemove(0, p, worker.End) }
			// begin decodes n tokens and then a micro-batch of more.
			begin := func(n, more int) {
				require.NoError(t, w.Clear())
				feed(0, n)
				feed(n, more)
			}
			for back := 1; back <= 4; back++ {
				begin(60, 5)
				require.NoError(t, cut(65-back))
				_, hi, err := w.SeqPos(0)
				require.NoError(t, err)
				assert.Equal(t, 64-back, hi)
				refusedWith(t, cut(64-back), "recurrent") // a second time
				state, err := w.Save(0)
				require.NoError(t, err)
				require.NoError(t, w.SeqCopy(0, 1, worker.End, worker.End))
				got := feed(65-back, 30)
				again, err := w.Decode(1, 65-back, tokens[65-back:95-back], worker.All)
				require.NoError(t, err)
				sameBits(t, got, again) // a copy goes back as well
				_, err = w.Load(2, state)
				require.NoError(t, err)
				again, err = w.Decode(2, 65-back, tokens[65-back:95-back], worker.All)
				require.NoError(t, err)
				sameBits(t, got, again) // and so does what was saved
				require.NoError(t, w.Clear())
				feed(0, 60)
				feed(60, 5-back)
				want := feed(65-back, 30)
				assert.Less(t, compare(t, want, got).max, 1e-3, "back by %d", back)
			}

			begin(60, 5)
			refusedWith(t, cut(60), "recurrent") // its states are those of the last micro-batch
			begin(60, 3)
			require.NoError(t, cut(61))
			begin(60, 3)
			refusedWith(t, cut(60), "recurrent")
			begin(60, 1)
			refusedWith(t, cut(60), "recurrent")
			begin(60, 5)
			state, err := w.Save(0)
			require.NoError(t, err)
			_, err = w.Load(0, state)
			require.NoError(t, err)
			refusedWith(t, cut(64), "recurrent") // a saved state is one

			begin(60, 5)
			require.NoError(t, w.SeqCopy(0, 1, worker.End, worker.End))
			refusedWith(t, cut(63), "recurrent") // it would go back for both
			require.NoError(t, w.SeqRemove(1, worker.End, worker.End))
			require.NoError(t, cut(63))

			c.LESS.Budget = 8
			c.LESS.Heavy = worker.Int(6)
			w = open(t, worker.Patched, c)
			begin(60, 5)
			refusedWith(t, cut(61), "folded") // the slots decide, as the recurrent states are there
		})
	}
}

// Whatever ends a decode in its middle leaves recurrent states of which nothing is known: the sequence refuses, and no other.
func TestHybridPoison(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qwen35", "lfm2", "falcon-h1"} {
		t.Run(name, func(t *testing.T) {
			c := hybrid(t, name)
			c.Rollback = 4 // the states to go back to are not those of a decode that failed
			w := open(t, worker.Patched, c)
			tokens := randomTokens(240, 384)
			poisons(t, w, tokens, 1, 0, 20, 70)

			// the first micro-batch of a sequence is taken back whole, and leaves it empty
			require.NoError(t, w.Clear())
			fresh := atOnce.decode(t, w, tokens[:100])
			require.NoError(t, w.Clear())
			require.NoError(t, w.AbortAfter(30))
			_, err := w.Decode(0, 0, tokens[:20], worker.Last)
			require.Error(t, err)
			require.NoError(t, w.AbortAfter(-1))
			sameBits(t, fresh, atOnce.decode(t, w, tokens[:100]))
		})
	}
}

// A copy of a hybrid goes on as it does, and neither disturbs the other; what is kept is all there is.
func TestHybridCopy(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qwen35moe", "lfm2", "granitehybrid", "plamo2"} {
		w := open(t, worker.Patched, hybrid(t, name))
		tokens := randomTokens(300, 384)
		s := story{prompt: tokens[:200], reply: 7, second: tokens[200:]}
		fresh := atOnce.decode(t, w, tokens[:50])
		require.NoError(t, w.Clear())
		next, pos := s.begin(t, w, 0)
		require.NoError(t, w.SeqCopy(0, 2, worker.End, worker.End))
		require.NoError(t, w.SeqCopy(2, 1, worker.End, worker.End))
		want := s.end(t, w, 0, next, pos)
		sameBits(t, want, s.end(t, w, 2, next, pos))
		require.NoError(t, w.SeqKeep(1))
		for seq, last := range []int{-1, pos - 1, -1} {
			_, hi, err := w.SeqPos(seq)
			require.NoError(t, err)
			assert.Equal(t, last, hi, "%s: sequence %d", name, seq)
		}
		got, err := w.Feed(2, 0, tokens[:50], worker.All)
		require.NoError(t, err)
		sameBits(t, fresh, got) // of what was there before nothing is left
		sameBits(t, want, s.end(t, w, 1, next, pos))
		require.NoError(t, w.SeqCopy(0, 1, worker.End, worker.End), "of an empty one")
		_, hi, err := w.SeqPos(1)
		require.NoError(t, err)
		assert.Equal(t, -1, hi)
	}
}

// Positions of several parts (M-RoPE) are served where they are a line, as those of a text are: what is given as embeddings computes
// what the unmodified runtime does. An image's are refused, and nothing has happened.
func TestImagesAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qwen2vl", "qwen3vl", "qwen35"} {
		config := worker.Config{Model: tiny(t, name), Context: 256, Ubatch: 64, TypeK: "f32", TypeV: "f32"}
		u := open(t, worker.Unmodified, config)
		config.LESS = &worker.LESS{Budget: 256, TypeK: "f32", TypeV: "f32"}
		w := open(t, worker.Patched, config)
		info, err := w.Info()
		require.NoError(t, err)
		tokens := randomTokens(40, 384)
		const n = 6
		embeddings := make([]float32, n*info.Embd)
		for i := range embeddings {
			embeddings[i] = float32(tokens[i%40])/192 - 1
		}
		positions := func(section ...func(i int) int) (all []int32) {
			for _, f := range section {
				for i := range n {
					all = append(all, int32(f(i)))
				}
			}
			return all
		}
		line := func(i int) int { return 40 + i }
		still := func(int) int { return 40 }
		zero := func(int) int { return 0 }
		rowOf := func(i int) int { return 40 + i/3 }
		for _, x := range []*worker.Worker{u, w} {
			_, err := x.Decode(0, 0, tokens, worker.None)
			require.NoError(t, err)
		}
		for what, p := range map[string][]int32{
			"an image":                 positions(still, rowOf, func(i int) int { return 40 + i%3 }, zero),
			"frames of one row":        positions(line, line, still, zero),
			"a fourth of its own":      positions(line, line, line, func(i int) int { return i }),
			"all of them at one place": positions(still, still, still, zero),
			"a place left out":         positions(func(i int) int { return 41 + i }, func(i int) int { return 41 + i }, func(i int) int { return 41 + i }, zero),
		} {
			_, err := w.Embed(0, p, embeddings)
			var e *worker.Error
			require.ErrorAs(t, err, &e, "%s: %s", name, what)
			assert.Equal(t, 1, e.Code, "%s: %s", name, what)
			t.Logf("%s, %s: %s", name, what, e.Message)
			if what == "an image" {
				assert.Contains(t, e.Message, "images")
			}
		}
		for _, p := range [][]int32{positions(line, line, line, zero)} {
			want, err := u.Embed(0, p, embeddings)
			require.NoError(t, err)
			got, err := w.Embed(0, p, embeddings)
			require.NoError(t, err, name)
			assert.Less(t, compare(t, want, got).max, 1e-3, name)
		}
		want, err := u.Decode(0, 46, tokens, worker.All)
		require.NoError(t, err)
		got, err := w.Decode(0, 46, tokens, worker.All)
		require.NoError(t, err)
		assert.Less(t, compare(t, want, got).max, 1e-3, name)
	}
}
