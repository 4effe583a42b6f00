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
	file       []gguf.KeyValue // all of it, of one that was read

	ChatTemplate string // tokenizer.chat_template; "": none
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
	v := Vocabulary{model: "gpt2", pre: pre, merges: merges, special: map[string]string{"eos": eos}, addBOS: bos != ""}
	v.add(normal, tokens...)
	if bos != "" {
		v.special["bos"] = bos
		v.add(control, bos)
	}
	v.add(control, append([]string{eos}, more...)...)
	return v
}

// ReadVocabulary reads the vocabulary of a GGUF file.
func ReadVocabulary(path string) (Vocabulary, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return Vocabulary{}, err
	}
	defer f.Close()
	var v Vocabulary
	add := func(key string, value any, err error) error {
		v.file = append(v.file, gguf.KeyValue{Key: key, Value: value})
		return err
	}
	for _, key := range vocabularyKeys {
		key = "tokenizer.ggml." + key
		if !f.Has(key) {
			continue
		}
		switch key[strings.LastIndexAny(key, ".")+1:] {
		case "tokens":
			v.tokens, err = gguf.GetArray[string](f, key)
			err = add(key, v.tokens, err)
		case "merges":
			merges, e := gguf.GetArray[string](f, key)
			err = add(key, merges, e)
		case "token_type":
			types, e := gguf.GetArray[int32](f, key)
			err = add(key, types, e)
		case "scores":
			scores, e := gguf.GetArray[float32](f, key)
			err = add(key, scores, e)
		case "model", "pre":
			text, e := gguf.Get[string](f, key)
			err = add(key, text, e)
		default:
			if strings.HasSuffix(key, "_id") {
				id, e := gguf.Get[uint32](f, key)
				err = add(key, id, e)
			} else {
				is, e := gguf.Get[bool](f, key)
				err = add(key, is, e)
			}
		}
		if err != nil {
			return Vocabulary{}, err
		}
	}
	return v, nil
}

// vocabularyKeys are those of tokenizer.ggml that say how a text is cut, and where one ends.
var vocabularyKeys = []string{
	"model", "pre", "tokens", "token_type", "scores", "merges",
	"bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id", "seperator_token_id", "padding_token_id", "cls_token_id", "mask_token_id",
	"add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces",
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
	if v.file != nil {
		return v.file
	}
	pairs := []gguf.KeyValue{
		{Key: "model", Value: v.model}, {Key: "tokens", Value: v.tokens}, {Key: "token_type", Value: v.types}, {Key: "add_bos_token", Value: v.addBOS},
	}
	if v.pre != "" {
		pairs = append(pairs, gguf.KeyValue{Key: "pre", Value: v.pre})
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
	if v.ChatTemplate != "" {
		pairs = append(pairs, gguf.KeyValue{Key: "tokenizer.chat_template", Value: v.ChatTemplate})
	}
	return pairs
}
