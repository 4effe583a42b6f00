package tinymodels

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/weights/gguf"
)

// A Vocabulary is what a model's tokenizer needs. Make one with SentencePiece or BytePair.
type Vocabulary struct {
	model, pre string // tokenizer.ggml.model, .pre
	tokens     []string
	types      []int32
	scores     []float32
	merges     []string
	special    map[string]string // key, of tokenizer.ggml, without _token_id, and the token
	addBOS     bool
	noPrefix   bool // no space before a text
}

const ( // llama.cpp's llama_token_type
	normal   = int32(1)
	unknown  = int32(2)
	control  = int32(3)
	byteType = int32(6)
)

// plain is the vocabulary of all tiny models: three control tokens, the 256 bytes, printable ASCII, and frequent pairs of
// letters, so that tokenising has something to merge.
func plain() Vocabulary { return SentencePiece("<s>", "</s>") }

// SentencePiece is a vocabulary of the kind that Llama 2, Gemma, Phi 3 and Mistral have, with byte fallback. The control
// tokens come after <unk>; bos and eos begin and end a text.
func SentencePiece(bos, eos string, more ...string) Vocabulary {
	v := Vocabulary{model: "llama", special: map[string]string{"unknown": "<unk>", "bos": bos, "eos": eos}, addBOS: true}
	v.add(unknown, "<unk>")
	v.add(control, append([]string{bos, eos}, more...)...)
	for c := range 256 {
		v.add(byteType, fmt.Sprintf("<0x%02X>", c))
	}
	first := len(v.tokens)
	v.add(normal, "▁")
	for c := '!'; c <= '~'; c++ {
		v.add(normal, string(c))
	}
	v.add(normal, strings.Fields("th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le")...)
	v.scores = make([]float32, len(v.tokens))
	for i := range v.scores[first:] {
		v.scores[first+i] = -float32(i)
	}
	return v
}

// SentencePieceTokens does the same with tokens in a given order, their scores, and their types, which are numbered like
// SentencePiece's own. No space is put before a text.
func SentencePieceTokens(tokens []string, scores []float32, types []int32, unk, bos, eos string) Vocabulary {
	return Vocabulary{
		model: "llama", tokens: tokens, scores: scores, types: types, noPrefix: true, addBOS: true,
		special: map[string]string{"unknown": unk, "bos": bos, "eos": eos},
	}
}

// BytePair is a vocabulary of the kind that Llama 3, Qwen and SmolLM have: the 256 bytes, what the merges ("a b") make of them,
// and then control tokens. pre names the way in which a text is cut into words first. bos may be "".
func BytePair(pre string, merges []string, bos, eos string, more ...string) Vocabulary {
	var tokens []string
	for c := range 256 {
		tokens = append(tokens, byteRune(byte(c)))
	}
	for _, m := range merges {
		tokens = append(tokens, strings.ReplaceAll(m, " ", ""))
	}
	return BytePairTokens(pre, tokens, merges, bos, eos, more...)
}

// BytePairTokens does the same with tokens in a given order.
func BytePairTokens(pre string, tokens, merges []string, bos, eos string, more ...string) Vocabulary {
	v := Vocabulary{model: "gpt2", pre: pre, merges: merges, special: map[string]string{"eos": eos}, addBOS: bos != ""}
	v.add(normal, tokens...)
	if bos != "" {
		v.special["bos"] = bos
		v.add(control, bos)
	}
	v.add(control, append([]string{eos}, more...)...)
	return v
}

// byteRune is the character that stands for a byte in such a vocabulary: itself if it is printable, else one from 256 on.
func byteRune(c byte) string {
	n := rune(256)
	for b := range 256 {
		printable := b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae
		switch {
		case b == int(c) && printable:
			return string(rune(b))
		case b == int(c):
			return string(n)
		case !printable:
			n++
		}
	}
	panic("a byte above 255")
}

func (v *Vocabulary) add(kind int32, tokens ...string) {
	for _, t := range tokens {
		v.tokens = append(v.tokens, t)
		v.types = append(v.types, kind)
	}
}

// Token returns the number of a token, -1 if there is none.
func (v Vocabulary) Token(text string) int { return slices.Index(v.tokens, text) }

func (v Vocabulary) pairs() []gguf.KeyValue {
	pairs := []gguf.KeyValue{
		{Key: "model", Value: v.model}, {Key: "tokens", Value: v.tokens}, {Key: "token_type", Value: v.types}, {Key: "add_bos_token", Value: v.addBOS},
	}
	if v.pre != "" {
		pairs = append(pairs, gguf.KeyValue{Key: "pre", Value: v.pre})
	}
	if v.noPrefix {
		pairs = append(pairs, gguf.KeyValue{Key: "add_space_prefix", Value: false})
	}
	if v.scores != nil {
		pairs = append(pairs, gguf.KeyValue{Key: "scores", Value: v.scores})
	}
	if v.merges != nil {
		pairs = append(pairs, gguf.KeyValue{Key: "merges", Value: v.merges})
	}
	for _, key := range []string{"unknown", "bos", "eos"} { // always in this order
		if token, ok := v.special[key]; ok {
			pairs = append(pairs, gguf.KeyValue{Key: key + "_token_id", Value: uint32(v.Token(token))})
		}
	}
	for i := range pairs {
		pairs[i].Key = "tokenizer.ggml." + pairs[i].Key
	}
	return pairs
}
