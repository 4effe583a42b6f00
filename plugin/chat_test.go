package lesskv_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// writeTemplated writes a tiny model with a chat template and returns its path.
func writeTemplated(t *testing.T, template string) string {
	t.Helper()
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	v := tinymodels.SentencePiece("<s>", "</s>", "<|im_start|>", "<|im_end|>")
	v.ChatTemplate = template
	path := filepath.Join(t.TempDir(), "chat.gguf")
	require.NoError(t, m.WriteVocabulary(path, gguf.F32, 1, v))
	return path
}

// A chat is in the form of the model's template, where llama.cpp knows that by its look.
func TestChatPrompt(t *testing.T) {
	messages := []lesskv.Message{{Role: "system", Text: "Be brief."}, {Role: "user", Text: "Hi"}, {Role: "assistant", Text: "Hello"}, {Role: "user", Text: "And?"}}
	for name, test := range map[string]struct{ template, want string }{
		"ChatML": {"{% for m in messages %}<|im_start|>{{ m.role }}", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"},
		"Gemma":  {"<start_of_turn>", "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n"},
	} {
		model := load(t, writeTemplated(t, test.template), sparse(64))
		got, err := lesskv.ChatPrompt(model, messages...)
		require.NoError(t, err)
		assert.Equal(t, test.want, got, name)
		got, err = lesskv.ChatPrompt(model)
		require.NoError(t, err)
		assert.NotContains(t, got, "Hi", "no message")
		_, err = lesskv.ChatPrompt(model, lesskv.Message{Role: "user", Text: "a\x00b"})
		assertSays(t, err, lesskv.ErrArgument, "NUL")
	}
	for says, template := range map[string]string{"has no chat template": "", "none that llama.cpp knows": "{% for m in messages %}{{ m }}{% endfor %}"} {
		_, err := lesskv.ChatPrompt(load(t, writeTemplated(t, template), sparse(64)), messages...)
		assertSays(t, err, lesskv.ErrMissing, says)
	}
}
