// Package greedy judges texts that were written greedily. Two computations that round differently need not write the same: where two
// tokens are all but equally likely, rounding decides, and from there on the texts have nothing in common. So no text is compared with
// another. A worker reads what was written, token by token, and each token must be its most likely one, or tied with it.
package greedy

import (
	"fmt"
	"math"
	"strings"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Tie is by how much a token's logit may fall short of the largest: twice what the contract lets two computations of a logit differ by.
const Tie = 4e-2

// A Vocabulary is a SentencePiece one.
type Vocabulary struct {
	Pieces []string // each token's bytes, as a callback gets them
	Ends   int32    // the token that ends a text; it is never chosen
}

// ReadVocabulary reads a model's.
func ReadVocabulary(path string) (*Vocabulary, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tokens, err := gguf.GetArray[string](f, "tokenizer.ggml.tokens")
	if err != nil {
		return nil, err
	}
	types, err := gguf.GetArray[int32](f, "tokenizer.ggml.token_type")
	if err != nil {
		return nil, err
	}
	eos, err := gguf.Get[uint32](f, "tokenizer.ggml.eos_token_id")
	if err != nil {
		return nil, err
	}
	for i, s := range tokens {
		switch types[i] {
		case 2, 3: // unknown, control
			tokens[i] = ""
		case 6:
			var b byte
			if _, err := fmt.Sscanf(s, "<0x%02X>", &b); err != nil {
				return nil, fmt.Errorf("%s: token %d, %q, is no byte: %w", path, i, s, err)
			}
			tokens[i] = strings.TrimPrefix(string([]byte{b}), "\x00") // a C string to the callback
		default:
			tokens[i] = strings.ReplaceAll(s, "▁", " ")
		}
	}
	return &Vocabulary{tokens, int32(eos)}, nil
}

// Follow reads a text. logits are those of its first token, and next returns those of the token after one. It returns how many tokens
// were tied with a more likely one.
func (v *Vocabulary) Follow(text []string, logits []float32, next func(token int32) ([]float32, error)) (ties int, err error) {
	for i, piece := range text {
		best, token := int32(-1), int32(-1) // of all, and of those with these bytes
		for id, x := range logits {
			id := int32(id)
			switch {
			case math.IsNaN(float64(x)):
				return ties, fmt.Errorf("token %d: the logit of token %d is no number", i, id)
			case id == v.Ends || math.IsInf(float64(x), -1):
				continue
			}
			if best < 0 || x > logits[best] {
				best = id
			}
			if v.Pieces[id] == piece && (token < 0 || x > logits[token]) {
				token = id
			}
		}
		switch {
		case token < 0:
			return ties, fmt.Errorf("token %d is %q, which is none that may be written here", i, piece)
		case logits[best]-logits[token] > Tie:
			return ties, fmt.Errorf("token %d is %q with a logit of %g: want %q, with %g", i, piece, logits[token], v.Pieces[best], logits[best])
		case token != best:
			ties++
		}
		if i < len(text)-1 {
			if logits, err = next(token); err != nil {
				return ties, fmt.Errorf("token %d: %w", i, err)
			}
		}
	}
	return ties, nil
}

// A Context is sequence 0 of a worker. When it is full it keeps the first tokens, drops the older half of the rest, and what stays moves
// up, as in go-llama.cpp.
type Context struct {
	Worker *worker.Worker
	Size   int // 0: it is never full
	Keep   int

	pos int
}

// Begin decodes a text at once, and returns the logits of the token after it.
func (c *Context) Begin(text string) ([]float32, error) {
	tokens, err := c.Worker.Tokenize(text, true)
	if err != nil {
		return nil, err
	}
	out, err := c.Worker.Feed(0, 0, tokens, worker.Last)
	if err != nil {
		return nil, err
	}
	c.pos = len(tokens)
	return out.Row(0), nil
}

// Tokens is the number of tokens so far that have not been dropped.
func (c *Context) Tokens() int { return c.pos }

// Next decodes a token, and returns the logits of the one after it.
func (c *Context) Next(token int32) ([]float32, error) {
	if c.Size > 0 && c.pos == c.Size {
		drop := (c.pos - c.Keep) / 2
		if err := c.Worker.SeqRemove(0, c.Keep, c.Keep+drop); err != nil {
			return nil, err
		}
		if err := c.Worker.SeqAdd(0, c.Keep+drop, worker.End, -drop); err != nil {
			return nil, err
		}
		c.pos -= drop
	}
	out, err := c.Worker.Decode(0, c.pos, []int32{token}, worker.Last)
	if err != nil {
		return nil, err
	}
	c.pos++
	return out.Row(0), nil
}
