package integration

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/worker"
)

// formula is "Memory, per sequence" of algorithm.md for gopher-5m with f16 slots: bytes of slots and state.
func formula(budget, rank int) (slots, state int64) {
	const layers, headsKV, dim = 6, 2, 64
	slot := dim*2 + dim*2 + 4 + 4
	return int64(layers * headsKV * budget * slot), int64(layers * headsKV * rank * (dim + 1) * 4)
}

// usage is one line of the table: a process at one moment.
type usage struct {
	runtime         string
	context, tokens int
	cache, formula  int64 // bytes; formula 0 where there is none
	memory          worker.Memory
}

// After 2,000 and after 20,000 tokens through one sequence the cache holds the same bytes, those of the formula, and the
// process has not grown; nor does it cost anything that the context could be longer.
func TestMemoryStandsStill(t *testing.T) {
	t.Parallel()
	const few, many, context, budget, rank = 2000, 20000, 20480, 41, 8
	less := &worker.LESS{Policy: "h2o", Budget: budget, Adapter: "testdata/gopher-5m.h2o-41.lesskv.gguf"}
	config := worker.Config{Model: gopher, Ubatch: 32, Batch: 2000, LESS: less}
	slots, state := formula(budget, rank)

	measure := func(w *worker.Worker, context, tokens int) usage {
		info, err := w.LESS()
		require.NoError(t, err)
		layers, err := w.Layers(0)
		require.NoError(t, err)
		for _, l := range layers {
			require.EqualValues(t, tokens, l.Seen)
			require.EqualValues(t, budget, l.Kept)
			require.EqualValues(t, tokens-budget, l.Folded)
		}
		m, err := w.Memory()
		require.NoError(t, err)
		return usage{"LESS", context, tokens, info.SlotBytes + info.StateBytes, slots + state, m}
	}
	// In a process of its own: a tokenizer at work takes more than the whole cache.
	tokens := heldOut(t, open(t, worker.Unmodified, worker.Config{Model: gopher}), many)
	run := func(context int) (*worker.Worker, usage) {
		c := config
		c.Context = context
		w := open(t, worker.Patched, c)
		_, err := w.Feed(0, 0, tokens[:few], worker.None)
		require.NoError(t, err)
		return w, measure(w, context, few)
	}
	_, short := run(2048)
	_, wide := run(131072)
	w, early := run(context)
	_, err := w.Feed(0, few, tokens[few:many], worker.None)
	require.NoError(t, err)
	late := measure(w, context, many)

	table := []usage{early, late, short, wide}
	for _, context := range []int{2048, context, 131072} {
		table = append(table, unmodifiedUsage(t, config, context, tokens[:few]))
	}
	t.Log(print(table))

	// Not the peak, in which pages of files count: the machine takes them back when it likes. What is left to chance is pages of 2 MiB
	// that the kernel gives where it has some; the unmodified cache of 20,000 tokens is 59 MiB.
	const slack = 8 << 20
	for _, u := range []usage{early, late, short, wide} {
		assert.Equal(t, early.cache, u.cache)
		assert.LessOrEqual(t, float64(u.cache), 1.05*float64(u.formula))
	}
	assert.Less(t, late.memory.Anon-early.memory.Anon, int64(slack), "20,000 tokens against 2,000")
	assert.Less(t, wide.memory.Anon-short.memory.Anon, int64(slack), "n_ctx 131,072 against 2,048")
	full := table[len(table)-1]
	assert.Greater(t, full.memory.Anon-wide.memory.Anon, full.cache/2, "the unmodified runtime pays for its context")
}

// unmodifiedUsage measures the unmodified runtime. It allocates for the whole context at once, so that it need not be filled.
func unmodifiedUsage(t *testing.T, c worker.Config, context int, tokens []int32) usage {
	t.Helper()
	c.LESS, c.Context = nil, context
	w := open(t, worker.Unmodified, c)
	_, err := w.Feed(0, 0, tokens, worker.None)
	require.NoError(t, err)
	m, err := w.Memory()
	require.NoError(t, err)
	log, err := w.Log()
	require.NoError(t, err)
	size := regexp.MustCompile(`KV buffer size = +([0-9.]+) MiB`).FindStringSubmatch(log)
	require.NotNil(t, size, "no size of the KV cache in the log:\n%s", log)
	mib, err := strconv.ParseFloat(size[1], 64)
	require.NoError(t, err)
	return usage{"unmodified", context, len(tokens), int64(mib * (1 << 20)), 0, m}
}

func print(table []usage) string {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "\nruntime\tn_ctx\ttokens\tcache bytes\tby formula\tanonymous KiB\tresident KiB\tpeak KiB\t")
	for _, u := range table {
		formula := "-"
		if u.formula > 0 {
			formula = strconv.FormatInt(u.formula, 10)
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\t%d\t%d\t%d\t\n", u.runtime, u.context, u.tokens, u.cache, formula, u.memory.Anon>>10, u.memory.Resident>>10, u.memory.Peak>>10)
	}
	tw.Flush()
	return b.String()
}

// Heads with budgets of their own hold what they may and no more, and the bytes are those of the sum; the plain loops' too, which have
// memory of their own for what pairs are worth.
func TestBudgetsByHead(t *testing.T) {
	t.Parallel()
	for _, reference := range []bool{false, true} {
		t.Run(fmt.Sprintf("reference %v", reference), func(t *testing.T) {
			t.Parallel()
			testBudgetsByHead(t, &worker.LESS{Policy: "peak", Slots: byHead, Reference: reference})
		})
	}
}

func testBudgetsByHead(t *testing.T, less *worker.LESS) {
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 2048, Ubatch: 32, LESS: less})
	heads, err := w.Heads()
	require.NoError(t, err)
	require.Len(t, heads, len(byHead))
	for i, h := range heads {
		assert.Equal(t, worker.HeadInfo{Layer: i / 2, Head: i % 2, Budget: byHead[i], Heavy: max(1, byHead[i]/4)}, h)
	}
	_, err = w.Feed(0, 0, heldOut(t, w, 700), worker.None)
	require.NoError(t, err)
	info, err := w.LESS()
	require.NoError(t, err)
	one, _ := formula(41, 0)
	assert.Equal(t, one, info.SlotBytes)
	assert.Equal(t, 41, info.Budget)
	for _, h := range heads {
		pos, _, err := w.Slots(0, h.Layer, h.Head)
		require.NoError(t, err)
		assert.Len(t, pos, h.Budget)
	}
	layers, err := w.Layers(0)
	require.NoError(t, err)
	for i, l := range layers {
		assert.EqualValues(t, 700, l.Seen)
		assert.EqualValues(t, max(byHead[2*i], byHead[2*i+1]), l.Kept)
		assert.EqualValues(t, 700-min(byHead[2*i], byHead[2*i+1]), l.Folded)
	}
}

// The bytes that are reported are the bytes that are there: a larger budget costs its slots and its scratch, and no copy of
// either.
func TestMemoryIsWhatIsReported(t *testing.T) {
	t.Parallel()
	const tokens = 2048
	var anon, reported, slots, scratch [2]int64
	for i, budget := range []int{64, tokens} {
		w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 8192, Batch: 512, Ubatch: 32, Sequences: 2, LESS: &worker.LESS{Budget: budget}})
		text := heldOut(t, w, tokens)
		for seq := range 2 {
			_, err := w.Feed(seq, 0, text, worker.None)
			require.NoError(t, err)
		}
		info, err := w.LESS()
		require.NoError(t, err)
		m, err := w.Memory()
		require.NoError(t, err)
		one, _ := formula(budget, 0)
		anon[i], reported[i], slots[i], scratch[i] = m.Anon, info.SlotBytes, 2*one, info.ScratchBytes
		assert.Equal(t, 2, info.Sequences)

		require.NoError(t, w.Clear())
		info, err = w.LESS()
		require.NoError(t, err)
		assert.Zero(t, info.Sequences)
		assert.Zero(t, info.SlotBytes)
	}
	grown := anon[1] - anon[0]
	t.Logf("slots grew by %d bytes by formula, %d as reported, scratch by %d; the process grew by %d", slots[1]-slots[0], reported[1]-reported[0], scratch[1]-scratch[0], grown)
	assert.Equal(t, slots, reported)
	assert.LessOrEqual(t, float64(grown), 1.05*float64(slots[1]-slots[0])+float64(scratch[1]-scratch[0])+float64(6<<20), "a copy of the slots would be 13 MB")
	assert.Greater(t, grown, (slots[1]-slots[0])/2, "or else this measures nothing")
}
