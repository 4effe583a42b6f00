package integration

import (
	"os"
	"path/filepath"
	"slices"
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

// merges make one token of up to four digits, if the text is not cut between them.
var merges = []string{"1 2", "12 3", "123 4"}

// families are the vocabularies of today's models in small: their kind, their control tokens, how they cut texts.
var families = []struct {
	name    string
	vocab   tinymodels.Vocabulary
	markers []string // are one token each
	ends    []string // end a generation
	digits  int      // tokens that "1234" makes; 0: no merges
}{
	{"Llama 3", tinymodels.BytePair("llama-bpe", merges, "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
		[]string{"<|start_header_id|>", "<|end_header_id|>"}, []string{"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"}, 2},
	{"Qwen 3", tinymodels.BytePair("qwen2", merges, "", "<|im_end|>", "<|endoftext|>", "<|im_start|>"),
		[]string{"<|im_start|>"}, []string{"<|im_end|>", "<|endoftext|>"}, 4},
	{"Gemma 3", tinymodels.SentencePiece("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
		[]string{"<start_of_turn>"}, []string{"<eos>", "<end_of_turn>"}, 0},
	{"Phi 3", tinymodels.SentencePiece("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
		[]string{"<|user|>", "<|assistant|>"}, []string{"<|endoftext|>", "<|end|>"}, 0},
	{"Mistral", tinymodels.SentencePiece("<s>", "</s>", "[INST]", "[/INST]"),
		[]string{"[INST]", "[/INST]"}, []string{"</s>"}, 0},
	{"Mistral Nemo", tinymodels.BytePair("tekken", merges, "<s>", "</s>", "[INST]", "[/INST]"),
		[]string{"[INST]", "[/INST]"}, []string{"</s>"}, 4},
	{"SmolLM 2", tinymodels.BytePair("smollm", merges, "", "<|im_end|>", "<|endoftext|>", "<|im_start|>"),
		[]string{"<|im_start|>"}, []string{"<|im_end|>", "<|endoftext|>"}, 4},
}

// The tokenizer and the end-of-generation tokens of a family are honoured, with LESS off and on.
func TestVocabularies(t *testing.T) {
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "model.gguf")
			require.NoError(t, m.WriteVocabulary(path, gguf.F16, 1, f.vocab))
			for name, cache := range map[string]llama.ModelOption{
				"off": lesskv.Disable(),
				"on":  lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Adapter: lesskv.NoAdapter}),
			} {
				t.Run(name, func(t *testing.T) { testVocabulary(t, load(t, path, cache), f.vocab, f.markers, f.ends, f.digits) })
			}
		})
	}
}

func testVocabulary(t *testing.T, model *llama.LLama, v tinymodels.Vocabulary, markers, ends []string, digits int) {
	count := func(text string) int {
		n, _, err := model.TokenizeString(text)
		require.NoError(t, err)
		return int(n)
	}
	base := count("a")
	for _, marker := range append(markers, ends...) {
		_, tokens, err := model.TokenizeString("a" + marker)
		require.NoError(t, err)
		assert.Len(t, tokens, base+1, marker)
		assert.EqualValues(t, v.Token(marker), tokens[len(tokens)-1], marker)
		_, tokens, err = model.TokenizeString("a"+marker, lesskv.PlainText)
		require.NoError(t, err)
		assert.NotContains(t, tokens, int32(v.Token(marker)), marker)
	}
	if digits > 0 {
		assert.Equal(t, base+digits, count("a1234"))
	}
	say := func(token string, opts ...llama.PredictOption) (string, lesskv.Timings) {
		out, err := model.Predict("a", append(opts, llama.SetThreads(1), llama.SetTokens(8), llama.SetTemperature(0), llama.SetPenalty(1),
			llama.SetLogitBias(strconv.Itoa(v.Token(token))+"+1000"))...)
		require.NoError(t, err)
		timings, err := lesskv.LastTimings(model)
		require.NoError(t, err)
		return out, timings
	}
	for _, end := range ends {
		out, timings := say(end)
		assert.Empty(t, out, end)
		assert.Equal(t, "eog", timings.Stop, end)
		_, timings = say(end, llama.IgnoreEOS)
		assert.Equal(t, "length", timings.Stop, end)
		assert.Equal(t, 8, timings.Generated, end)
	}
	for _, marker := range markers {
		out, timings := say(marker)
		assert.Equal(t, "length", timings.Stop, marker)
		assert.Empty(t, out, "control tokens have no text")
	}
}

// A word of any length is cut, where llama.cpp's matcher calls itself for each character: it ran off the stack.
func TestLongWord(t *testing.T) {
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	for _, f := range families {
		path := filepath.Join(t.TempDir(), "model.gguf")
		require.NoError(t, m.WriteVocabulary(path, gguf.F16, 1, f.vocab))
		n, _, err := load(t, path).TokenizeString(strings.Repeat("a", 1_000_000))
		require.NoError(t, err, f.name)
		assert.Greater(t, n, int32(100_000), f.name)
	}
}

// The whole vocabularies of 15 models, as upstream's release has them, each with texts and their tokens.
func TestUpstreamsVocabularies(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 60 MB of vocabularies")
	}
	dir := filepath.Join(upstreamsTests(t), "models")
	files, err := filepath.Glob(filepath.Join(dir, "*.gguf.out"))
	require.NoError(t, err)
	require.Len(t, files, 15)
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	for _, file := range files {
		file = strings.TrimSuffix(file, ".out")
		t.Run(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "ggml-vocab-"), ".gguf"), func(t *testing.T) {
			v, err := tinymodels.ReadVocabulary(file)
			require.NoError(t, err)
			path := filepath.Join(t.TempDir(), "model.gguf")
			require.NoError(t, m.WriteVocabulary(path, gguf.F16, 1, v))
			model := load(t, path)
			tokenize := func(text string) []int32 {
				_, tokens, err := model.TokenizeString(text, lesskv.PlainText)
				require.NoError(t, err, "%q", text)
				return tokens
			}
			texts, err := os.ReadFile(file + ".inp")
			require.NoError(t, err)
			lines, err := os.ReadFile(file + ".out")
			require.NoError(t, err)
			want := strings.Split(strings.TrimSuffix(string(lines), "\n"), "\n")
			around := tokenize("")
			for i, text := range strings.Split(string(texts), "\n__ggml_vocab_test__\n") {
				if text == "" {
					continue
				}
				numbers := []int32{}
				for _, s := range strings.Fields(want[i]) {
					n, err := strconv.Atoi(s)
					require.NoError(t, err)
					numbers = append(numbers, int32(n))
				}
				whole := make([][]int32, len(around)+1) // with what begins and ends every text
				for j := range whole {
					whole[j] = slices.Concat(around[:j], numbers, around[j:])
				}
				assert.Contains(t, whole, tokenize(text), "%q", text)
			}
		})
	}
}

// Llama 3's own vocabulary: token numbers as that model's tokenizer gives them, and its ends of a text.
func TestLlama3Vocabulary(t *testing.T) {
	v, err := tinymodels.ReadVocabulary(filepath.Join(upstreamsTests(t), "models", "ggml-vocab-llama-bpe.gguf"))
	require.NoError(t, err)
	require.Equal(t, 128009, v.Token("<|eot_id|>"))
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, m.WriteVocabulary(path, gguf.F16, 1, v))
	model := load(t, path)
	for text, want := range map[string][]int32{
		"hello world":     {128000, 15339, 1917},
		"hello<|eot_id|>": {128000, 15339, 128009},
		"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello": {128000, 128000, 128006, 882, 128007, 271, 15339},
	} {
		_, got, err := model.TokenizeString(text)
		require.NoError(t, err)
		assert.Equal(t, want, got, text)
	}
	testVocabulary(t, model, v, []string{"<|start_header_id|>"}, []string{"<|eot_id|>", "<|end_of_text|>"}, 0)
}
