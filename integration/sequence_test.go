package integration

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// openSequences opens gopher-5m with room for four sequences and the budget that most of this file evicts under.
func openSequences(t *testing.T) (*worker.Worker, []int32) {
	t.Helper()
	return openSequencesWith(t, peak41())
}

func openSequencesWith(t *testing.T, less *worker.LESS) (*worker.Worker, []int32) {
	t.Helper()
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 4096, Ubatch: 32, Sequences: 4, LESS: less})
	return w, heldOut(t, w, 400)
}

// besideAndOn runs a test with LESS beside the device and on it, there with budgets by head too: none below 41, and some layers with a micro-batch's tokens
// among the recent of every head.
func besideAndOn(t *testing.T, test func(t *testing.T, less *worker.LESS)) {
	t.Helper()
	for name, change := range map[string]func(*worker.LESS){
		"beside the device": func(*worker.LESS) {},
		"on the device":     func(l *worker.LESS) { l.OnDevice = true },
		"on the device, by head": func(l *worker.LESS) {
			l.OnDevice, l.Budget, l.Slots = true, 0, []int{41, 90, 44, 64, 55, 41, 70, 45, 41, 43, 100, 47}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			less := peak41()
			change(less)
			test(t, less)
		})
	}
}

// apart decodes two texts of 128 tokens in one batch after another, as sequences of their own, and wants what each is alone.
func apart(t *testing.T, w *worker.Worker, a []int32, seqA int32, b []int32, seqB int32) {
	t.Helper()
	alone := func(tokens []int32) *worker.Output {
		require.NoError(t, w.Clear())
		return atOnce.decode(t, w, tokens)
	}
	wantA, wantB := alone(a), alone(b)
	require.NoError(t, w.Clear())
	for pos := 0; pos < 128; pos += 32 {
		var batch []worker.Token
		for i := pos; i < pos+32; i++ {
			batch = append(batch, worker.Token{ID: a[i], Pos: int32(i), Seq: seqA, Row: true}, worker.Token{ID: b[i], Pos: int32(i), Seq: seqB, Row: true})
		}
		out, err := w.DecodeEach(batch)
		require.NoError(t, err)
		for i := range 32 {
			sameBits(t, row(wantA, pos+i), row(out, 2*i))
			sameBits(t, row(wantB, pos+i), row(out, 2*i+1))
		}
	}
}

// Sequences in one batch do not see each other: each decodes as if it were alone.
func TestSequencesAreApart(t *testing.T) {
	besideAndOn(t, func(t *testing.T, less *worker.LESS) {
		w, tokens := openSequencesWith(t, less)
		apart(t, w, tokens[:128], 1, tokens[200:328], 3)
		info, err := w.LESS()
		require.NoError(t, err)
		assert.Equal(t, 2, info.Sequences)
	})
}

func row(o *worker.Output, i int) *worker.Output {
	return &worker.Output{Width: o.Width, Values: o.Row(i)}
}

// A copy goes on as the original does, and neither disturbs the other.
func TestCopy(t *testing.T) {
	besideAndOn(t, func(t *testing.T, less *worker.LESS) {
		w, tokens := openSequencesWith(t, less)
		s := story{prompt: tokens[:200], reply: 7, second: tokens[200:]}
		next, pos := s.begin(t, w, 0)
		require.NoError(t, w.SeqCopy(0, 2, worker.End, worker.End))
		want := s.end(t, w, 0, next, pos)
		sameBits(t, want, s.end(t, w, 2, next, pos))
		require.NoError(t, w.SeqKeep(2))
		lo, hi, err := w.SeqPos(0)
		require.NoError(t, err)
		assert.Equal(t, []int{-1, -1}, []int{lo, hi})
		_, hi, err = w.SeqPos(2)
		require.NoError(t, err)
		assert.Equal(t, 200+7+24+len(s.second)-1, hi)
	})
}

// While nothing at or after a position is folded, a sequence can be cut back to it.
func TestCut(t *testing.T) {
	t.Parallel()
	path := tiny(t, "llama")
	config := worker.Config{Model: path, Context: 512, Ubatch: 64, LESS: &worker.LESS{Budget: 512}}
	w := open(t, worker.Patched, config)
	tokens := randomTokens(300, 384)
	_, err := w.Decode(0, 0, tokens[:50], worker.None)
	require.NoError(t, err)
	want, err := w.Decode(0, 50, tokens[200:264], worker.All)
	require.NoError(t, err)
	require.NoError(t, w.Clear())
	_, err = w.Decode(0, 0, tokens[:50], worker.None)
	require.NoError(t, err)
	_, err = w.Decode(0, 50, tokens[50:150], worker.None) // taken back
	require.NoError(t, err)
	require.NoError(t, w.SeqRemove(0, 50, worker.End))
	_, hi, err := w.SeqPos(0)
	require.NoError(t, err)
	assert.Equal(t, 49, hi)
	got, err := w.Decode(0, 50, tokens[200:264], worker.All)
	require.NoError(t, err)
	assert.Less(t, compare(t, want, got).max, 1e-4)
}

// What is folded can't be taken back: cutting there is refused, and the sequence is as it was.
func TestCutIntoTheFolded(t *testing.T) {
	besideAndOn(t, func(t *testing.T, less *worker.LESS) {
		w, tokens := openSequencesWith(t, less)
		s := story{prompt: tokens[:200], reply: 7, second: tokens[200:]}
		next, pos := s.begin(t, w, 0)
		want := s.end(t, w, 0, next, pos)

		require.NoError(t, w.Clear())
		s.begin(t, w, 0)
		lo, hi, err := w.SeqPos(0)
		require.NoError(t, err)
		assert.Equal(t, pos-1, hi)
		assert.Greater(t, lo, 0, "something was folded")
		assert.LessOrEqual(t, lo, hi-30, "the recent ones were not")
		for _, p := range [][2]int{{lo - 1, worker.End}, {1, worker.End}, {3, 9}, {hi - 4, hi - 2}} {
			err := w.SeqRemove(0, p[0], p[1])
			var e *worker.Error
			require.ErrorAs(t, err, &e, "%v", p)
			t.Logf("%v: %s", p, e.Message)
		}
		require.NoError(t, w.SeqRemove(0, hi+1, worker.End), "nothing to remove")
		sameBits(t, want, s.end(t, w, 0, next, pos))

		require.NoError(t, w.Clear())
		s.begin(t, w, 0)
		require.NoError(t, w.SeqRemove(0, lo, worker.End))
		_, hi, err = w.SeqPos(0)
		require.NoError(t, err)
		assert.Equal(t, lo-1, hi)
		_, err = w.Decode(0, lo, tokens[:10], worker.Last)
		assert.NoError(t, err, "it goes on from there")
		require.NoError(t, w.SeqRemove(0, 0, worker.End), "the whole of it always goes")
	})
}

// What llama.cpp gives no answer to poisons the sequence: it refuses to decode, saying why, until it is cleared. Others go on.
func TestPoison(t *testing.T) {
	besideAndOn(t, func(t *testing.T, less *worker.LESS) {
		w, tokens := openSequencesWith(t, less)
		poisons(t, w, tokens[:240], 20, 60)
	})
}

// poisons spoils sequence 0 after 200 of 240 tokens, by each call that cannot be followed and by decodes of so many tokens that are
// aborted after so many nodes of the graph. Each time the sequence and its copy refuse until they are cleared, and sequence 1 goes on.
func poisons(t *testing.T, w *worker.Worker, tokens []int32, decoded int, nodes ...int) {
	t.Helper()
	fresh := atOnce.decode(t, w, tokens[:100])
	_, err := w.Feed(1, 0, tokens[:200], worker.None)
	require.NoError(t, err)
	other, err := w.Feed(1, 200, tokens[200:], worker.All)
	require.NoError(t, err)
	ways := map[string]func() error{
		"shifted":        func() error { return w.SeqAdd(0, 10, worker.End, -10) },
		"divided":        func() error { return w.SeqDivide(0, 0, worker.End, 2) },
		"copied in part": func() error { return w.SeqCopy(1, 0, 0, 50) },
	}
	for _, n := range nodes {
		ways[fmt.Sprint("aborted after ", n)] = func() error {
			require.NoError(t, w.AbortAfter(n))
			_, err := w.Decode(0, 200, tokens[200:200+decoded], worker.Last)
			var e *worker.Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, 2, e.Code)
			return w.AbortAfter(-1)
		}
	}
	for name, spoil := range ways {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, w.Clear())
			for seq := range 2 {
				_, err := w.Feed(seq, 0, tokens[:200], worker.None)
				require.NoError(t, err)
			}
			require.NoError(t, spoil())
			lo, hi, err := w.SeqPos(0)
			require.NoError(t, err)
			assert.Equal(t, []int{-1, -1}, []int{lo, hi})
			for _, seq := range []int{0, worker.End} {
				_, err = w.Save(seq)
				assert.Error(t, err)
			}
			require.NoError(t, w.SeqCopy(0, 2, worker.End, worker.End))
			for _, seq := range []int{0, 0, 2} {
				_, err = w.Decode(seq, 200, tokens[200:201], worker.Last)
				var e *worker.Error
				require.ErrorAs(t, err, &e)
				assert.Equal(t, 1, e.Code)
				assert.Contains(t, e.Message, "until it is cleared")
			}
			got, err := w.Feed(1, 200, tokens[200:], worker.All)
			require.NoError(t, err, "another sequence goes on")
			sameBits(t, other, got)
			require.NoError(t, w.SeqRemove(0, 0, worker.End))
			sameBits(t, fresh, atOnce.decode(t, w, tokens[:100]))
		})
	}
}

// spoil writes gopher-5m with the rows of a tensor in layer 3 so large that what they give is infinite in f16. Its fingerprint is that
// of the model.
func spoil(t *testing.T, tensor string) string {
	t.Helper()
	data, err := os.ReadFile(gopher)
	require.NoError(t, err)
	f, err := gguf.Open(gopher)
	require.NoError(t, err)
	defer f.Close()
	info, ok := f.Tensor("blk.3." + tensor + ".weight")
	require.True(t, ok)
	require.Equal(t, gguf.F16, info.Type)
	raw := data[info.Offset:][:info.Size]
	for i := 1; i < len(raw); i += 2 {
		raw[i] = raw[i]&0x83 | 0x74 // the exponent: 16384 and more
	}
	path := filepath.Join(t.TempDir(), "spoilt.gguf")
	require.NoError(t, os.WriteFile(path, data, 0o644))
	return path
}

// spoilRow makes NaN of a row of a matrix in the model at path, which it returns.
func spoilRow(t *testing.T, path, tensor string, row int) string {
	t.Helper()
	require.NoError(t, tinymodels.Spoil(path, tensor, row))
	return path
}

// A callback of the scheduler that ends a graph in its middle leaves layers that have seen the tokens and others that have not: the
// decode fails and the sequence refuses, of a hybrid too.
func TestGraphEndedByItsCallback(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		model string
		layer int
		on    bool
	}{{gopher, 2, false}, {gopher, 2, true}, {tiny(t, "qwen35"), 3, false}, {tiny(t, "qwen35"), 3, true}, {tiny(t, "gemma2"), 2, true}, {tiny(t, "gemma3n"), 2, true}} {
		less := &worker.LESS{Budget: 40, OnDevice: c.on}
		w := open(t, worker.Patched, worker.Config{Model: c.model, Context: 512, Ubatch: 32, Sequences: 2, Capture: true, LESS: less})
		tokens := randomTokens(120, 384)
		fresh := atOnce.decode(t, w, tokens[:100])
		require.NoError(t, w.Clear())
		for seq := range 2 {
			_, err := w.Feed(seq, 0, tokens[:100], worker.None)
			require.NoError(t, err)
		}
		require.NoError(t, w.EndBehind(c.layer))
		_, err := w.Decode(0, 100, tokens[100:101], worker.Last)
		refusedWith(t, err, "cb_eval")
		require.NoError(t, w.StopCapture())
		_, err = w.Decode(0, 100, tokens[100:101], worker.Last)
		refusedWith(t, err, "until it is cleared")
		_, err = w.Decode(1, 100, tokens[100:101], worker.Last)
		require.NoError(t, err, "another sequence goes on")
		require.NoError(t, w.SeqRemove(0, 0, worker.End))
		sameBits(t, fresh, atOnce.decode(t, w, tokens[:100]))
	}
}

// An exception that leaves llama_decode in the middle of a micro-batch leaves nothing of it that is copied or saved, nor a copy that decodes:
// not what the device held, nor what it never wrote, nor what some layers took in. What else the context has goes on.
func TestExceptionOutOfDecode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		model    string
		layer    int
		tokens   int // before
		onDevice bool
	}{
		{gopher, 2, 100, true}, {gopher, 2, 0, true}, {tiny(t, "qwen35"), 3, 100, true},
		{gopher, 2, 100, false}, {gopher, 2, 0, false}, {tiny(t, "qwen35"), 3, 100, false},
	} {
		w := open(t, worker.Patched, worker.Config{Model: c.model, Context: 512, Ubatch: 32, Sequences: 3, Capture: true, LESS: &worker.LESS{Budget: 40, OnDevice: c.onDevice}})
		tokens := randomTokens(120, 384)
		fresh := atOnce.decode(t, w, tokens[:100])
		require.NoError(t, w.Clear())
		for seq, n := range []int{c.tokens, 100} {
			if n > 0 {
				_, err := w.Feed(seq, 0, tokens[:n], worker.None)
				require.NoError(t, err)
			}
		}
		require.NoError(t, w.ThrowBehind(c.layer))
		_, err := w.Decode(0, c.tokens, tokens[c.tokens:c.tokens+1], worker.Last)
		refusedWith(t, err, "asked to throw")
		require.NoError(t, w.StopCapture())

		_, err = w.Save(0)
		refusedWith(t, err, "failed half-way")
		_, err = w.Save(worker.End)
		assert.Error(t, err)
		if c.onDevice {
			_, _, err = w.Slots(0, c.layer, 0)
			assert.Error(t, err)
		}
		if c.tokens > 0 { // or it is empty, and so is its copy
			state, err := w.Save(1)
			require.NoError(t, err)
			_, err = w.Load(2, state)
			require.NoError(t, err, "another one's state, which changes nothing of this")
			require.NoError(t, w.SeqCopy(0, 2, worker.End, worker.End))
			_, err = w.Decode(2, c.tokens, tokens[c.tokens:c.tokens+1], worker.Last)
			refusedWith(t, err, "until it is cleared")
		}
		_, err = w.Decode(0, c.tokens, tokens[c.tokens:c.tokens+1], worker.Last)
		refusedWith(t, err, "until it is cleared")
		_, err = w.Decode(1, 100, tokens[100:101], worker.Last)
		require.NoError(t, err, "another sequence goes on")
		require.NoError(t, w.SeqRemove(0, 0, worker.End))
		sameBits(t, fresh, atOnce.decode(t, w, tokens[:100]))
	}
}

// A key or value that is not finite poisons its sequence where it is folded, whatever the slots' type: infinite in f16; NaN in one
// element of a head of 64, which quantised slots rotate, and of one of 32, which they do not. It raises nothing while it is a slot, or
// where nothing is folded.
func TestNotFinite(t *testing.T) {
	t.Parallel()
	falcon, err := tinymodels.Find("falcon")
	require.NoError(t, err)
	copied := func(t *testing.T) string {
		data, err := os.ReadFile(gopher)
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "gopher.gguf")
		require.NoError(t, os.WriteFile(path, data, 0o644))
		return path
	}
	for _, m := range []struct {
		name  string
		path  func(t *testing.T) string
		types []string
	}{
		{"too large a key for f16", func(t *testing.T) string { return spoil(t, "attn_k") }, []string{"f16"}},
		{"too large a value for f16", func(t *testing.T) string { return spoil(t, "attn_v") }, []string{"f16"}},
		{"a key of 64", func(t *testing.T) string { return spoilRow(t, copied(t), "blk.3.attn_k.weight", 0) }, []string{"q8_0", "q4_0"}},
		{"a value of 64", func(t *testing.T) string { return spoilRow(t, copied(t), "blk.3.attn_v.weight", 0) }, []string{"q8_0", "q4_0"}},
		{"a key of 32", func(t *testing.T) string {
			return spoilRow(t, write(t, falcon, gguf.F32), "blk.3.attn_qkv.weight", 4*32)
		}, []string{"f32", "q8_0", "q4_0"}},
		{"a value of 32", func(t *testing.T) string {
			return spoilRow(t, write(t, falcon, gguf.F32), "blk.3.attn_qkv.weight", 5*32)
		}, []string{"f16", "q8_0", "q4_0"}},
	} {
		for _, typ := range m.types {
			t.Run(m.name+" "+typ, func(t *testing.T) {
				t.Parallel()
				path := m.path(t)
				base, err := weights.ReadModel(path)
				require.NoError(t, err)
				adapter := filepath.Join(t.TempDir(), "adapter.gguf")
				require.NoError(t, weights.Random(base, 4, 8, weights.Trained{Policy: "h2o", Heavy: 20, Recent: 21, Ubatch: 16, Context: 256}, 1).Write(adapter))
				for _, less := range []worker.LESS{{}, {Reference: true}, {OnDevice: true}} {
					if less.OnDevice && strings.HasPrefix(typ, "q") {
						continue // refused there
					}
					less.Budget, less.Adapter, less.TypeK, less.TypeV = 41, adapter, typ, typ
					notFinite(t, worker.Config{Model: path, Context: 256, Ubatch: 16, LESS: &less})
				}
			})
		}
	}
}

func notFinite(t *testing.T, c worker.Config) {
	t.Helper()
	w := open(t, worker.Patched, c)
	tokens := randomTokens(120, 384)
	_, err := w.Feed(0, 0, tokens[:41], worker.None)
	require.NoError(t, err, "all of them are slots")
	for i := range 2 {
		_, err = w.Decode(0, 41, tokens[41:42], worker.Last)
		var e *worker.Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, []int{-3, 1}[i], e.Code)
		assert.Contains(t, e.Message, "layer 3: a key or value that is not finite")
		assert.Contains(t, e.Message, "until it is cleared")
	}
	_, err = w.Save(0)
	assert.Error(t, err)
	require.NoError(t, w.SeqRemove(0, 0, worker.End))
	_, err = w.Feed(0, 0, tokens[:41], worker.None)
	assert.NoError(t, err)

	// in the very first micro-batches
	require.NoError(t, w.Clear())
	_, err = w.Decode(0, 0, tokens[:120], worker.Last)
	var e *worker.Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, -3, e.Code)

	c.LESS.Adapter = ""
	w = open(t, worker.Patched, c)
	_, err = w.Feed(0, 0, tokens, worker.None)
	assert.NoError(t, err, "nothing is folded")
}

// Attention can be switched to non-causal after the context was made, and LESS cannot follow: not beside the device, not on it, nor with recurrent
// layers beside.
func TestCausalAttentionSwitchedOff(t *testing.T) {
	t.Parallel()
	for _, model := range []string{gopher, tiny(t, "qwen35")} {
		for _, on := range []bool{false, true} {
			w := open(t, worker.Patched, worker.Config{Model: model, Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: 40, OnDevice: on}})
			tokens := randomTokens(24, 384)
			_, err := w.Decode(0, 0, tokens[:20], worker.Last)
			require.NoError(t, err)
			require.NoError(t, w.Causal(false))
			_, err = w.Decode(0, 20, tokens[20:24], worker.Last)
			var e *worker.Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, 1, e.Code)
			assert.Contains(t, e.Message, "causal")
			require.NoError(t, w.Causal(true))
			_, err = w.Decode(0, 20, tokens[20:24], worker.Last)
			assert.NoError(t, err, "nothing has changed")
		}
	}
}

// The plain loops take what they need when the context is made, and no more than a number for each pair that a KV head can see.
func TestReferenceMemory(t *testing.T) {
	t.Parallel()
	const budget, ubatch = 131072, 64
	scratch := map[bool]int64{}
	for _, reference := range []bool{false, true} {
		w := open(t, worker.Patched, worker.Config{Model: gopher, Context: budget, Ubatch: ubatch, LESS: &worker.LESS{Budget: budget, Reference: reference}})
		before, err := w.Memory()
		require.NoError(t, err)
		info, err := w.LESS()
		require.NoError(t, err)
		scratch[reference] = info.ScratchBytes
		_, err = w.Decode(0, 0, heldOut(t, w, ubatch), worker.Last)
		require.NoError(t, err)
		after, err := w.Memory()
		require.NoError(t, err)
		assert.Less(t, after.Peak-before.Peak, int64(64<<20), "reference %v: softmax weights of all queries and pairs would be 134 MB", reference)
	}
	m, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	assert.EqualValues(t, m.HeadsKV*(budget+ubatch)*8, scratch[true]-scratch[false])
}

// A decode that is aborted before any layer has taken its tokens in leaves the sequence as it was.
func TestAbortBeforeAnything(t *testing.T) {
	t.Parallel()
	w, tokens := openSequences(t)
	s := story{prompt: tokens[:200], reply: 7, second: tokens[200:]}
	next, pos := s.begin(t, w, 0)
	want := s.end(t, w, 0, next, pos)
	require.NoError(t, w.Clear())
	s.begin(t, w, 0)
	require.NoError(t, w.AbortAfter(0))
	_, err := w.Decode(0, pos, tokens[:5], worker.Last)
	require.Error(t, err)
	sameBits(t, want, s.end(t, w, 0, next, pos))
}

// Batches that LESS can't serve are refused whole.
func TestBatchRefused(t *testing.T) {
	besideAndOn(t, func(t *testing.T, less *worker.LESS) {
		w, tokens := openSequencesWith(t, less)
		s := story{prompt: tokens[:200], second: tokens[200:]}
		next, pos := s.begin(t, w, 0)
		want := s.end(t, w, 0, next, pos)
		require.NoError(t, w.Clear())
		s.begin(t, w, 0)
		for name, batch := range map[string][]worker.Token{
			"a token of two sequences": {{ID: 5, Pos: 0, Seq: 2, Row: true, Also: []int32{3}}},
			"a position left out":      {{ID: 5, Pos: int32(pos) + 1, Seq: 0, Row: true}},
			"a position twice":         {{ID: 5, Pos: int32(pos) - 1, Seq: 0, Row: true}},
			"out of order":             {{ID: 5, Pos: int32(pos) + 1, Seq: 0}, {ID: 5, Pos: int32(pos), Seq: 0, Row: true}},
		} {
			_, err := w.DecodeEach(batch)
			var e *worker.Error
			if assert.ErrorAs(t, err, &e, name) {
				t.Logf("%s: %s", name, e.Message)
			}
		}
		sameBits(t, want, s.end(t, w, 0, next, pos))
	})
}

// A poisoned sequence without a cache is cleared as a whole or not at all: where it would have ended, nobody knows. An empty one has nothing that
// is shifted.
func TestPoisonOfAnEmptySequence(t *testing.T) {
	t.Parallel()
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 512, Ubatch: 32, Sequences: 2, LESS: &worker.LESS{Budget: 40}})
	tokens := randomTokens(60, 384)
	_, err := w.Feed(1, 0, tokens[:59], worker.None)
	require.NoError(t, err)
	require.NoError(t, w.SeqAdd(0, worker.End, worker.End, 5))
	require.NoError(t, w.SeqDivide(0, worker.End, worker.End, 2))
	_, err = w.Decode(0, 0, tokens[:1], worker.Last)
	require.NoError(t, err, "nothing was shifted")
	require.NoError(t, w.SeqRemove(0, 0, worker.End))

	require.NoError(t, w.SeqCopy(1, 0, 0, 50))
	for _, p1 := range []int{0, 5, 50} {
		w.SeqRemove(0, 0, p1)
		_, err = w.Decode(0, 50, tokens[50:51], worker.Last)
		refusedWith(t, err, "until it is cleared")
	}
	require.NoError(t, w.SeqRemove(0, 0, worker.End))
	_, err = w.Decode(0, 0, tokens[:1], worker.Last)
	require.NoError(t, err)
}

// The positions of a sequence end before the largest number, which the next position would be beyond: what lies there is refused. A sliding
// window that reaches beyond lets nothing be cut.
func TestLastPositions(t *testing.T) {
	const end = math.MaxInt32 // the first that is none
	w := open(t, worker.Patched, worker.Config{Model: tiny(t, "gemma2"), Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: 64}})
	token := func(pos int32) []worker.Token { return []worker.Token{{ID: 5, Pos: pos, Row: true}} }
	refused := func() {
		_, err := w.DecodeEach(token(end))
		var e *worker.Error
		require.ErrorAs(t, err, &e)
		assert.Contains(t, e.Message, "position 2147483647 of sequence 0: they go from 0 to 2147483646")
	}
	refused() // as the first of a sequence

	tokens := make([]int32, 100)
	for i := range tokens {
		tokens[i] = int32(5 + i)
	}
	_, err := w.Feed(0, end-len(tokens), tokens, worker.Last)
	require.NoError(t, err)
	refused() // behind the last
	lo, hi, err := w.SeqPos(0)
	require.NoError(t, err)
	assert.Equal(t, []int{end - 1, end - 1}, []int{lo, hi})
	require.ErrorContains(t, w.SeqRemove(0, hi, worker.End), "what lies before 2147483646 has been folded")
	_, err = w.DecodeEach(token(0))
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "until it is cleared")
	require.NoError(t, w.Clear())
	_, err = w.DecodeEach(token(0))
	require.NoError(t, err)
}
