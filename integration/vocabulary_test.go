package integration

import (
	"bufio"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/patches/pins"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// tokenizers is a Go module that keeps the vocabularies of two models for its own tests, as they were published.
var tokenizers = pins.Module{Path: "github.com/ollama/ollama", Version: "v0.17.4", Sum: "h1:X3KNm9x4BlHqk/AXMGtC7pBAFd46nmJmy8yDaBZLo9s="}

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

// Gemma 2's own vocabulary, from that module, in SentencePiece's file format (sentencepiece_model.proto: ModelProto.pieces is
// field 1; of a piece its text is 1, its score 2, its type 3).
func TestGemmaVocabulary(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(moduleDir(t, tokenizers), "tokenizer", "testdata", "gemma2", "tokenizer.model"))
	require.NoError(t, err)
	var tokens []string
	var scores []float32
	var types []int32
	fields(t, data, func(field protowire.Number, piece []byte, _ uint64) {
		if field != 1 {
			return
		}
		text, score, kind := "", float32(0), int32(1)
		fields(t, piece, func(field protowire.Number, bytes []byte, number uint64) {
			switch field {
			case 1:
				text = string(bytes)
			case 2:
				score = math.Float32frombits(uint32(number))
			case 3:
				kind = int32(number)
			}
		})
		if text == "<start_of_turn>" || text == "<end_of_turn>" {
			kind = 3 // control, as converters have it
		}
		tokens, scores, types = append(tokens, text), append(scores, score), append(types, kind)
	})
	require.Len(t, tokens, 256000)
	v := tinymodels.SentencePieceTokens(tokens, scores, types, "<unk>", "<bos>", "<eos>")
	m, err := tinymodels.Find("gemma2")
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, m.WriteVocabulary(path, gguf.F16, 1, v))
	model := load(t, path)
	for text, want := range map[string]string{
		"Hello world": "<bos> Hello ▁world",
		"<start_of_turn>user\nWrite a hello world program<end_of_turn>\n<start_of_turn>model\n": "<bos> <start_of_turn> user \n Write ▁a ▁hello ▁world ▁program <end_of_turn> \n <start_of_turn> model \n",
		"请考试 1234":   "<bos> 请 考试 ▁ 1 2 3 4",
		"\U000e01ef": "<bos> <0xF3> <0xA0> <0x87> <0xAF>",
	} {
		_, numbers, err := model.TokenizeString(text)
		require.NoError(t, err)
		got := make([]string, len(numbers))
		for i, n := range numbers {
			got[i] = tokens[n]
		}
		assert.Equal(t, want, strings.Join(got, " "), text)
	}
	testVocabulary(t, model, v, []string{"<start_of_turn>"}, []string{"<eos>", "<end_of_turn>"}, 0)
}

// fields calls f for the fields of a protocol buffer's message.
func fields(t *testing.T, data []byte, f func(field protowire.Number, bytes []byte, number uint64)) {
	t.Helper()
	for len(data) > 0 {
		field, kind, n := protowire.ConsumeTag(data)
		require.NoError(t, protowire.ParseError(n))
		data = data[n:]
		var bytes []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(data)
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(data)
		case protowire.Fixed32Type:
			var bits uint32
			bits, n = protowire.ConsumeFixed32(data)
			number = uint64(bits)
		default:
			n = protowire.ConsumeFieldValue(field, kind, data)
		}
		require.NoError(t, protowire.ParseError(n))
		f(field, bytes, number)
		data = data[n:]
	}
}

// Llama 3.2's own vocabulary, from the same place: token numbers as that model's
// tokenizer gives them.
func TestLlama3Vocabulary(t *testing.T) {
	dir := filepath.Join(moduleDir(t, tokenizers), "tokenizer", "testdata", "llama3.2")
	data, err := os.ReadFile(filepath.Join(dir, "encoder.json"))
	require.NoError(t, err)
	numbers := map[string]int{}
	require.NoError(t, json.Unmarshal(data, &numbers))
	tokens := make([]string, len(numbers))
	for s, i := range numbers {
		tokens[i] = s
	}
	file, err := os.Open(filepath.Join(dir, "vocab.bpe"))
	require.NoError(t, err)
	defer file.Close()
	var merges []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if line := lines.Text(); line != "" && !strings.HasPrefix(line, "#version") {
			merges = append(merges, line)
		}
	}
	more := []string{"<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
		"<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"}
	v := tinymodels.BytePairTokens("llama-bpe", tokens[:128000], merges, "<|begin_of_text|>", "<|end_of_text|>", more...)
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
