package integration

import (
	"bytes"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Sequences that have a token each in a batch are decoded in one graph ("Several sequences in one graph" in algorithm.md).

// rowByRow writes gopher-5m with matrices of types whose products ggml computes row by row: what a token becomes does not depend on how many
// others the graph has, to the bit.
func rowByRow(t *testing.T) string {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("where ggml has products of two rows at a time, they round differently")
	}
	path := filepath.Join(t.TempDir(), "gopher-5m-Q4_1.gguf")
	require.NoError(t, start(t, worker.Patched).Quantize(gopher, path, "Q4_1", 1))
	return path
}

// A talk is a prompt of each sequence, which it decodes alone, and a reply, which it decodes token by token.
type talk struct {
	prompts, replies [][]int32
}

// newTalk cuts tokens into a talk with prompts of these lengths.
func newTalk(tokens []int32, reply int, prompts ...int) (k talk) {
	for i, n := range prompts {
		from := tokens[17*i:]
		k.prompts, k.replies = append(k.prompts, from[:n]), append(k.replies, from[n:][:reply])
	}
	return k
}

// decode decodes a talk from an empty cache on, the replies step by step as step does, which returns a row for each sequence. It returns
// the logits of each sequence's reply.
func (k talk) decode(t *testing.T, w *worker.Worker, step func(batch []worker.Token) [][]float32) []*worker.Output {
	t.Helper()
	require.NoError(t, w.Clear())
	all := make([]*worker.Output, len(k.prompts))
	for seq, tokens := range k.prompts {
		all[seq] = new(worker.Output)
		if len(tokens) > 0 {
			_, err := w.Feed(seq, 0, tokens, worker.None)
			require.NoError(t, err)
		}
	}
	for i := range k.replies[0] {
		var batch []worker.Token
		for j := range k.replies { // in another order in each step
			seq := (i + j) % len(k.replies)
			batch = append(batch, worker.Token{ID: k.replies[seq][i], Pos: int32(len(k.prompts[seq]) + i), Seq: int32(seq), Row: true})
		}
		for j, row := range step(batch) {
			out := all[batch[j].Seq]
			out.Width = len(row)
			out.Values = append(out.Values, row...)
		}
	}
	return all
}

func (k talk) alone(t *testing.T, w *worker.Worker) []*worker.Output {
	t.Helper()
	return k.decode(t, w, func(batch []worker.Token) (rows [][]float32) {
		for _, token := range batch {
			out, err := w.Decode(int(token.Seq), int(token.Pos), []int32{token.ID}, worker.Last)
			require.NoError(t, err)
			rows = append(rows, out.Row(0))
		}
		return rows
	})
}

func (k talk) together(t *testing.T, w *worker.Worker) []*worker.Output {
	t.Helper()
	return k.decode(t, w, func(batch []worker.Token) (rows [][]float32) {
		out, err := w.DecodeEach(batch)
		require.NoError(t, err)
		require.Equal(t, len(batch), out.Len())
		for j := range batch {
			rows = append(rows, out.Row(j))
		}
		return rows
	})
}

// save returns the states of the first n sequences.
func save(t *testing.T, w *worker.Worker, n int) (states [][]byte) {
	t.Helper()
	for seq := range n {
		state, err := w.Save(seq)
		require.NoError(t, err)
		states = append(states, state)
	}
	return states
}

// Together sequences compute what each computes alone, bit for bit: long ones that evict, and one that begins. So are their slots, scores and
// states, whatever the number of threads.
func TestSequencesTogether(t *testing.T) {
	t.Parallel()
	model := rowByRow(t)
	for name, less := range map[string]worker.LESS{
		"peak":                              {Policy: "peak", Budget: 41, Adapter: adapterPath("peak-41")},
		"h2o, q8_0":                         {Policy: "h2o", Budget: 102, Adapter: adapterPath("h2o-102"), TypeK: "q8_0", TypeV: "q8_0"},
		"lambda, f32":                       {Policy: "lambda", Budget: 30, TypeK: "f32", TypeV: "f32"},
		"tova, q4_0":                        {Policy: "tova", Budget: 30, TypeK: "q4_0", TypeV: "q4_0"},
		"budgets by head":                   {Policy: "peak", Slots: byHead, Adapter: adapterPath("peak-41")},
		"nothing evicted":                   {Policy: "h2o", Budget: 1000},
		"plain loops":                       {Policy: "peak", Budget: 41, Adapter: adapterPath("peak-41"), Reference: true},
		"profiled":                          {Policy: "peak", Budget: 41, Profile: true},
		"one after the other on the device": {Policy: "peak", Budget: 41, OnDevice: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := open(t, worker.Patched, worker.Config{Model: model, Context: 4096, Ubatch: 32, Sequences: 4, LESS: &less})
			k := newTalk(heldOut(t, w, 400), 24, 150, 45, 12, 0)
			want := k.alone(t, w)
			states := save(t, w, 4)
			graphs := func() int {
				info, err := w.Info()
				require.NoError(t, err)
				return info.GraphsReused
			}
			most := 1
			if name == "peak" {
				most = 2
			}
			for threads := 1; threads <= most; threads++ {
				require.NoError(t, w.Threads(threads))
				reused := graphs()
				got := k.together(t, w)
				reused = graphs() - reused
				if !less.OnDevice {
					assert.Greater(t, reused, 20, "steps that took the graph of the one before")
				}
				for seq, state := range save(t, w, 4) {
					sameBits(t, want[seq], got[seq])
					require.True(t, bytes.Equal(states[seq], state), "sequence %d, %d threads: another state", seq, threads)
				}
			}
		})
	}
}

// The attention of sequences together is that of each alone, bit for bit, and the cache of each is its own: every kind of layer, to rounding
// where products with weights round otherwise.
func TestSequencesTogetherOfEveryModel(t *testing.T) {
	t.Parallel()
	for _, m := range tinymodels.Supported() {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			less := &worker.LESS{Budget: 40, TypeK: "f32", TypeV: "f32"}
			w := open(t, worker.Patched, worker.Config{Model: write(t, m, gguf.F32), Context: 4096, Ubatch: 32, Sequences: 3, Capture: true, LESS: less})
			k := newTalk(randomTokens(400, 384), 20, 90, 33, 0)
			want := k.alone(t, w)
			require.NoError(t, w.Capture())
			got := k.together(t, w)
			captured, err := w.Captured()
			require.NoError(t, err)
			together := 0
			for _, a := range captured {
				if a.Tokens == 3 {
					together++
				}
			}
			layers := map[int]bool{}
			for _, a := range captured {
				layers[a.Layer] = true
			}
			graphs := 20 * len(layers)
			if m.Attends != nil { // a hybrid
				graphs = 0
			}
			assert.Equal(t, graphs, together, "graphs of three sequences")
			for seq := range want {
				d := compare(t, want[seq], got[seq])
				t.Logf("sequence %d: largest difference %.2g, mean KL %.2g", seq, d.max, d.kl)
				if !m.Experts { // which another rounding may choose otherwise
					assert.Less(t, d.max, 2e-3)
				}
				assert.Less(t, d.kl, 1e-3)
			}
		})
	}
}

// Which tokens of a batch have a graph together: neighbours that are the last of their sequences, n_ubatch of them at most. Their rows are those
// of each sequence alone.
func TestGraphsOfABatch(t *testing.T) {
	t.Parallel()
	model := rowByRow(t)
	for _, c := range []struct {
		name   string
		ubatch int
		seqs   []int // of each token
		graphs []int // tokens
	}{
		{"one each", 32, []int{0, 1, 2, 3}, []int{4}},
		{"one each, in any order", 32, []int{3, 0, 2}, []int{3}},
		{"more than n_ubatch", 3, []int{0, 1, 2, 3}, []int{3, 1}},
		{"micro-batches of one token", 1, []int{0, 1}, []int{1, 1}},
		{"two, a prompt, one", 32, slices.Concat([]int{0, 1}, slices.Repeat([]int{2}, 40), []int{3}), []int{2, 32, 8, 1}},
		{"what is left of a prompt, and others", 32, slices.Concat(slices.Repeat([]int{2}, 33), []int{3, 0}), []int{32, 3}},
		{"two each in turns", 32, []int{0, 1, 0, 1}, []int{2, 2}},
		{"one between two of another", 32, []int{0, 1, 2, 1, 3}, []int{1, 2, 1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := open(t, worker.Patched, worker.Config{Model: model, Context: 4096, Ubatch: c.ubatch, Sequences: 4, Capture: true, LESS: peak41()})
			tokens := heldOut(t, w, 200)
			before := func() { // sequences that differ, and evict
				require.NoError(t, w.Clear())
				for seq := range 4 {
					_, err := w.Feed(seq, 0, tokens[seq:50+seq], worker.None)
					require.NoError(t, err)
				}
			}
			mine := make([][]int32, 4)
			var batch []worker.Token
			for i, seq := range c.seqs {
				batch = append(batch, worker.Token{ID: tokens[100+i], Pos: int32(50 + len(mine[seq])), Seq: int32(seq), Row: true})
				mine[seq] = append(mine[seq], tokens[100+i])
			}
			before()
			want := make([]*worker.Output, 4)
			for seq := range mine {
				if len(mine[seq]) > 0 {
					var err error
					want[seq], err = w.Decode(seq, 50, mine[seq], worker.All)
					require.NoError(t, err)
				}
			}
			before()
			require.NoError(t, w.Capture(0))
			got, err := w.DecodeEach(batch)
			require.NoError(t, err)
			captured, err := w.Captured()
			require.NoError(t, err)
			var graphs []int
			for _, a := range captured {
				graphs = append(graphs, a.Tokens)
			}
			assert.Equal(t, c.graphs, graphs)
			for i, token := range batch {
				sameBits(t, row(want[token.Seq], int(token.Pos)-50), row(got, i))
			}
		})
	}
}

// Where a fold of one sequence is not finite, the decode fails and that sequence is poisoned. From the others of the graph llama_decode takes
// their token back.
func TestNotFiniteTogether(t *testing.T) {
	t.Parallel()
	model := spoil(t, "attn_v")
	for _, reference := range []bool{false, true} {
		for spoilt := range 3 {
			less := &worker.LESS{Budget: 41, Adapter: adapterPath("h2o-41"), Reference: reference}
			w := open(t, worker.Patched, worker.Config{Model: model, Context: 1024, Ubatch: 16, Sequences: 3, LESS: less})
			tokens := heldOut(t, w, 120)
			var batch, others []worker.Token
			for seq := range 3 {
				n := 20 // far from any fold
				if seq == spoilt {
					n = 41
				}
				_, err := w.Feed(seq, 0, tokens[:n], worker.None)
				require.NoError(t, err, "all of them are slots")
				batch = append(batch, worker.Token{ID: tokens[n], Pos: int32(n), Seq: int32(seq), Row: true})
				if seq != spoilt {
					others = append(others, batch[seq])
				}
			}
			_, err := w.DecodeEach(batch)
			var e *worker.Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, -3, e.Code)
			assert.Contains(t, e.Message, "layer 3: a key or value that is not finite")
			for seq := range 3 {
				_, hi, err := w.SeqPos(seq)
				require.NoError(t, err)
				if seq == spoilt {
					assert.Equal(t, -1, hi)
					_, err = w.Save(seq)
					refusedWith(t, err, "until it is cleared")
				} else {
					assert.Equal(t, 19, hi)
				}
			}
			_, err = w.DecodeEach(batch)
			require.ErrorAs(t, err, &e)
			assert.Equal(t, 1, e.Code, "one that is poisoned is in it")
			_, err = w.DecodeEach(others)
			require.NoError(t, err, "the others go on")
			require.NoError(t, w.SeqRemove(spoilt, 0, worker.End))
			_, err = w.Decode(spoilt, 0, tokens[:41], worker.Last)
			require.NoError(t, err)
		}
	}
}

// Of sequences in a graph that is aborted, or ended by a callback, each is poisoned or what it was. A sequence that is not in it goes on.
func TestAbortedTogether(t *testing.T) {
	t.Parallel()
	for _, m := range []struct {
		model string
		nodes int // of a graph, to some layer in its middle
	}{{gopher, 70}, {tiny(t, "gemma3n"), 200}} {
		w := open(t, worker.Patched, worker.Config{Model: m.model, Context: 1024, Ubatch: 32, Sequences: 3, Capture: true, LESS: &worker.LESS{Budget: 40}})
		tokens := randomTokens(80, 384)
		for _, c := range []struct {
			unchanged bool
			stop      func() error
		}{
			{true, func() error { return w.AbortAfter(0) }},
			{false, func() error { return w.AbortAfter(m.nodes) }},
			{false, func() error { return w.EndBehind(3) }},
		} {
			require.NoError(t, w.Clear())
			for seq := range 3 {
				_, err := w.Feed(seq, 0, tokens[seq:][:60], worker.None)
				require.NoError(t, err)
			}
			states := save(t, w, 2)
			require.NoError(t, c.stop())
			_, err := w.DecodeEach([]worker.Token{{ID: 5, Pos: 60, Seq: 0, Row: true}, {ID: 6, Pos: 60, Seq: 1, Row: true}})
			require.Error(t, err)
			require.NoError(t, w.AbortAfter(-1))
			require.NoError(t, w.StopCapture())
			for seq := range 2 {
				state, err := w.Save(seq)
				if c.unchanged {
					require.NoError(t, err)
					require.True(t, bytes.Equal(states[seq], state), "sequence %d has changed", seq)
				} else {
					refusedWith(t, err, "until it is cleared")
				}
			}
			_, err = w.Decode(2, 60, tokens[:1], worker.Last)
			require.NoError(t, err)
		}
	}
}

// Sequences of a hybrid have a graph each. In one graph llama.cpp would move the recurrent state of a sequence that lies between theirs, and
// lose it where the graph is aborted.
func TestHybridsDecodeOneByOne(t *testing.T) {
	t.Parallel()
	w := open(t, worker.Patched, worker.Config{Model: tiny(t, "qwen35"), Context: 1024, Ubatch: 32, Sequences: 3, Capture: true, LESS: &worker.LESS{Budget: 40}})
	tokens := randomTokens(80, 384)
	for seq := range 3 {
		_, err := w.Feed(seq, 0, tokens[seq:][:60], worker.None)
		require.NoError(t, err)
	}
	batch := []worker.Token{{ID: 5, Pos: 60, Seq: 0, Row: true}, {ID: 6, Pos: 60, Seq: 2, Row: true}}
	require.NoError(t, w.Capture())
	_, err := w.DecodeEach(batch)
	require.NoError(t, err)
	captured, err := w.Captured()
	require.NoError(t, err)
	require.NotEmpty(t, captured)
	for _, a := range captured {
		require.Equal(t, 1, a.Tokens)
	}

	state, err := w.Save(1)
	require.NoError(t, err)
	for i := range batch {
		batch[i].Pos++
	}
	require.NoError(t, w.AbortAfter(0))
	_, err = w.DecodeEach(batch)
	require.Error(t, err)
	require.NoError(t, w.AbortAfter(-1))
	now, err := w.Save(1)
	require.NoError(t, err)
	require.True(t, bytes.Equal(state, now), "a sequence that is not in the batch has changed")
}

// What sequences together take for computing is a micro-batch of one token's for each, taken once, and reported.
func TestScratchOfSequencesTogether(t *testing.T) {
	t.Parallel()
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 4096, Ubatch: 4, Sequences: 4, LESS: &worker.LESS{Budget: 1000}})
	scratch := func() int64 {
		info, err := w.LESS()
		require.NoError(t, err)
		return info.ScratchBytes
	}
	one := scratch() // for n_ubatch tokens
	for i, n := range []int32{1, 4, 3, 4} {
		require.NoError(t, w.Clear())
		var batch []worker.Token
		for seq := range n {
			batch = append(batch, worker.Token{ID: 5, Seq: seq, Row: true})
		}
		_, err := w.DecodeEach(batch)
		require.NoError(t, err)
		switch i {
		case 0:
			assert.Equal(t, one, scratch())
		case 1:
			assert.Greater(t, scratch(), one)
			assert.LessOrEqual(t, scratch(), 4*one+4*64)
			one = scratch()
		default:
			assert.Equal(t, one, scratch())
		}
	}
}
