package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// What LESS can't serve it refuses, saying why, before anything is decoded; the process goes on and opens the model without
// LESS. TestOffIsOff shows that it then works as before.
func TestModelsRefused(t *testing.T) {
	t.Parallel()
	says := map[string]string{
		"ALiBi":                    "ALiBi",
		"encoder":                  "causal",
		"encoder-decoder":          "encoder",
		"recurrent":                "recurrent",
		"MLA":                      "MLA",
		"chunked attention":        "chunked",
		"grok's attention scaling": "scales",
	}
	w := start(t, worker.Patched)
	for _, m := range tinymodels.Refused() {
		path := write(t, m, gguf.F16)
		config := worker.Config{Model: path, Context: 256, LESS: &worker.LESS{}}
		_, err := w.Open(config)
		var e *worker.Error
		require.ErrorAs(t, err, &e, m.Name)
		t.Logf("%s: %s", m.Name, e.Message)
		require.Contains(t, says, m.Refused)
		assert.Contains(t, e.Message, says[m.Refused], m.Name)
		assert.Contains(t, e.Message, m.Architecture)

		ok, reason, err := w.Supported(path)
		require.NoError(t, err)
		assert.False(t, ok, m.Name)
		assert.Equal(t, e.Message, reason)

		config.LESS = nil
		_, err = w.Open(config)
		require.NoError(t, err, m.Name)
		require.NoError(t, w.CloseModel())
	}
	for _, m := range tinymodels.Supported() {
		ok, reason, err := w.Supported(write(t, m, gguf.F16))
		require.NoError(t, err)
		assert.True(t, ok, "%s: %s", m.Name, reason)
	}
}

// What a call of llama.cpp can ask of a memory and LESS has not is refused with a reason; the context goes on as before.
func TestCallsRefused(t *testing.T) {
	t.Parallel()
	refused := func(err error, says ...string) {
		t.Helper()
		var e *worker.Error
		require.ErrorAs(t, err, &e)
		t.Log(e.Message)
		for _, s := range says {
			assert.Contains(t, e.Message, s)
		}
	}
	path := tiny(t, "gemma4")
	config := worker.Config{Model: path, Context: 256, Ubatch: 32, LESS: &worker.LESS{Budget: 24}}
	tokens := randomTokens(100, 384)

	w := start(t, worker.Patched)
	ahead := config
	ahead.Model, ahead.Ahead = tiny(t, "qwen35-ahead"), true
	_, err := w.Open(ahead)
	refused(err, "further tokens", "turn LESS off")

	_, err = w.Open(config)
	require.NoError(t, err)
	_, err = w.Feed(0, 0, tokens[:50], worker.None)
	require.NoError(t, err)
	state, err := w.Save(0)
	require.NoError(t, err)

	_, err = w.Encode(tokens[:4])
	refused(err, "llama_encode")
	refused(w.Train(), "llama_opt_epoch")
	_, err = w.SaveFlagged(0, worker.PartialOnly)
	refused(err, "PARTIAL_ONLY", "whole")
	refused(w.LoadFlagged(0, state, worker.PartialOnly), "PARTIAL_ONLY")
	require.NoError(t, w.Causal(false))
	_, err = w.Decode(0, 50, tokens[50:51], worker.Last)
	refused(err, "causal")
	require.NoError(t, w.Causal(true))

	// Another context that would read this one's cache as llama.cpp's own.
	assistant := write(t, tinymodels.Gemma4Assistant(), gguf.F16)
	refused(w.Beside(assistant), "cache of another context", "LESS")
	ok, reason, err := start(t, worker.Patched).Supported(assistant)
	require.NoError(t, err)
	assert.False(t, ok, "what has no cache of its own")
	assert.Contains(t, reason, "drafts for another model")

	// None of it left a trace, and a state for a device is one like any other.
	device, err := w.SaveFlagged(0, worker.OnDevice)
	require.NoError(t, err)
	again, err := w.Save(0)
	require.NoError(t, err)
	assert.True(t, string(state) == string(again), "the state is another one")
	want, err := w.Feed(0, 50, tokens[50:], worker.All)
	require.NoError(t, err)
	require.NoError(t, w.LoadFlagged(0, device, worker.OnDevice))
	got, err := w.Feed(0, 50, tokens[50:], worker.All)
	require.NoError(t, err)
	sameBits(t, want, got)
	require.NoError(t, w.CloseModel())
	_, err = w.Open(config)
	require.NoError(t, err)
	require.NoError(t, w.LoadFlagged(0, state, worker.OnDevice), "of a context that never saved one")
	got, err = w.Feed(0, 50, tokens[50:], worker.All)
	require.NoError(t, err)
	sameBits(t, want, got)
	require.NoError(t, w.CloseModel())

	// Without LESS the other context is made.
	config.LESS = nil
	_, err = w.Open(config)
	require.NoError(t, err)
	require.NoError(t, w.Beside(assistant))
}

// A configuration that makes no sense is refused, naming what was found and what was wanted.
func TestConfigRefused(t *testing.T) {
	t.Parallel()
	const adapter = "testdata/gopher-5m.peak-41.lesskv.gguf"
	data, err := os.ReadFile(adapter)
	require.NoError(t, err)
	cut := filepath.Join(t.TempDir(), "cut.gguf")
	require.NoError(t, os.WriteFile(cut, data[:len(data)/2], 0o666))
	text := filepath.Join(t.TempDir(), "text.gguf")
	require.NoError(t, os.WriteFile(text, []byte("no adapter at all"), 0o666))

	w := start(t, worker.Patched)
	for _, c := range []struct {
		name  string
		model string
		less  worker.LESS
		says  []string
	}{
		{"negative budget", gopher, worker.LESS{Budget: -1}, []string{"budget", "-1"}},
		{"negative share", gopher, worker.LESS{BudgetShare: -.5}, []string{"-0.5"}},
		{"two budgets", gopher, worker.LESS{Budget: 100, BudgetShare: .1}, []string{"one of the four"}},
		{"negative part", gopher, worker.LESS{BudgetFull: -.5}, []string{"-0.5"}},
		{"a part that is too small", gopher, worker.LESS{BudgetFull: 1e-9}, []string{"too small"}},
		{"too few bytes", gopher, worker.LESS{BudgetBytes: 100}, []string{"too small"}},
		{"slots of too few heads", gopher, worker.LESS{Slots: []int{10, 20}}, []string{"2 heads", "12"}},
		{"a head without slots", gopher, worker.LESS{Slots: []int{9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0, 9}}, []string{"0 slots", "at least 1"}},
		{"slots and a budget", gopher, worker.LESS{Budget: 41, Slots: byHead}, []string{"budget 41", "slots"}},
		{"unknown policy", gopher, worker.LESS{Policy: "fifo"}, []string{"fifo", "h2o", "lambda", "peak"}},
		{"more heavy than budget", gopher, worker.LESS{Budget: 100, Heavy: worker.Int(101)}, []string{"101", "100"}},
		{"more pinned than heavy", gopher, worker.LESS{Budget: 100, Heavy: worker.Int(4), Pinned: worker.Int(5)}, []string{"pinned", "5", "4"}},
		{"negative pins", gopher, worker.LESS{Pinned: worker.Int(-1)}, []string{"pinned", "-1"}},
		{"q8_0 slots of small heads", tiny(t, "llama"), worker.LESS{TypeV: "q8_0"}, []string{"32", "16"}},
		{"q4_0 values of small heads", tiny(t, "llama"), worker.LESS{TypeV: "q4_0"}, []string{"q4_0", "32", "16"}},
		{"types of a layer that is not there", gopher, worker.LESS{TypeK: "f16,6=q8_0"}, []string{"0 to 5"}},
		{"q4_0 keys of small heads", tiny(t, "llama"), worker.LESS{TypeK: "q4_0"}, []string{"q4_0", "32", "16"}},
		{"no such adapter", gopher, worker.LESS{Adapter: "/does/not/exist.gguf"}, []string{"/does/not/exist.gguf"}},
		{"no adapter file", gopher, worker.LESS{Adapter: text}, []string{text}},
		{"half an adapter", gopher, worker.LESS{Policy: "peak", Adapter: cut}, []string{cut}},
		{"a model as adapter", gopher, worker.LESS{Adapter: gopher}, []string{"adapter"}},
		{"another policy than the adapter's", gopher, worker.LESS{Policy: "h2o", Adapter: adapter}, []string{"peak", "h2o"}},
		{"another model's adapter", tiny(t, "llama"), worker.LESS{Policy: "peak", Adapter: adapter}, []string{"less."}},
		{"the same, forced: geometry must still fit", tiny(t, "llama"), worker.LESS{Policy: "peak", Adapter: adapter, ForceAdapter: true}, []string{"less."}},
	} {
		_, err := w.Open(worker.Config{Model: c.model, Context: 2048, LESS: &c.less})
		var e *worker.Error
		if !assert.ErrorAs(t, err, &e, c.name) {
			require.NoError(t, w.CloseModel())
			continue
		}
		t.Logf("%s: %s", c.name, e.Message)
		for _, s := range c.says {
			assert.Contains(t, e.Message, s, c.name)
		}
	}
	_, err = w.Open(worker.Config{Model: gopher, Context: 2048, LESS: peak41()})
	assert.NoError(t, err, "nothing was left open")
}
