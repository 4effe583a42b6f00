package lesskv_test

import (
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Options whose subject this runtime does not have, or has elsewhere, and that change no text: they are accepted.
func TestOptionsWithoutEffect(t *testing.T) {
	want := predict(t, open(t), prompt)
	options := map[string]llama.ModelOption{
		"SetModelSeed": llama.SetModelSeed(5), "SetMMap": llama.SetMMap(false), "EnableMLock": llama.EnableMLock, "EnabelLowVRAM": llama.EnabelLowVRAM,
		"SetMulMatQ": llama.SetMulMatQ(false), "SetPerplexity": llama.SetPerplexity(true), "EnableEmbeddings": llama.EnableEmbeddings,
		"SetGPULayers": llama.SetGPULayers(3), "SetMainGPU": llama.SetMainGPU("0"), "SetTensorSplit": llama.SetTensorSplit("1,2"),
		"SetLoraBase": llama.SetLoraBase("base.gguf"), "EnableNUMA": llama.EnableNUMA,
	}
	if lesskv.HasDevices() {
		delete(options, "SetGPULayers")
	}
	for name, option := range options {
		assert.Equal(t, want, predict(t, open(t, option), prompt), name)
	}
	model := open(t)
	for name, option := range map[string]llama.PredictOption{
		"EnableF16KV": llama.EnableF16KV, "SetMlock": llama.SetMlock(true), "SetMemoryMap": llama.SetMemoryMap(false),
		"SetPredictionMainGPU": llama.SetPredictionMainGPU("1"), "SetPredictionTensorSplit": llama.SetPredictionTensorSplit("1,2"),
		"SetNDraft": llama.SetNDraft(4), "SetTailFreeSamplingZ": llama.SetTailFreeSamplingZ(1), "SetNegativePrompt": llama.SetNegativePrompt("unused"),
		"SetNKeep":             llama.SetNKeep(3),
		"EnablePromptCacheAll": llama.EnablePromptCacheAll, "EnablePromptCacheRO": llama.EnablePromptCacheRO,
	} {
		assert.Equal(t, want, predict(t, model, prompt, option), name)
	}
}

// Values that upstream took without a word, or warned of, are taken for what it made of them: the log says so once.
func TestIgnoredOptionsWarnOnce(t *testing.T) {
	lines := captureLog(t)
	model := open(t)
	draft := open(t)
	want := predict(t, model, prompt, llama.SetPenalty(1))
	for says, option := range map[string]llama.PredictOption{
		"mirostat 3 is taken for 0":           llama.SetMirostat(3),
		"a repeat penalty of 0":               llama.SetPenalty(0),
		`logit bias "many+1" is ignored`:      llama.SetLogitBias("many+1"),
		`logit bias "300+" is ignored`:        llama.SetLogitBias("300+"),
		"rope frequency base 500 and scale 1": llama.SetRopeFreqBase(500),
	} {
		for range 3 {
			assert.Equal(t, want, predict(t, model, prompt, llama.SetPenalty(1), option), says)
		}
		assert.Equal(t, 1, strings.Count(lines.String(), says), lines)
	}
	for says, option := range map[string]llama.PredictOption{
		"without a prompt cache and without a negative prompt": llama.SetPathPromptCache(filepath.Join(t.TempDir(), "no such folder", "cache")),
		"negative prompt: they are ignored":                    llama.SetNegativePromptScale(2),
		"":                                                     llama.SetNDraft(-1),
	} {
		speculate(t, model, draft, prompt, option)
		if says != "" {
			assert.Equal(t, 1, strings.Count(lines.String(), says), lines)
		}
	}
	for range 200 { // the values come from requests
		predict(t, model, prompt, llama.SetTokens(1), llama.SetRopeFreqBase(rand.Float32()))
	}
	assert.Less(t, strings.Count(lines.String(), "\n"), 120)
}

// A penalty below 0 is no more than a number: LocalAI sends what it calls a presence penalty for it, and that may be one.
func TestPenaltyBelow0(t *testing.T) {
	predict(t, open(t), prompt, llama.SetPenalty(-1))
}

// Apps take the time for a seed, in nanoseconds: more than 32 bits, of which the low ones count.
func TestSeeds(t *testing.T) {
	model := open(t)
	text := func(seed int) string {
		return predict(t, model, prompt, llama.SetTemperature(1.2), llama.SetSeed(seed))
	}
	assert.Equal(t, text(7), text(7))
	const now = 1_700_000_000_000_000_000
	texts := map[string]bool{}
	for i := range 5 {
		texts[text(now+i)] = true
	}
	assert.Len(t, texts, 5)
	assert.Equal(t, text(7), text(7+1<<32))
	random := map[string]bool{}
	for range 5 {
		random[text(-1)] = true
	}
	assert.Greater(t, len(random), 1, "-1 is another one each time")
}

// A text that has all that its grammar wants is at its end, whatever IgnoreEOS says.
func TestGrammarEndsTheText(t *testing.T) {
	model := open(t)
	assert.Equal(t, "yes", predict(t, model, prompt, llama.WithGrammar(`root ::= "yes"`), llama.IgnoreEOS))
	assert.Equal(t, "eog", timings(t, model).Stop)
}

// Options of the sampling change a text that they should. TestSamplingFollowsItsReference shows how.
func TestOptionsOfSampling(t *testing.T) {
	model := open(t)
	sampled := []llama.PredictOption{llama.SetTemperature(1.2), llama.SetSeed(3), llama.SetTokens(60), llama.SetPenalty(1)}
	with := func(opts ...llama.PredictOption) string {
		return predict(t, model, prompt, append(append([]llama.PredictOption{}, sampled...), opts...)...)
	}
	plain := with()
	for name, option := range map[string]llama.PredictOption{
		"SetSeed": llama.SetSeed(4), "SetTemperature": llama.SetTemperature(.3), "SetTopK": llama.SetTopK(2), "SetTopP": llama.SetTopP(.2),
		"SetTypicalP": llama.SetTypicalP(.2), "SetPenalty": llama.SetPenalty(2), "SetFrequencyPenalty": llama.SetFrequencyPenalty(3),
		"SetPresencePenalty": llama.SetPresencePenalty(3), "SetMirostat": llama.SetMirostat(1), "SetLogitBias": llama.SetLogitBias("300+20"),
		"WithGrammar": llama.WithGrammar("root ::= [a-z]+"),
	} {
		assert.NotEqual(t, plain, with(option), name)
	}
	assert.Equal(t, plain, with(llama.SetPenalty(2), llama.SetRepeat(0)), "no tokens to penalise")
	assert.Equal(t, with(llama.SetPenalty(2), llama.SetRepeat(2048)), with(llama.SetPenalty(2), llama.SetRepeat(-1)), "the context")
}

func TestOptionsOfLength(t *testing.T) {
	model := open(t)
	predict(t, model, prompt, llama.SetTokens(7))
	assert.Equal(t, 7, timings(t, model).Generated)
	n := 0
	predict(t, model, prompt, llama.SetTokens(0), llama.IgnoreEOS, llama.SetTokenCallback(func(string) bool { n++; return n < 300 }))
	assert.Equal(t, 300, n, "0 is no end, as upstream has it")

	// LESS evicts after each micro-batch, which is no larger than the batch
	less := open(t, sparse(64))
	long := strings.Repeat(prompt+"\n", 6)
	whole := predict(t, less, long, llama.SetTokens(120))
	predict(t, less, "package other") // or a checkpoint would have the prompt
	assert.NotEqual(t, whole, predict(t, less, long, llama.SetTokens(120), llama.SetBatch(8)))
}

// threads is how many of n a call takes.
func threads(t *testing.T, model *llama.LLama, n int) int {
	t.Helper()
	debugLog(t)
	lines := captureLog(t)
	predict(t, model, prompt, llama.SetThreads(n), llama.SetTokens(1))
	m := regexp.MustCompile(`set_n_threads: n_threads = (\d+)`).FindStringSubmatch(lines.String())
	require.NotNil(t, m)
	n, err := strconv.Atoi(m[1])
	require.NoError(t, err)
	return n
}

// Threads beyond the CPUs would take turns at waiting. llama.cpp logs how many it is to use.
func TestThreadsOnePerCPU(t *testing.T) {
	model := open(t)
	used := func(n int) int { return threads(t, model, n) }
	assert.Equal(t, 1, used(1))
	most := used(runtime.NumCPU() + 2)
	t.Logf("%d threads of %d CPUs", most, runtime.NumCPU())
	assert.GreaterOrEqual(t, most, 1)
	assert.LessOrEqual(t, most, runtime.NumCPU()) // less where a control group says so
	assert.Equal(t, most, used(100000))
	for _, unset := range []int{0, -1} {
		assert.Equal(t, used(4), used(unset), "what ggml takes for it, as in upstream")
	}
}

func TestEmbeddingsNotEnabled(t *testing.T) {
	model := open(t)
	_, err := model.Embeddings(prompt)
	assertSays(t, err, lesskv.ErrArgument, "without embeddings")
	_, err = model.TokenEmbeddings([]int{1})
	assertSays(t, err, lesskv.ErrArgument, "without embeddings")
}

// A model may give embeddings of another width than its own.
func TestEmbeddingsOfTheirOwnWidth(t *testing.T) {
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "narrow.gguf")
	require.NoError(t, m.WriteKeys(path, gguf.F32, 1, gguf.KeyValue{Key: "embedding_length_out", Value: uint32(8)}))
	for _, cache := range []llama.ModelOption{lesskv.Disable(), sparse(40)} {
		model := load(t, path, llama.SetContext(256), llama.EnableEmbeddings, cache)
		vector, err := model.Embeddings(prompt)
		require.NoError(t, err)
		assert.Len(t, vector, 8)
	}
}

func TestDebug(t *testing.T) {
	lines := captureLog(t)
	model := open(t, lesskv.Disable())
	predict(t, model, prompt)
	assert.NotContains(t, lines.String(), "predict:")
	predict(t, model, prompt, llama.Debug)
	assert.Contains(t, lines.String(), "generated 24 tokens")
}
