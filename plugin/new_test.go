package lesskv_test

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

func TestNewWrongFile(t *testing.T) {
	whole, err := testdata.Read(testdata.Model)
	require.NoError(t, err)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o644))
		return path
	}
	emptyKey := append([]byte{}, whole...)
	copy(emptyKey[24:32], make([]byte, 8)) // the first key's length
	lines := captureLog(t)
	for name, test := range map[string]struct {
		path string
		says string
	}{
		"missing":     {filepath.Join(dir, "missing.gguf"), "missing.gguf: No such file"},
		"folder":      {dir, "is not a file"},
		"NUL":         {"model.gguf\x00.txt", "NUL"},
		"empty":       {write("empty.gguf", nil), "is not a GGUF file"},
		"wrong magic": {write("magic.gguf", []byte("ggml and so on")), "67 67 6d 6c"},
		"magic alone": {write("alone.gguf", []byte("GGUF")), "alone.gguf: "},
		"header only": {write("header.gguf", whole[:5000]), "header.gguf: "},
		"cut short":   {write("short.gguf", whole[:len(whole)/2]), "short.gguf: "},
		"empty key":   {write("key.gguf", emptyKey), "key 0 is empty"},
		"token twice": {write("twice.gguf", bytes.Replace(whole, []byte("<0x01>"), []byte("<0x00>"), 1)), "token twice"},
		"an adapter":  {file(t, testdata.H2O102), "h2o-102"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, opts := range [][]llama.ModelOption{nil, {lesskv.Enable(lesskv.Config{})}} {
				model, err := llama.New(test.path, opts...)
				assert.Nil(t, model)
				assertSays(t, err, lesskv.ErrModel, test.says)
				assert.NotContains(t, err.Error(), "no reason")
			}
		})
	}
	assert.NotContains(t, lines.String(), "NO ADAPTER", "of models that were never loaded")
	assert.NotContains(t, lines.String(), "rror", "what is returned is not logged too")
}

func TestNewWrongOptions(t *testing.T) {
	for name, test := range map[string]struct {
		option llama.ModelOption
		kind   error
		says   string
	}{
		"context below 0":    {llama.SetContext(-1), lesskv.ErrArgument, "context size -1"},
		"context of 64 bits": {llama.SetContext(1<<32 + 64), lesskv.ErrArgument, "context size 2147483647"},
		"no batch":           {llama.SetNBatch(0), lesskv.ErrArgument, "batch size 0"},
		"rope base":          {llama.WithRopeFreqBase(float32(math.NaN())), lesskv.ErrArgument, "rope frequency base"},
		"rope scale":         {llama.WithRopeFreqScale(-1), lesskv.ErrArgument, "rope frequency scale"},
		"main GPU":           {llama.SetMainGPU("first"), lesskv.ErrArgument, `"first"`},
		"tensor split":       {llama.SetTensorSplit("1,a"), lesskv.ErrArgument, `"a"`},
		"LoRA":               {llama.SetLoraAdapter("lora.bin"), lesskv.ErrModel, "lora.bin"},
		"NUL in LoRA":        {llama.SetLoraAdapter("lora.bin\x00"), lesskv.ErrArgument, "LoRA adapter"},
		"NUL in LoRA base":   {llama.SetLoraBase("\x00"), lesskv.ErrArgument, "LoRA base"},
		"NUL in main GPU":    {llama.SetMainGPU("0\x00"), lesskv.ErrArgument, "main GPU"},
		"NUL in split":       {llama.SetTensorSplit("1\x00"), lesskv.ErrArgument, "tensor split"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := llama.New(file(t, testdata.Model), test.option)
			assertSays(t, err, test.kind, test.says)
		})
	}
	for name, option := range map[string]llama.ModelOption{
		"main GPU": llama.SetMainGPU("0"), "tensor split": llama.SetTensorSplit("1/2,3"), "mul mat": llama.SetMulMatQ(false),
		"low VRAM": llama.EnabelLowVRAM, "embeddings": llama.EnableEmbeddings, "no mmap": llama.SetMMap(false),
		"rope base": llama.WithRopeFreqBase(0), "perplexity": llama.SetPerplexity(true), "batch": llama.SetNBatch(1),
		"a GPU that cannot be": llama.SetMainGPU("99"), "no GPU": llama.SetMainGPU("-1"), "a share below 0": llama.SetTensorSplit("-1,2"),
	} {
		t.Run(name+" is fine", func(t *testing.T) {
			assert.NotEmpty(t, predict(t, open(t, option), prompt))
		})
	}
}

// Upstream's defaults, 10000 and 1, mean what the model says; anything else means itself.
func TestRope(t *testing.T) {
	path := writeTiny(t, "qwen3", gguf.F32, 1) // whose base is 1,000,000
	text := func(opts ...llama.ModelOption) string {
		model, err := llama.New(path, opts...)
		require.NoError(t, err)
		defer model.Free()
		return predict(t, model, prompt, llama.SetTokens(60), llama.SetPenalty(1), llama.SetRopeFreqBase(10000), llama.SetRopeFreqScale(1))
	}
	want := text(llama.WithRopeFreqBase(1e6))
	assert.Equal(t, want, text())
	assert.Equal(t, want, text(llama.WithRopeFreqBase(10000), llama.WithRopeFreqScale(1)))
	assert.Equal(t, want, text(llama.WithRopeFreqBase(0), llama.WithRopeFreqScale(0)))
	assert.NotEqual(t, want, text(llama.WithRopeFreqBase(10001)))
	assert.NotEqual(t, want, text(llama.WithRopeFreqScale(.5)))

	// a call changes nothing: where it asks for that, the log says so once
	lines := captureLog(t)
	model := load(t, path, llama.WithRopeFreqBase(5e5))
	want = predict(t, model, prompt, llama.SetRopeFreqBase(5e5))
	own := load(t, path)
	wantOwn := predict(t, own, prompt, llama.SetRopeFreqBase(1e6))
	assert.NotContains(t, lines.String(), "rope")
	for range 3 {
		assert.Equal(t, want, predict(t, model, prompt, llama.SetRopeFreqBase(1e6)))
		assert.Equal(t, wantOwn, predict(t, own, prompt, llama.SetRopeFreqScale(.5)))
	}
	assert.Equal(t, 1, strings.Count(lines.String(), "a call's rope frequency base 1e+06 and scale 1 are ignored"), lines)
	assert.Equal(t, 1, strings.Count(lines.String(), "a call's rope frequency base 10000 and scale 0.5 are ignored"), lines)
}

// A context beyond the learned positions would make llama.cpp end the process at the first token there.
func TestLearnedPositions(t *testing.T) {
	path := writeTiny(t, "gpt2", gguf.F16, 1)
	for _, cache := range []llama.ModelOption{lesskv.Disable(), sparse(64)} {
		assert.Equal(t, 4096, stats(t, load(t, path, llama.SetContext(8192), cache)).Limit)
	}
}

// Once in a process: in one of its own, that is.
func TestGPULayersSaidOnce(t *testing.T) {
	if lesskv.HasDevices() {
		t.Skip("this runtime was assembled with a backend for devices")
	}
	const child = "LESSKV_TEST_GPU_CHILD"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGPULayersSaidOnce$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Equal(t, 1, strings.Count(string(out), "no GPU backend"), "%s", out)
		return
	}
	for range 3 {
		open(t, llama.SetGPULayers(10))
		open(t, llama.SetGPULayers(10), sparse(64))
	}
}

func TestKVTypes(t *testing.T) {
	bytes := func(opts ...llama.ModelOption) uint64 {
		model, err := llama.New(file(t, testdata.Model), append(opts, llama.SetContext(512))...)
		require.NoError(t, err)
		defer model.Free()
		return stats(t, model).CacheBytes
	}
	const f16 = 6 * 2 * 2 * 64 * 512 * 2
	assert.EqualValues(t, 2*f16, bytes(lesskv.Disable()), "f32, as upstream has it")
	assert.EqualValues(t, f16, bytes(lesskv.Disable(), llama.EnableF16Memory))
	less := func(k, v lesskv.SlotType) uint64 {
		model := open(t, lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Keys: k, Values: v, Adapter: lesskv.NoAdapter}))
		predict(t, model, prompt)
		return stats(t, model).SlotBytes
	}
	assert.EqualValues(t, 6*2*64*(68+68+8), less("", ""), "q8_0, whatever EnableF16Memory says")
	assert.EqualValues(t, 6*2*64*(256+68+8), less(lesskv.F32, lesskv.Q8))
	assert.EqualValues(t, 6*2*64*(36+128+8), less(lesskv.Q4, lesskv.F16))
}

func TestAdapterBesideTheModel(t *testing.T) {
	dir := copied(t, map[string]string{"m.gguf": testdata.Model, "m.lesskv.gguf": testdata.H2O102, "alone.gguf": testdata.Model})
	lines := captureLog(t)
	load := func(name string, c lesskv.Config) lesskv.CacheStats {
		model, err := llama.New(filepath.Join(dir, name), llama.SetContext(0), lesskv.Enable(c))
		require.NoError(t, err)
		defer model.Free()
		return stats(t, model)
	}

	s := load("m.gguf", lesskv.Config{})
	assert.Equal(t, 8, s.Rank)
	assert.Len(t, s.AdapterSHA256, 64)
	assert.NotZero(t, s.KernelBytes)
	assert.Zero(t, load("m.gguf", lesskv.Config{Adapter: lesskv.NoAdapter}).Rank)
	assert.NotContains(t, lines.String(), "NO ADAPTER")

	for range 3 {
		s = load("alone.gguf", lesskv.Config{})
		assert.Zero(t, s.Rank)
	}
	assert.Equal(t, 1, strings.Count(lines.String(), "NO ADAPTER: there is no "+filepath.Join(dir, "alone.lesskv.gguf")), "once")
}

func TestAdapterRefused(t *testing.T) {
	good, err := testdata.Read(testdata.H2O102)
	require.NoError(t, err)
	nan := append([]byte{}, good...)
	copy(nan[len(nan)-4:], []byte{0, 0, 0xc0, 0x7f}) // its last weight, a float32
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o644))
		return path
	}
	other := writeTiny(t, "llama", gguf.F16, 1)

	for name, test := range map[string]struct {
		model, adapter string
		config         lesskv.Config
		says           string
	}{
		"missing":       {adapter: filepath.Join(dir, "missing.gguf"), says: "missing.gguf"},
		"folder":        {adapter: dir, says: dir},
		"empty":         {adapter: write("empty", nil), says: "empty"},
		"cut short":     {adapter: write("short", good[:len(good)/2]), says: "short"},
		"NaN":           {adapter: write("nan", nan), says: "nan"},
		"a model":       {adapter: file(t, testdata.Model), says: "general.type"},
		"another model": {model: other, adapter: file(t, testdata.H2O102), says: "h2o-102"},
	} {
		t.Run(name, func(t *testing.T) {
			path := test.model
			if path == "" {
				path = file(t, testdata.Model)
			}
			c := test.config
			c.Adapter = test.adapter
			_, err := llama.New(path, lesskv.Enable(c))
			assertSays(t, err, lesskv.ErrAdapter, test.says)
		})
	}
	t.Run("another policy", func(t *testing.T) {
		_, err := llama.New(file(t, testdata.Model), lesskv.Enable(lesskv.Config{Policy: lesskv.Lambda, Adapter: file(t, testdata.H2O102)}))
		assertSays(t, err, lesskv.ErrConfig, "h2o", "lambda")
	})
}

func TestUnsupportedModels(t *testing.T) {
	dir := t.TempDir()
	for _, m := range tinymodels.Refused() {
		t.Run(m.Name, func(t *testing.T) {
			path, err := m.WriteIn(dir, gguf.F16, 1)
			require.NoError(t, err)
			_, err = llama.New(path, sparse(64))
			assertSays(t, err, lesskv.ErrUnsupported, m.Architecture)

			model, err := llama.New(path, lesskv.Disable())
			require.NoError(t, err)
			defer model.Free()
			_, err = model.Predict("ab", llama.SetThreads(1), llama.SetTokens(2))
			if m.NoDecode {
				assertSays(t, err, lesskv.ErrMissing, "encoder")
			} else {
				assert.NoError(t, err)
			}
		})
	}
}

func TestLogLevel(t *testing.T) {
	lines := captureLog(t)
	lesskv.SetLogLevel(slog.LevelInfo)
	defer lesskv.SetLogLevel(slog.LevelWarn)
	open(t)
	assert.Contains(t, lines.String(), "n_ctx_seq             = 2048")
	for _, line := range strings.Split(strings.TrimSuffix(lines.String(), "\n"), "\n") {
		assert.NotContains(t, line, "\r")
	}
	n := len(lines.String())
	lesskv.SetLogLevel(slog.LevelError)
	open(t)
	assert.Len(t, lines.String(), n)
}
