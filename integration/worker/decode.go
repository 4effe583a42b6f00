package worker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Tokenize returns a text's tokens; special adds those that the model wants at the ends.
func (w *Worker) Tokenize(text string, special bool) ([]int32, error) {
	r, err := w.call("tokenize", []byte(text), "special", special)
	if err != nil {
		return nil, err
	}
	return view[int32](r.payload), nil
}

// TokenizeLong is Tokenize of a text that is cut into pieces of so many bytes at most (more than 4), at ends of lines where there are
// any: llama.cpp's time grows with the square of a piece's. special is for the first.
func (w *Worker) TokenizeLong(text string, piece int, special bool) (all []int32, err error) {
	for len(text) > 0 {
		n := len(text)
		if n > piece {
			if n = strings.LastIndexByte(text[:piece], '\n') + 1; n == 0 {
				for n = piece; n > piece-utf8.UTFMax && !utf8.RuneStart(text[n]); n-- { // a character stays whole
				}
			}
		}
		tokens, err := w.Tokenize(text[:n], special)
		if err != nil {
			return nil, err
		}
		all, text, special = append(all, tokens...), text[n:], false
	}
	return all, nil
}

// StartToken returns the token that the open model wants at the start of a sequence, or none.
func (w *Worker) StartToken() ([]int32, error) {
	tokens, err := w.Tokenize("", true) // those of both ends
	return tokens[:min(1, len(tokens))], err
}

// TokenizeTemplate returns a text's tokens, with special ones where the text spells them, as chat templates do.
func (w *Worker) TokenizeTemplate(text string) ([]int32, error) {
	r, err := w.call("tokenize", []byte(text), "special", false, "parse", true)
	if err != nil {
		return nil, err
	}
	return view[int32](r.payload), nil
}

// Detokenize returns the text of tokens; special ones have a text only if special is set.
func (w *Worker) Detokenize(tokens []int32, special bool) (string, error) {
	r, err := w.call("detokenize", raw(tokens), "special", special)
	if err != nil {
		return "", err
	}
	return string(r.payload), nil
}

// Rows says for which tokens of a batch a row of logits is wanted.
type Rows string

const (
	None Rows = "none"
	Last Rows = "last"
	All  Rows = "all"
)

// Output is what a decode computed: for every row that was wanted, Width values: logits, or embeddings where
// Config.Embeddings was set.
type Output struct {
	Width   int
	Values  []float32     // [rows][Width]
	Elapsed time.Duration // inside llama_decode
}

// Len returns the number of rows.
func (o *Output) Len() int { return len(o.Values) / max(o.Width, 1) }

// Row returns row i, in place.
func (o *Output) Row(i int) []float32 { return o.Values[i*o.Width : (i+1)*o.Width : (i+1)*o.Width] }

func (r *reply) output() (*Output, error) {
	o := &Output{Width: r.int("width"), Values: view[float32](r.payload)}
	if _, ok := r.fields["us"]; ok {
		o.Elapsed = time.Duration(r.integer("us")) * time.Microsecond
	}
	if n := r.int("rows"); r.err == nil && n*o.Width != len(o.Values) {
		r.err = fmt.Errorf("worker: %d values in a reply: want %d rows of %d", len(o.Values), n, o.Width)
	}
	return o, r.err
}

func (w *Worker) output(verb string, payload []byte, args ...any) (*Output, error) {
	r, err := w.call(verb, payload, args...)
	if err != nil {
		return nil, err
	}
	return r.output()
}

// Decode decodes tokens of one sequence at positions pos, pos+1, …, in one llama_decode; at most Info.Batch of them. The error's
// code is llama_decode's.
func (w *Worker) Decode(seq, pos int, tokens []int32, rows Rows) (*Output, error) {
	return w.output("decode", raw(tokens), "seq", seq, "pos", pos, "rows", string(rows))
}

// Token is one token of a batch that is spelled out.
type Token struct {
	ID, Pos, Seq int32
	Row          bool    // its logits are wanted
	Also         []int32 // one more sequence that it belongs to
}

// DecodeEach decodes one batch in which tokens may be of several sequences.
func (w *Worker) DecodeEach(tokens []Token) (*Output, error) {
	v := make([]int32, 0, 5*len(tokens))
	for _, t := range tokens {
		row, other := int32(0), int32(-1)
		if t.Row {
			row = 1
		}
		if len(t.Also) > 1 {
			return nil, errors.New("worker: a token of more than two sequences")
		}
		for _, s := range t.Also {
			other = s
		}
		v = append(v, t.ID, t.Pos, row, t.Seq, other)
	}
	return w.output("decode", raw(v), "each", true)
}

// Embed decodes embeddings, of Info.Embd values each, and returns the row of the last. Of a model with M-RoPE they have four positions
// each, section by section: all of the first, all of the second, …
func (w *Worker) Embed(seq int, positions []int32, embeddings []float32) (*Output, error) {
	return w.output("embed", append(slices.Clone(raw(positions)), raw(embeddings)...), "seq", seq)
}

// Encode runs the encoder of a model that has a decoder too.
func (w *Worker) Encode(tokens []int32) (*Output, error) {
	return w.output("encode", raw(tokens), "rows", string(All))
}

// Feed decodes tokens of any number, in calls of Info.Batch, and returns the rows of all.
func (w *Worker) Feed(seq, pos int, tokens []int32, rows Rows) (*Output, error) {
	w.mu.Lock()
	batch := w.info.Batch
	w.mu.Unlock()
	if batch == 0 || len(tokens) <= batch {
		return w.Decode(seq, pos, tokens, rows)
	}
	all := new(Output)
	for i := 0; i < len(tokens); i += batch {
		end := min(i+batch, len(tokens))
		want := rows
		if rows == Last && end < len(tokens) {
			want = None
		}
		out, err := w.Decode(seq, pos+i, tokens[i:end], want)
		if err != nil {
			return nil, fmt.Errorf("tokens %d to %d: %w", i, end, err)
		}
		if all.Values == nil && rows == All {
			all.Values = make([]float32, 0, len(tokens)*out.Width)
		}
		all.Width = out.Width
		all.Values = append(all.Values, out.Values...)
		all.Elapsed += out.Elapsed
	}
	return all, nil
}

// Greedy decodes first at position pos and then, one by one, the most likely token that follows, n decodes in all. It returns
// the n tokens that were found; with rows, the output has the logits they were found in.
func (w *Worker) Greedy(seq, pos int, first int32, n int, rows bool) ([]int32, *Output, error) {
	r, err := w.call("greedy", nil, "seq", seq, "pos", pos, "token", first, "n", n, "rows", rows)
	if err != nil {
		return nil, nil, err
	}
	if len(r.payload) < 4*n {
		return nil, nil, fmt.Errorf("worker: %d bytes in a reply: want %d tokens", len(r.payload), n)
	}
	o := &Output{Values: view[float32](r.payload[4*n:]), Elapsed: time.Duration(r.integer("us")) * time.Microsecond}
	if n > 0 {
		o.Width = len(o.Values) / n
	}
	return view[int32](r.payload[:4*n]), o, r.err
}

// Threads sets the number of threads for all that follows.
func (w *Worker) Threads(n int) error {
	_, err := w.call("threads", nil, "n", n)
	return err
}

// Causal turns causal attention on or off.
func (w *Worker) Causal(on bool) error {
	_, err := w.call("causal", nil, "on", on)
	return err
}

// Beside makes a context of another model that takes part in the open one's, and frees it again.
func (w *Worker) Beside(model string) error {
	_, err := w.call("beside", nil, "path", model)
	return err
}

// Train asks a context with LESS to be trained, which fails.
func (w *Worker) Train() error {
	_, err := w.call("train", nil)
	return err
}

// AbortAfter makes the next decode stop (code 2) once nodes graph nodes and one more were computed; -1: never.
func (w *Worker) AbortAfter(nodes int) error {
	_, err := w.call("abort", nil, "after", nodes)
	return err
}
