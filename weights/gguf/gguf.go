// Package gguf reads and writes GGUF, the file format of llama.cpp's models and of this project's adapters: a header, typed
// key/value pairs, a table of tensors, and their data, all little-endian.
//
// The reader takes files from strangers: it allocates only what the file's size justifies, checks every count, offset
// and length against it, and refuses what llama.cpp's own reader refuses. It keeps scalars and strings, and reads arrays
// and tensors only when asked, so that a model of many gigabytes costs its header.
//
// The writer is deterministic: the same pairs and tensors give the same bytes.
package gguf

import (
	"errors"
	"fmt"
	"strings"
)

// The layout that this package writes. Version 2 is read too: it differs in nothing that matters here.
const (
	Magic            = "GGUF"
	Version          = 3
	DefaultAlignment = 32 // bytes, of every tensor's data, where general.alignment doesn't say otherwise

	maxDims   = 4       // ggml's GGML_MAX_DIMS
	maxName   = 63      // bytes of a tensor's name: ggml's GGML_MAX_NAME less its NUL
	maxString = 1 << 26 // bytes of a string value; the largest in the wild is a tokenizer of a few MB
)

// What can be wrong with a file. Every error of this package that concerns its content wraps one of them in an *Error.
var (
	ErrMagic     = errors.New("not a GGUF file")
	ErrVersion   = errors.New("GGUF version not supported")
	ErrByteOrder = errors.New("big-endian GGUF file")
	ErrTruncated = errors.New("truncated GGUF file")
	ErrCorrupt   = errors.New("corrupt GGUF file")
	ErrMissing   = errors.New("missing from the GGUF file")
	ErrType      = errors.New("of the wrong type")
	ErrRange     = errors.New("value does not fit the type")
)

// Error says what is wrong with a file and where. Its fields but Err may be empty.
type Error struct {
	File   string // path, as given
	Item   string // what in the file: "key less.rank", "tensor blk.0.less.phi.0.weight"
	Found  string
	Wanted string
	Advice string // what to do
	Err    error  // which kind of fault, for errors.Is
}

// Error implements error in one line: file, item, fault, found, wanted, advice.
func (e *Error) Error() string {
	var b strings.Builder
	for _, s := range []string{e.File, e.Item} {
		if s != "" {
			b.WriteString(s + ": ")
		}
	}
	b.WriteString(e.Err.Error())
	for _, s := range []struct{ text, lead string }{{e.Found, ": found "}, {e.Wanted, ", wanted "}, {e.Advice, "; "}} {
		if s.text != "" {
			b.WriteString(s.lead + s.text)
		}
	}
	return b.String()
}

// Unwrap returns the kind of fault.
func (e *Error) Unwrap() error { return e.Err }

// ValueType is the type of a key's value, by GGUF's numbers.
type ValueType uint32

// The value types. An array's elements are of any type but Array.
const (
	Uint8 ValueType = iota
	Int8
	Uint16
	Int16
	Uint32
	Int32
	Float32
	Bool
	String
	Array
	Uint64
	Int64
	Float64
)

var valueTypes = [...]struct {
	name string
	size int // bytes; 0 if it varies
}{
	{"u8", 1}, {"i8", 1}, {"u16", 2}, {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 0}, {"array", 0},
	{"u64", 8}, {"i64", 8}, {"f64", 8},
}

func (t ValueType) known() bool { return int64(t) < int64(len(valueTypes)) }

// String returns the type's short name, such as "u32".
func (t ValueType) String() string {
	if !t.known() {
		return fmt.Sprintf("value type %d", uint32(t))
	}
	return valueTypes[t].name
}

// Type is a tensor's element type, by ggml's numbers. The named ones can be read and written; of the others, which
// quantised models hold, only the size is known.
type Type uint32

// The element types whose values this package reads; it writes all but BF16.
const (
	F32  Type = 0
	F16  Type = 1
	Q4_0 Type = 2 // blocks of 32: an F16 scale and 32 times 4 bits; its size alone is known
	Q8_0 Type = 8 // blocks of 32: an F16 scale and 32 int8
	BF16 Type = 30
)

// typeInfo is a type's name and layout: blocks of n elements that take size bytes.
type typeInfo struct {
	name    string
	n, size uint64
}

// types lists what ggml knows, llama.cpp v0.5.0.
var types = map[Type]typeInfo{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2}, Q8_0: {"Q8_0", 32, 34},
	Q4_0: {"Q4_0", 32, 18}, 3: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22}, 7: {"Q5_1", 32, 24}, 9: {"Q8_1", 32, 36},
	10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110}, 12: {"Q4_K", 256, 144}, 13: {"Q5_K", 256, 176}, 14: {"Q6_K", 256, 210},
	15: {"Q8_K", 256, 292}, 16: {"IQ2_XXS", 256, 66}, 17: {"IQ2_XS", 256, 74}, 18: {"IQ3_XXS", 256, 98}, 19: {"IQ1_S", 256, 50},
	20: {"IQ4_NL", 32, 18}, 21: {"IQ3_S", 256, 110}, 22: {"IQ2_S", 256, 82}, 23: {"IQ4_XS", 256, 136}, 24: {"I8", 1, 1},
	25: {"I16", 1, 2}, 26: {"I32", 1, 4}, 27: {"I64", 1, 8}, 28: {"F64", 1, 8}, 29: {"IQ1_M", 256, 56}, 34: {"TQ1_0", 256, 54},
	35: {"TQ2_0", 256, 66}, 39: {"MXFP4", 32, 17}, 40: {"NVFP4", 64, 36}, 41: {"Q1_0", 128, 18},
	42: {"Q2_0", 64, 18},
}

// String returns ggml's name of the type, such as "Q8_0".
func (t Type) String() string {
	if info, ok := types[t]; ok {
		return info.name
	}
	return fmt.Sprintf("tensor type %d", uint32(t))
}

// Size returns the bytes of n elements, and false if the type is unknown or n doesn't fill its blocks.
func (t Type) Size(n uint64) (uint64, bool) {
	info, ok := types[t]
	if !ok || n%info.n != 0 || n/info.n > (1<<63)/info.size {
		return 0, false
	}
	return n / info.n * info.size, true
}

func pad(n, alignment uint64) uint64 { return (n + alignment - 1) &^ (alignment - 1) }
