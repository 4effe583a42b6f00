package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/lesskv/lesskv/weights/outfile"
)

// KeyValue is a key and its value: a Scalar or a slice of them.
type KeyValue struct {
	Key   string
	Value any
}

// Tensor is a tensor to be written: Values in the order of the file, first dimension fastest, that become Type on the way.
type Tensor struct {
	Name   string
	Type   Type // F32, F16 or Q8_0
	Dims   []uint64
	Values []float32
}

// Write writes a file of version 3 in the given order, tensor by tensor: beyond its arguments it needs the memory of the
// largest. It fails with an *Error that wraps ErrCorrupt, ErrType or ErrRange on what could not be read back.
func Write(w io.Writer, pairs []KeyValue, tensors []Tensor) error {
	head, err := header(pairs, tensors)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	var data []byte
	for _, t := range tensors {
		if data, err = Encode(data[:0], t.Type, t.Values); err != nil {
			return fmt.Errorf("tensor %s: %w", t.Name, err)
		}
		if _, err := w.Write(appendPad(data)); err != nil {
			return err
		}
	}
	return nil
}

// WriteFile writes a file as Write does. It replaces path only when everything is on the disk.
func WriteFile(path string, pairs []KeyValue, tensors []Tensor) error {
	err := outfile.Write(path, func(w io.Writer) error { return Write(w, pairs, tensors) })
	var own *Error
	if errors.As(err, &own) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return err
}

func header(pairs []KeyValue, tensors []Tensor) ([]byte, error) {
	le := binary.LittleEndian
	b := []byte(Magic)
	b = le.AppendUint32(b, Version)
	b = le.AppendUint64(b, uint64(len(tensors)))
	b = le.AppendUint64(b, uint64(len(pairs)))
	seen := map[string]bool{}
	for _, p := range pairs {
		item := "key " + p.Key
		if p.Key == "" || len(p.Key) > math.MaxUint16 || seen[p.Key] || p.Key == "general.alignment" {
			return nil, &Error{Item: item, Err: ErrCorrupt, Found: "a name that is empty, too long, there twice or the writer's own"}
		}
		seen[p.Key] = true
		b = appendString(b, p.Key)
		var ok bool
		if b, ok = appendValue(b, p.Value); !ok {
			return nil, &Error{Item: item, Err: ErrType, Found: fmt.Sprintf("%T", p.Value), Wanted: "a scalar, a string or a slice of them"}
		}
	}
	clear(seen)
	var offset uint64
	for _, t := range tensors {
		item := "tensor " + t.Name
		if t.Name == "" || len(t.Name) > maxName || seen[t.Name] {
			return nil, &Error{Item: item, Err: ErrCorrupt, Found: "a name that is empty, too long or there twice"}
		}
		seen[t.Name] = true
		elements := Info{Dims: t.Dims}.Elements()
		if len(t.Dims) < 1 || len(t.Dims) > maxDims || elements == 0 || elements != uint64(len(t.Values)) {
			return nil, &Error{Item: item, Err: ErrCorrupt, Found: fmt.Sprintf("%d values for dimensions %v", len(t.Values), t.Dims)}
		}
		size, ok := t.Type.Size(t.Dims[0])
		if !ok || t.Type != F32 && t.Type != F16 && t.Type != Q8_0 {
			return nil, &Error{Item: item, Err: ErrType, Found: fmt.Sprintf("%v with rows of %d", t.Type, t.Dims[0]), Wanted: "F32, F16, or Q8_0 with rows of a multiple of 32"}
		}
		b = appendString(b, t.Name)
		b = le.AppendUint32(b, uint32(len(t.Dims)))
		for _, d := range t.Dims {
			b = le.AppendUint64(b, d)
		}
		b = le.AppendUint32(b, uint32(t.Type))
		b = le.AppendUint64(b, offset)
		offset = pad(offset+size*(elements/t.Dims[0]), DefaultAlignment)
	}
	return appendPad(b), nil
}

func appendPad(b []byte) []byte {
	return append(b, make([]byte, pad(uint64(len(b)), DefaultAlignment)-uint64(len(b)))...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// appendValue appends a value's type and the value.
func appendValue(b []byte, v any) ([]byte, bool) {
	switch v := v.(type) {
	case uint8, int8, uint16, int16, uint32, int32, uint64, int64, float32, float64, bool, string:
		return appendScalar(binary.LittleEndian.AppendUint32(b, uint32(typeOf(v))), v), true
	case []uint8:
		return appendArray(b, v), true
	case []int8:
		return appendArray(b, v), true
	case []uint16:
		return appendArray(b, v), true
	case []int16:
		return appendArray(b, v), true
	case []uint32:
		return appendArray(b, v), true
	case []int32:
		return appendArray(b, v), true
	case []uint64:
		return appendArray(b, v), true
	case []int64:
		return appendArray(b, v), true
	case []float32:
		return appendArray(b, v), true
	case []float64:
		return appendArray(b, v), true
	case []bool:
		return appendArray(b, v), true
	case []string:
		return appendArray(b, v), true
	}
	return nil, false
}

func appendArray[T Scalar](b []byte, v []T) []byte {
	var zero T
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(Array))
	b = le.AppendUint32(b, uint32(typeOf(zero)))
	b = le.AppendUint64(b, uint64(len(v)))
	for _, x := range v {
		b = appendScalar(b, x)
	}
	return b
}

func appendScalar(b []byte, v any) []byte {
	if s, ok := v.(string); ok {
		return appendString(b, s)
	}
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic(err) // not a Scalar: the callers' types exclude it
	}
	return b
}

// typeOf returns the value type of a Scalar.
func typeOf(v any) ValueType {
	switch v.(type) {
	case uint8:
		return Uint8
	case int8:
		return Int8
	case uint16:
		return Uint16
	case int16:
		return Int16
	case uint32:
		return Uint32
	case int32:
		return Int32
	case uint64:
		return Uint64
	case int64:
		return Int64
	case float32:
		return Float32
	case float64:
		return Float64
	case bool:
		return Bool
	}
	return String
}
