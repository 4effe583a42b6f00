package bench

import (
	"bytes"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// TestRun measures a small shape with every method: what is measured, not how fast it is.
func TestRun(t *testing.T) {
	before := streamed
	streamed = 1 << 20
	t.Cleanup(func() { streamed = before })
	dir := t.TempDir()
	o := Options{Model: "gopher-5m", Dir: dir, Methods: Methods(), Contexts: []int{0, 64, 320}, Ubatch: 64, Repeat: 2, Threads: 1, Profile: true, Roofline: true, Growth: 8192, Sequences: 3,
		Budget: worker.Budget{Tokens: 64}, SlotType: "f16", Policy: "h2o"}
	r, err := Run(t.Context(), o)
	require.NoError(t, err)
	assert.Equal(t, []int{0, 64, 320}, r.Contexts())
	assert.Equal(t, []string{"f16", "f16-fa", "q8_0-fa", "q4_0-fa", "sparse", "less", "sparse-unequal", "less-q8_0", "less-q4_0", "less-q8_0-bytes", "less-q4_0-bytes"}, r.Methods())
	for _, m := range r.Methods() {
		for _, c := range r.Contexts() {
			assert.Equal(t, 2, r.Speed(Cell{m, c, Decode}).N, "%s at %d", m, c)
			assert.Equal(t, 2, r.Speed(Cell{m, c, Together}).N, "%s at %d", m, c)
			want := 2
			if c == 0 {
				want = 0
			}
			assert.Equal(t, want, r.Speed(Cell{m, c, Prompt}).N, "%s at %d", m, c)
			_, ok := r.memory(m, c)
			assert.True(t, ok)
		}
	}
	less, _ := r.memory("less", 320)
	sparse, _ := r.memory("sparse", 320)
	full, _ := r.memory("f16", 320)
	unequal, _ := r.memory("sparse-unequal", 320)
	assert.Equal(t, sparse.Cache, unequal.Cache)
	assert.Equal(t, 2*64-16, unequal.Kept)
	assert.Equal(t, 64, less.Kept, "all slots are in use")
	assert.Greater(t, less.Cache, sparse.Cache)
	for kind, slots := range map[string]int{"q8_0": 64 * 264 / 144, "q4_0": 64 * 264 / 80} {
		as, bytes := "less-"+kind, "less-"+kind+"-bytes"
		many, _ := r.memory(as, 320)
		same, _ := r.memory(bytes, 320)
		assert.Equal(t, 64, many.Kept, as)
		assert.Less(t, many.Cache, less.Cache, as)
		assert.Equal(t, slots, same.Kept, bytes)
		assert.LessOrEqual(t, same.Cache, less.Cache, bytes)
		assert.Greater(t, same.Cache, less.Cache*9/10, bytes)
	}
	assert.EqualValues(t, 320*6*2*2*64*2, full.Cache)
	assert.Equal(t, []int64{full.Cache, less.Cache, sparse.Cache}, []int64{full.Read, less.Read, sparse.Read}, "all slots are read")
	empty, _ := r.memory("less-q4_0-bytes", 0)
	assert.Less(t, empty.Read, empty.Cache, "of 211 slots those that are full")
	assert.Len(t, r.Bandwidth, o.Repeat)
	assert.Positive(t, r.Weights)
	assert.Equal(t, full.Cache, full.Full)
	for _, s := range r.Samples {
		if s.Phase == Together {
			assert.Zero(t, s.Tokens%3, "of three sequences")
		}
		assert.Equal(t, strings.HasPrefix(s.Method, "less") || strings.HasPrefix(s.Method, "sparse"), len(s.Phases) == len(phaseNames), "%v", s)
	}
	require.NotNil(t, r.Node)
	assert.Positive(t, r.Node.Node)
	assert.Positive(t, r.Node.Matmul)
	require.NotNil(t, r.Growth)
	const unmodified = (8192 - 2048) * 6 * 2 * 2 * 64 * 2 // by which an unmodified cache would grow
	assert.Less(t, r.Growth.After-r.Growth.Before, int64(unmodified/2))

	processes, err := Run(t.Context(), Options{Model: "gopher-5m", Dir: dir, Methods: o.Methods[:1], Contexts: []int{256, 4096}, Ubatch: 64, Threads: 1, Processes: true})
	require.NoError(t, err)
	grown := processes.process("f16", 4096) - processes.process("f16", 256)
	assert.Greater(t, grown, int64(3840*6*2*2*64*2*9/10), "the cache alone; peaks of two processes differ by more")
	require.NoError(t, PlotContext(filepath.Join(dir, "context.png"), r, processes))

	patched, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	assert.Equal(t, provenance.Of(patched), r.Build)

	path := filepath.Join(dir, "r.json")
	require.NoError(t, r.Write(path))
	again, err := Read(path)
	require.NoError(t, err)
	assert.Equal(t, r, again)
	var text bytes.Buffer
	require.NoError(t, r.Table(&text))
	assert.Contains(t, text.String(), "q8_0-fa")
	assert.Contains(t, text.String(), "\n"+r.Tools()+"\nLESS: h2o")
	assert.Contains(t, text.String(), "3 sequences decoding together")
	require.NoError(t, Plot(filepath.Join(dir, "r.png"), r))
}

// A method that has more slots than the budget says is measured with all of them full.
func TestSlotsAreFull(t *testing.T) {
	methods, err := FindMethods([]string{"less-q4_0-bytes", "sparse-unequal"})
	require.NoError(t, err)
	r, err := Run(t.Context(), Options{Model: "gopher-5m", Dir: t.TempDir(), Methods: methods, Contexts: []int{2048}, PromptLimit: -1, Ubatch: 64, Repeat: 1, Threads: 1,
		Budget: worker.Budget{Tokens: 256}, SlotType: "f16", Policy: "h2o"})
	require.NoError(t, err)
	for method, slots := range map[string]int{"less-q4_0-bytes": 256 * 264 / 80, "sparse-unequal": 2*256 - 256/4} {
		m, ok := r.memory(method, 2048)
		require.True(t, ok)
		assert.Equal(t, slots, m.Kept, method)
	}
}

// Of an adapter that was given the result says what its phi and psi are; an allocation alone has none.
func TestGivenAdapter(t *testing.T) {
	dir := t.TempDir()
	model, err := testdata.PathIn(dir, testdata.Model)
	require.NoError(t, err)
	m, err := weights.ReadModel(model)
	require.NoError(t, err)
	methods, err := FindMethods([]string{"less"})
	require.NoError(t, err)
	trained := weights.Trained{Policy: "peak", Heavy: 8, Recent: 24, Ubatch: 32, Context: 2048}
	random, alone := weights.Random(m, 4, 32, trained, 1), weights.New(m, trained)
	require.NoError(t, random.Convert(gguf.Q8_0))
	alone.Budget = slices.Repeat([]float32{1}, m.KVHeads())
	for want, a := range map[string]*weights.Adapter{"rank 4, hidden size 32, phi and psi in Q8_0": random, "without phi and psi": alone} {
		path := filepath.Join(dir, "a.gguf")
		require.NoError(t, a.Write(path))
		r, err := Run(t.Context(), Options{Model: model, Adapter: path, Dir: dir, Methods: methods, Contexts: []int{64}, Ubatch: 64, Repeat: 1, Threads: 1, Budget: worker.Budget{Tokens: 32}})
		require.NoError(t, err)
		var text bytes.Buffer
		require.NoError(t, r.Table(&text))
		assert.Contains(t, text.String(), "LESS: peak, 32 slots per KV head in q8_0, "+want+"\n")
	}
}

// Every method runs on the other runtime too, here the same one, and the result says what that was compiled with.
func TestOtherBuild(t *testing.T) {
	build, err := layout.Find(".")
	require.NoError(t, err)
	methods, err := FindMethods([]string{"f16", "less"})
	require.NoError(t, err)
	o := Options{Model: "gopher-5m", Dir: t.TempDir(), Methods: methods, Contexts: []int{64}, Ubatch: 64, Repeat: 2, Threads: 1, OtherBuild: string(build)}
	r, err := Run(t.Context(), o)
	require.NoError(t, err)
	assert.Equal(t, []string{"f16", "f16-other", "less", "less-other"}, r.Methods())
	assert.Equal(t, 2, r.Ratio(Cell{"less-other", 64, Decode}, Cell{"less", 64, Decode}).N)
	assert.Equal(t, "f16", r.Best(64, Decode).Method)
	require.NotNil(t, r.Other)
	assert.Equal(t, provenance.Build{Compiler: r.Compiler, Flags: r.Flags, ISA: r.ISA}, *r.Other)
	assert.NotEmpty(t, r.Flags)
	assert.NotEmpty(t, r.ISA)
	var text bytes.Buffer
	require.NoError(t, r.Table(&text))
	assert.Contains(t, text.String(), "\nmethods that end in -other: the same on another runtime, "+r.Other.Tools()+"\n")
	assert.Contains(t, text.String(), "  less-other  ")
	path := filepath.Join(t.TempDir(), "r.json")
	require.NoError(t, r.Write(path))
	again, err := Read(path)
	require.NoError(t, err)
	assert.Equal(t, r, again)
	require.NoError(t, Plot(filepath.Join(t.TempDir(), "r.png"), r))

	o.OtherBuild, o.Dir = t.TempDir(), filepath.Join(t.TempDir(), "none")
	_, err = Run(t.Context(), o)
	require.ErrorIs(t, err, layout.ErrNotAssembled)
	assert.ErrorContains(t, err, o.OtherBuild)
	assert.NoDirExists(t, o.Dir)
	require.ErrorIs(t, MeasureTargets(t.Context(), t.TempDir(), "llama-3.2-1b-portable", Options{}), ErrOption)
}

func TestCompareFilled(t *testing.T) {
	methods, err := FindMethods([]string{"f16-fa", "less"})
	require.NoError(t, err)
	checks, err := CompareFilled(t.Context(), Options{Model: "gopher-5m", Dir: t.TempDir(), Methods: methods, Contexts: []int{320}, Ubatch: 64, Repeat: 1, Threads: 1})
	require.NoError(t, err)
	require.Len(t, checks, 2)
	for _, c := range checks {
		assert.Positive(t, c.Prompt.Median)
		assert.Positive(t, c.Whole)
		assert.Positive(t, c.Decode.Median)
	}
}

// TestFill: a filled cache is a cache, with every kind of layout, and goes on.
func TestFill(t *testing.T) {
	shape, err := FindShape("gopher-5m")
	require.NoError(t, err)
	patched, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	path, err := shape.Build(t.Context(), t.TempDir(), "q8_0", patched, 1)
	require.NoError(t, err)
	for _, m := range Methods() {
		workerPath, err := worker.Path(m.Tree)
		require.NoError(t, err)
		w, err := worker.Start(t.Context(), workerPath)
		require.NoError(t, err)
		c := worker.Config{Model: path, Context: 512, TypeK: m.Type, TypeV: m.Type, FlashAttention: m.FA}
		if m.Tree == worker.Patched {
			c.LESS = &worker.LESS{}
		}
		_, err = w.Open(c)
		require.NoError(t, err)
		var refused *worker.Error
		require.ErrorAs(t, w.Fill(0, 100), &refused, "nothing to copy")
		_, err = w.Decode(0, 0, []int32{5, 6, 7}, worker.None)
		require.NoError(t, err)
		err = w.Fill(0, 101)
		if m.Tree == worker.Patched {
			require.ErrorAs(t, err, &refused)
		} else {
			require.NoError(t, err, m.Name)
			lo, hi, err := w.SeqPos(0)
			require.NoError(t, err)
			assert.Equal(t, []int{0, 100}, []int{lo, hi})
			_, err = w.Decode(0, 101, []int32{8}, worker.Last)
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
	}
}

// Models of each architecture that shapes have are decoded, with LESS too.
func TestArchitectures(t *testing.T) {
	var seen []string
	for _, shape := range Shapes() {
		if slices.Contains(seen, shape.Architecture) {
			continue
		}
		seen = append(seen, shape.Architecture)
		shape.Layers, shape.Embedding, shape.FeedForward, shape.Vocab = 2, 256, 256, 512
		patched, err := worker.Path(worker.Patched)
		require.NoError(t, err)
		path, err := shape.Build(t.Context(), t.TempDir(), "q8_0", patched, 1)
		require.NoError(t, err, shape.Architecture)
		m, err := weights.ReadModel(path)
		require.NoError(t, err)
		assert.Equal(t, []int{shape.Heads, shape.HeadsKV, shape.HeadSize}, []int{m.Heads, m.HeadsKV, m.KeyLength}, shape.Name)
		for _, name := range []string{"f16-fa", "less"} {
			methods, err := FindMethods([]string{name})
			require.NoError(t, err)
			_, err = Run(t.Context(), Options{Model: path, Dir: t.TempDir(), Methods: methods, Contexts: []int{128}, Ubatch: 64, Repeat: 1, Threads: 1, Budget: worker.Budget{Tokens: 64}})
			require.NoError(t, err, "%s, %s", shape.Architecture, name)
		}
	}
	assert.ElementsMatch(t, []string{"llama", "qwen3", "granite"}, seen)
}

func TestRefused(t *testing.T) {
	refused := func(says string, err error) {
		t.Helper()
		require.ErrorIs(t, err, ErrOption)
		require.ErrorContains(t, err, says)
	}
	_, err := Run(t.Context(), Options{Model: "gpt-7"})
	refused(`"gpt-7"`, err)
	_, err = Run(t.Context(), Options{Model: "gopher-5m", Contexts: []int{100}})
	refused("a context of 100 tokens", err)
	_, err = Run(t.Context(), Options{Model: "gopher-5m", SlotType: "q4_1"})
	refused(`slots of type "q4_1"`, err)
	_, err = Run(t.Context(), Options{Model: "gopher-5m", Sequences: 65, Ubatch: 64})
	refused("65 sequences", err)
	_, err = CompareFilled(t.Context(), Options{Model: "gopher-5m", Dir: t.TempDir(), Contexts: []int{64}, Ubatch: 64})
	refused("64", err)
	_, err = FindMethods([]string{"magic"})
	refused(`"magic"`, err)
	if have, ok := limits.Memory(); ok {
		methods, err := FindMethods([]string{"f16"})
		require.NoError(t, err)
		methods = slices.Repeat(methods, int(have>>38)+1) // each with the logits of a micro-batch, which are 256 GiB
		_, err = Run(t.Context(), Options{Model: "gopher-5m", Dir: t.TempDir(), Methods: methods, Contexts: []int{trainedContext}, Ubatch: 1 << 17, Threads: 1})
		require.ErrorIs(t, err, ErrMemory)
	}
}

// TestKernelsOfTwoModels: two files of one name have kernels of their own in one folder, and damaged files are made anew.
func TestKernelsOfTwoModels(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, Contexts: []int{64}, Ubatch: 64, Repeat: 1, Threads: 1}
	var err error
	o.Methods, err = FindMethods([]string{"less"})
	require.NoError(t, err)
	for _, name := range []string{"qwen3", "llama", "qwen3"} {
		m, err := tinymodels.Find(name)
		require.NoError(t, err)
		o.Model = filepath.Join(t.TempDir(), "model.gguf")
		require.NoError(t, m.Write(o.Model, gguf.F32, 1))
		_, err = Run(t.Context(), o)
		require.NoError(t, err)
	}
	list := func() []string {
		paths, err := filepath.Glob(filepath.Join(dir, "*.gguf"))
		require.NoError(t, err)
		return paths
	}
	require.Len(t, list(), 2)

	o.Model = "gopher-5m"
	_, err = Run(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, list(), 4)
	for _, path := range list() {
		require.NoError(t, os.Truncate(path, 1000))
	}
	_, err = Run(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, list(), 4)
}

// What a run that was killed has left of a shape, the next one deletes: its files alone.
func TestHalvesOfShapes(t *testing.T) {
	dir := t.TempDir()
	shape, err := FindShape("gopher-5m")
	require.NoError(t, err)
	patched, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	halves := []string{"gopher-5m-Q4_0-0123456789ab.gguf.raw", "llama-3.2-1b-Q8_0-0123456789ab.gguf.raw.part.tmp", "qwen3-0.6b-F16-0123456789ab.gguf.part.tmp"}
	others := []string{"gopher-5m.gguf.raw", "gopher-5m-Q4_0-0123456789ab.gguf.raw.bak", "my gopher-5m-Q4_0-0123456789ab.gguf.raw", "gopher-5m-Q4_0-mine.gguf.raw", "llama-3.2-1b.gguf.part.tmp"}
	for _, name := range slices.Concat(halves, others) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o644))
	}
	path, err := shape.Build(t.Context(), dir, "q4_0", patched, 1)
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	assert.ElementsMatch(t, append(others, "lock", filepath.Base(path)), left)
}

// A picture has lines from one context to another. Where there is one alone, 0 or not, it is there with its axes, and nothing fails.
func TestPlotOfOneContext(t *testing.T) {
	for _, c := range []int{0, 512} {
		path := filepath.Join(t.TempDir(), "plot.png")
		r := &Result{Model: "m", Ubatch: 64, Memory: []Memory{{Method: "less", Context: c, Cache: 1 << 20}}}
		for _, phase := range []Phase{Prompt, Decode} {
			r.Samples = append(r.Samples, Sample{Method: "less", Context: c, Phase: phase, Tokens: 64, Seconds: 1})
		}
		require.NoError(t, Plot(path, r), c)
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		picture, err := png.Decode(f)
		require.NoError(t, err, c)
		assert.Greater(t, picture.Bounds().Dx(), 3*300, "three panels")
	}
}

// What was kept in another format has another name, so that it is made again.
func TestShapesOfAnotherFormat(t *testing.T) {
	names := func() []string {
		return []string{Shapes()[0].file("Q4_0"), adapterFile(&weights.Model{}, "x", &Options{})}
	}
	before := names()
	shapeFormat++
	t.Cleanup(func() { shapeFormat-- })
	for i, name := range names() {
		assert.NotEqual(t, before[i], name)
	}
}

// TestWhole sums up a prompt whose micro-batches take a second more each.
func TestWhole(t *testing.T) {
	r := &Result{Ubatch: 100}
	for _, c := range []int{100, 300, 900} {
		r.Samples = append(r.Samples, Sample{Method: "f16", Context: c, Phase: Prompt, Tokens: 100, Seconds: float64(c) / 100})
		r.Samples = append(r.Samples, Sample{Method: "less", Context: c, Phase: Prompt, Tokens: 100, Seconds: 1})
	}
	assert.InDelta(t, 900./45, r.Whole("f16", 900).Median, 1e-9)
	assert.InDelta(t, 100, r.Whole("less", 900).Median, 1e-9)
	assert.InDelta(t, 5, r.WholeRatio("less", "f16", 900).Median, 1e-9)
	assert.Equal(t, Spread{Median: 9, Min: 9, Max: 9, Low: 9, High: 9, N: 1}, r.Ratio(Cell{"less", 900, Prompt}, Cell{"f16", 900, Prompt}))
	assert.InDelta(t, 2.5, median([]float64{4, 1, 2, 3}), 1e-9)
	assert.Zero(t, r.Whole("sparse", 900).N)
}

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	require.NoError(t, os.WriteFile(path, []byte("a\n"+tableBegin+"old"+tableEnd+"\nb\n"), 0o644))
	require.NoError(t, replace(path, "new"))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "a\n"+tableBegin+"\n\nnew\n"+tableEnd+"\nb\n", string(text))
	require.NoError(t, os.WriteFile(path, nil, 0o644))
	require.ErrorIs(t, replace(path, "new"), ErrOption)
}

// What --quant takes is what the worker knows: it says so itself.
func TestQuants(t *testing.T) {
	path, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	w, err := worker.Start(t.Context(), path)
	require.NoError(t, err)
	defer w.Close()
	err = w.Quantize("a", "b", "Q9", 1)
	require.ErrorContains(t, err, "want one of "+strings.Join(quants, ", "))
	_, err = Run(t.Context(), Options{Model: "gopher-5m", Dir: t.TempDir(), Quant: "Q9"})
	require.ErrorIs(t, err, ErrOption)
}
