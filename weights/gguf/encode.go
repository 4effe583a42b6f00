package gguf

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/x448/float16"
)

// Decode returns the values of data, elements of type t as they lie in a file. It fails with ErrType on types other than
// F32, F16, BF16 and Q8_0, and on data that ends inside a block.
func Decode(t Type, data []byte) ([]float32, error) {
	le := binary.LittleEndian
	info := types[t]
	if info.size == 0 || uint64(len(data))%info.size != 0 {
		return nil, fmt.Errorf("%d bytes of %v: %w", len(data), t, ErrType)
	}
	out := make([]float32, 0, uint64(len(data))/info.size*info.n)
	switch t {
	case F32:
		for ; len(data) > 0; data = data[4:] {
			out = append(out, math.Float32frombits(le.Uint32(data)))
		}
	case F16:
		for ; len(data) > 0; data = data[2:] {
			out = append(out, half(data))
		}
	case BF16:
		for ; len(data) > 0; data = data[2:] {
			out = append(out, math.Float32frombits(uint32(le.Uint16(data))<<16))
		}
	case Q8_0:
		for ; len(data) > 0; data = data[34:] {
			d := half(data)
			for _, q := range data[2:34] {
				out = append(out, d*float32(int8(q)))
			}
		}
	default:
		return nil, fmt.Errorf("values of %v can't be read, only those of F32, F16, BF16 and Q8_0: %w", t, ErrType)
	}
	return out, nil
}

// Encode appends values to dst as elements of type t, F32, F16 or Q8_0, rounded as ggml rounds. It fails with ErrRange on
// NaN, on infinities and on values that would become infinite, and with ErrType on other types and on values that don't
// fill the last block of t.
func Encode(dst []byte, t Type, values []float32) ([]byte, error) {
	le := binary.LittleEndian
	for i, x := range values {
		if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
			return nil, fmt.Errorf("value %d is %v: %w", i, x, ErrRange)
		}
	}
	switch {
	case t == F32:
		for _, x := range values {
			dst = le.AppendUint32(dst, math.Float32bits(x))
		}
	case t == F16:
		for i, x := range values {
			h := float16.Fromfloat32(x)
			if h.IsInf(0) {
				return nil, fmt.Errorf("value %d is %v, beyond F16's 65504: %w", i, x, ErrRange)
			}
			dst = le.AppendUint16(dst, h.Bits())
		}
	case t == Q8_0 && len(values)%32 == 0:
		for i := 0; i < len(values); i += 32 {
			block := values[i : i+32]
			var top float32
			for _, x := range block {
				top = max(top, x, -x)
			}
			d := top / 127
			h := float16.Fromfloat32(d)
			if h.IsInf(0) {
				return nil, fmt.Errorf("value %d or one of the next 31 is ±%v, beyond Q8_0: %w", i, top, ErrRange)
			}
			dst = le.AppendUint16(dst, h.Bits())
			var inverse float32
			if h != 0 {
				inverse = 1 / d
			}
			for _, x := range block {
				dst = append(dst, byte(int8(math.Round(float64(x*inverse)))))
			}
		}
	default:
		return nil, fmt.Errorf("%d values can't be written as %v: %w", len(values), t, ErrType)
	}
	return dst, nil
}

func half(b []byte) float32 {
	return float16.Frombits(binary.LittleEndian.Uint16(b)).Float32()
}
