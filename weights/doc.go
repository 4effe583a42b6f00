// Package weights reads, checks and writes adapters: the trained functions phi and psi of LESS for one base model, as a GGUF
// file ("The adapter file" in algorithm.md), and reads what an adapter must fit from the model's own GGUF.
//
//	adapter, err := weights.Read("model.lesskv.gguf")
//	model, err := weights.ReadModel("model.gguf")
//	warnings, err := weights.Check(adapter, model)
//
// Files come from strangers: what is wrong is refused with an *Error that names the file, the key or tensor, what was found
// and what was wanted; nothing is allocated that the file's size doesn't justify.
package weights

import (
	"errors"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Error says what is wrong with a file, where, and what to do. It wraps one of the faults below or one of gguf's.
type Error = gguf.Error

// What can be wrong with an adapter or a model, beside the faults of any GGUF file (gguf.ErrMagic and so on).
var (
	ErrNotAdapter  = errors.New("not a LESS adapter")
	ErrVersion     = errors.New("adapter version not supported")
	ErrValue       = errors.New("value out of range")
	ErrTensor      = errors.New("wrong tensor")
	ErrNotFinite   = errors.New("NaN or infinite weight")
	ErrModel       = errors.New("model not supported")
	ErrGeometry    = errors.New("adapter for another geometry")
	ErrFingerprint = errors.New("adapter for another model")
	ErrPolicy      = errors.New("adapter for another policy")
)
