package lesskv_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// What is asked for in bytes and what is printed count the same: slots, the state of one sequence, kernels; on the device the rows in which a
// micro-batch arrives and the kernels in f32 too.
func TestBudgetInBytes(t *testing.T) {
	long := strings.Repeat(prompt+"\n", 60)
	for _, c := range []struct {
		name, adapter string
		on            bool
		asked         uint64
	}{
		{"sparse", lesskv.NoAdapter, false, 400 << 10},
		{"kernels", file(t, testdata.Peak102), false, 400 << 10},
		{"sparse, on the device", lesskv.NoAdapter, true, 400 << 10},
		{"kernels, on the device", file(t, testdata.Peak102), true, 1200 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			model := open(t, llama.SetNBatch(32), lesskv.Enable(lesskv.Config{Policy: lesskv.Peak, Budget: lesskv.Bytes(c.asked), Adapter: c.adapter, OnDevice: c.on}))
			predict(t, model, long, llama.SetBatch(32))
			s := stats(t, model)
			t.Logf("%d slots, %d bytes", s.Budget, s.CacheBytes)
			require.Greater(t, s.Layers[0].Folded, int64(0), "the slots are full")
			assert.Equal(t, s.SlotBytes+s.StateBytes+s.KernelBytes, s.CacheBytes)
			assert.LessOrEqual(t, s.CacheBytes, c.asked)
			const slot = 6 * 2 * (2*64*2 + 8) // one for each layer and head
			assert.Greater(t, s.CacheBytes, c.asked-slot, "one more would not fit")
			assert.Positive(t, s.ScratchBytes)
			assert.Equal(t, c.adapter != lesskv.NoAdapter, s.KernelBytes > 0)
		})
	}
}

// A prompt that was interrupted says how far it came.
func TestEvaluated(t *testing.T) {
	t.Setenv("LLAMA_BATCH_DEBUG", "1")
	modes(t, func(t *testing.T, cache llama.ModelOption) {
		model := open(t, cache)
		text := strings.Repeat(prompt, 3)
		oneByOne := []llama.PredictOption{llama.SetThreads(1), llama.SetBatch(1)}
		onBatch(t, 5, func() { lesskv.Interrupt(model) })
		require.NoError(t, model.Eval(text, oneByOne...))
		lesskv.SetLogOutput(nil)
		g := timings(t, model)
		assert.Equal(t, []int{0, 5}, []int{g.Cached, g.Evaluated})
		assert.Greater(t, g.Prompt, 20)
		assert.Equal(t, "interrupt", g.Stop)

		require.NoError(t, model.Eval(text, llama.SetThreads(1)))
		g = timings(t, model)
		assert.Equal(t, []int{5, g.Prompt - 5}, []int{g.Cached, g.Evaluated})
		predict(t, model, text+"x", llama.SetTokens(3))
		g = timings(t, model)
		assert.Equal(t, g.Prompt, g.Cached+g.Evaluated)
	})
}

// What is without effect can't be wrong: switched off, or not switched on, the other variables are not looked at.
func TestEnvironmentOff(t *testing.T) {
	for _, off := range []string{"off", "0", ""} {
		t.Setenv("LESSKV", off)
		for _, name := range []string{"BUDGET", "HEAVY", "PINNED", "TYPE", "FORCE_ADAPTER"} {
			t.Setenv("LESSKV_"+name, "garbage")
		}
		lines := captureLog(t)
		assert.False(t, stats(t, open(t)).Enabled, "LESSKV=%s", off)
		assert.Equal(t, off == "", strings.Contains(lines.String(), "LESSKV_BUDGET=garbage LESSKV_HEAVY=garbage LESSKV_PINNED=garbage LESSKV_TYPE=garbage LESSKV_FORCE_ADAPTER=garbage without effect"), lines)
	}
}

var misspelt atomic.Int32 // a name is said once for a process

// A variable that nobody reads is said once, with the one that was meant, perhaps.
func TestEnvironmentMisspelt(t *testing.T) {
	bugdet := fmt.Sprintf("LESSKV_BUGDET%d", misspelt.Add(1))
	adaptor := fmt.Sprintf("LESSKV_ADAPTOR%d", misspelt.Add(1))
	t.Setenv(bugdet, "5%")
	t.Setenv(adaptor, "none")
	t.Setenv("LESSKV_TEST_"+bugdet, "not of this program")
	t.Setenv("LESSKV_WORKER", "/bin/true")
	lines := captureLog(t)
	open(t)
	open(t, sparse(64))
	for _, want := range []string{
		bugdet + " is unknown, and without effect; the nearest known variable is LESSKV_BUDGET",
		adaptor + " is unknown, and without effect; the nearest known variable is LESSKV_ADAPTER",
	} {
		assert.Equal(t, 1, strings.Count(lines.String(), want), "%q in %s", want, lines)
	}
	assert.Equal(t, 2, strings.Count(lines.String(), "is unknown"))
}
