package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// shaped writes random weights of a shape in Q4_0, or of the one that LESSKV_TEST_SHAPE names, which stays where lesskv bench keeps it.
func shaped(t *testing.T, shape string) (name, path string) {
	t.Helper()
	dir := t.TempDir()
	if s := os.Getenv("LESSKV_TEST_SHAPE"); s != "" {
		cache, err := os.UserCacheDir()
		require.NoError(t, err)
		shape, dir = s, filepath.Join(cache, "lesskv", "bench")
	}
	s, err := bench.FindShape(shape)
	require.NoError(t, err)
	quantiser, err := worker.Path(worker.Unmodified)
	require.NoError(t, err)
	path, err = s.Build(t.Context(), dir, "Q4_0", quantiser, runtime.NumCPU())
	require.NoError(t, err)
	return shape, path
}

// The table of docs/devices.md: speeds, memory of the device, and what is copied. Random weights of a shape; LESSKV_TEST_SHAPE names
// another. What it asserts is where the cache lies, and what is copied.
func TestDevicesTable(t *testing.T) {
	all := devices(t)
	d, name, context := all[0], "gopher-5m", 2048
	slow := d.Servers > 0 || d.Software
	if !slow {
		name, context = "llama-3.2-1b", 32768
	}
	name, model := shaped(t, name)

	var text strings.Builder
	out := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "%s, Q4_0, context %d\nlayers on\tcache\tthreads\ttokens/s\tat\tweights MiB\tcache MiB\tcompute MiB\tparts\tcopies\tbytes a token\n", name, context)
	threads := []int{1} // beside what has threads of its own
	if !slow {
		threads = slices.Compact([]int{1, min(4, runtime.NumCPU()), min(8, runtime.NumCPU())})
	}
	row := func(on string, less *worker.LESS, threads int) worker.Splits {
		c := worker.Config{Model: model, Context: context, Ubatch: 512, FlashAttention: true, Threads: threads, LESS: less}
		tree := worker.Unmodified
		if less != nil {
			tree = worker.Patched
		}
		var w *worker.Worker
		if on == "the device" {
			w, _ = d.open(t, tree, c)
		} else {
			w = open(t, tree, c)
		}
		s, err := w.Splits(1)
		require.NoError(t, err)
		tokens := randomTokens(context/2, 4096)
		pos := 512
		_, err = w.Feed(0, 0, tokens[:pos], worker.Last)
		require.NoError(t, err)
		cache := "LESS, 5 %"
		if less != nil && less.OnDevice {
			cache += ", on the device"
		}
		for _, at := range []int{pos, context - 64} {
			switch {
			case at == pos:
			case less == nil:
				require.NoError(t, w.Fill(0, at))
			default:
				_, err = w.Feed(0, pos, tokens[pos:], worker.Last) // its cost stands still from the budget on
				require.NoError(t, err)
				at = len(tokens)
			}
			if less == nil {
				cache = "full, f16"
			}
			_, _, err = w.Greedy(0, at, 1, 8, false)
			require.NoError(t, err)
			start := time.Now()
			_, _, err = w.Greedy(0, at+8, 1, 48, false)
			require.NoError(t, err)
			const mib = 1 << 20
			cells := fmt.Sprintf("%s\t%s\t%d\t%.1f\t%d\t%.1f\t%.1f\t%.1f\t%d\t%d\t%d", on, cache, threads, 48/time.Since(start).Seconds(), at,
				float64(s.Weights)/mib, float64(s.Cache)/mib, float64(s.Compute)/mib, s.Parts, s.Copies, s.Bytes)
			t.Log(cells) // all of them take minutes
			fmt.Fprintln(out, cells)
			pos = at + 56
		}
		return s
	}
	full := row("the device", nil, threads[len(threads)-1])
	assert.Positive(t, full.Cache)
	on := row("the device", &worker.LESS{Policy: "peak", BudgetShare: .05, OnDevice: true}, threads[len(threads)-1])
	assert.Positive(t, on.Cache)
	assert.Less(t, on.Cache, full.Cache)
	assert.Equal(t, full.Parts, on.Parts, "no layer goes back and forth")
	if name == "gopher-5m" && d.Servers == 2 {
		assert.Equal(t, []any{3, 19, int64(3748)}, []any{on.Parts, on.Copies, on.Bytes}, "as docs/devices.md has it")
	}
	m, err := weights.ReadModel(model)
	require.NoError(t, err)
	parts, copies, bytes := wantSplits(m, max(d.Servers, 1))
	if name == "gopher-5m" && d.Servers == 2 {
		require.Equal(t, []any{15, 29, int64(17420)}, []any{parts, copies, bytes}, "as docs/devices.md has it")
	}
	for _, n := range threads {
		less := row("the device", &worker.LESS{Policy: "peak", BudgetShare: .05}, n)
		assert.Positive(t, less.Weights)
		assert.Zero(t, less.Cache)
		assert.Equal(t, []any{parts, copies, bytes}, []any{less.Parts, less.Copies, less.Bytes})
	}
	row("the CPU", &worker.LESS{Policy: "peak", BudgetShare: .05}, threads[len(threads)-1])
	row("the CPU", &worker.LESS{Policy: "peak", BudgetShare: .05, OnDevice: true}, threads[len(threads)-1])
	require.NoError(t, out.Flush())
	t.Log("\n" + text.String())
}

// What the devices hold at a context of 32k, and what a token's graph costs there, of which nothing is computed.
func TestDevicesLongContext(t *testing.T) {
	d := devices(t)[0]
	name, model := shaped(t, "gopher-5m")
	splits := func(less *worker.LESS) worker.Splits {
		tree, cache := worker.Patched, "LESS in main memory"
		switch {
		case less == nil:
			tree, cache = worker.Unmodified, "full, f16"
		case less.OnDevice:
			cache = "LESS on the device"
		}
		w, _ := d.open(t, tree, worker.Config{Model: model, Context: 32768, Ubatch: 512, FlashAttention: true, LESS: less})
		s, err := w.Splits(1)
		require.NoError(t, err)
		require.NoError(t, w.CloseModel())
		const mib = 1 << 20
		t.Logf("%s, %s: %.1f MiB of weights, %.1f of the cache, %.1f of scratch; %d parts, %d copies, %d bytes a token", name, cache,
			float64(s.Weights)/mib, float64(s.Cache)/mib, float64(s.Compute)/mib, s.Parts, s.Copies, s.Bytes)
		return s
	}
	full := splits(nil)
	beside := splits(&worker.LESS{Policy: "peak", BudgetShare: .05})
	on := splits(&worker.LESS{Policy: "peak", BudgetShare: .05, OnDevice: true})
	m, err := weights.ReadModel(model)
	require.NoError(t, err)
	parts, copies, bytes := wantSplits(m, max(d.Servers, 1))
	assert.Equal(t, []any{parts, copies, bytes}, []any{beside.Parts, beside.Copies, beside.Bytes}, "whatever the context")
	assert.Zero(t, beside.Cache)
	assert.Equal(t, full.Parts, on.Parts)
	assert.Less(t, on.Cache, full.Cache/10)
	if name == "gopher-5m" && d.Servers == 2 {
		assert.Equal(t, []any{3, int64(133164), int64(96 << 20)}, []any{full.Parts, full.Bytes, full.Cache}, "as docs/devices.md has it")
		assert.Equal(t, []any{3, int64(28324)}, []any{on.Parts, on.Bytes}, "as docs/devices.md has it")
		assert.InDelta(t, 6.4, float64(on.Cache)/(1<<20), .05, "as docs/devices.md has it")
	}
}

// wantSplits is what a token costs of a model of the shapes here with all layers on so many devices, with LESS and slots of f16, and the
// least that it can: of each layer q, k and v come down and the output goes up; the embedding goes up, and from one device to the next
// what is between two layers; each device has the position, the last one the number of the row that is wanted.
func wantSplits(m *weights.Model, devices int) (parts, copies int, bytes int64) {
	parts = 2*m.Layers + 1 + devices // what each layer does on its device and here, the embedding, and what is behind the last layer's output
	copies = 4*m.Layers + devices + devices + 1
	attention := m.Sum(func(s weights.Shape) int {
		return s.Heads*(4*s.KeyLength+4*s.ValueLength) + s.HeadsKV*(2*s.KeyLength+2*s.ValueLength)
	})
	width := m.Heads * m.KeyLength // of these shapes
	return parts, copies, int64(attention + devices*(4*width+4) + 4)
}
