package lesskv

import llama "github.com/go-skynet/go-llama.cpp"

// What an error of llama.New, or of a model's call, is about; ask with errors.Is.
var (
	ErrModel       = llama.ErrLESSKVModel       // the model file is missing, damaged or no GGUF
	ErrConfig      = llama.ErrLESSKVConfig      // a field of Config, or a variable, makes no sense
	ErrBudget      = llama.ErrLESSKVBudget      // the budget does; it is an ErrConfig too
	ErrAdapter     = llama.ErrLESSKVAdapter     // the adapter is missing, damaged or another model's
	ErrUnsupported = llama.ErrLESSKVUnsupported // LESS does not cover the model's architecture
	ErrArgument    = llama.ErrLESSKVArgument    // an option of go-llama.cpp makes no sense
	ErrMissing     = llama.ErrLESSKVMissing     // this runtime does not have what was asked for
	ErrBusy        = llama.ErrLESSKVBusy        // the model is serving another call
	ErrContext     = llama.ErrLESSKVContext     // the prompt is longer than the context
	ErrNotFinite   = llama.ErrLESSKVNotFinite   // a key or value that is not finite was to be folded; it is an ErrFailed too
	ErrState       = llama.ErrLESSKVState       // the file is not a state of this model and cache
	ErrFailed      = llama.ErrLESSKVFailed      // computing failed, or reading or writing a file; the reason says so where the cache has been emptied
)

// An Error is what llama.New and a model's calls return: Op, what failed; Reason, what was found, what was wanted and what
// to do; and Kind, one of the errors above, to which it unwraps.
type Error = llama.LESSKVError
