package lesskv

import (
	"context"

	llama "github.com/go-skynet/go-llama.cpp"
)

// CacheStats are what a model's cache holds: its bytes, beside those of the cache that it replaces, and its tokens layer by
// layer. A model without LESS has them too, with Enabled false.
type CacheStats = llama.LESSKVStats

// LayerStats are one layer's part of CacheStats.
type LayerStats = llama.LESSKVLayer

// Stats returns what a model's cache holds now. It fails with ErrBusy while the model serves a call, and with ErrFailed where the server of a
// device has died and a call found that.
func Stats(model *llama.LLama) (CacheStats, error) { return model.LESSKVStats() }

// Timings are what the last Predict, SpeculativeSampling or Eval of a model did, and how long it took.
type Timings = llama.LESSKVTimings

// LastTimings returns what the last Predict, SpeculativeSampling or Eval of a model did. It fails with ErrBusy while the model serves a call.
func LastTimings(model *llama.LLama) (Timings, error) { return model.LESSKVTimings() }

// Interrupt ends the call that the model is serving, after the token or batch it is at, from any goroutine; Predict then
// returns the text that there is. It does nothing where nothing is running.
func Interrupt(model *llama.LLama) { model.LESSKVInterrupt() }

// WithContext makes a call end when ctx does, after the token or batch it is at: Predict, SpeculativeSampling, Eval, Embeddings and
// TokenEmbeddings take it. The call returns what there is, and an error for which errors.Is finds ctx.Err().
func WithContext(ctx context.Context) llama.PredictOption { return llama.WithLESSKVContext(ctx) }

// PlainText makes the text of a call text alone, its negative prompt too: what reads like a control token of the model, such as
// "</s>" or "<|im_end|>", does not become one. Predict, SpeculativeSampling, Eval, Embeddings and TokenizeString take it. Without it such
// text is a control token, which chat templates need; a user's text within a prompt then can end a turn.
var PlainText = llama.LESSKVPlainText
