package kernels

/*
#include "lesskv.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// A Type is how elements are stored. The numbers are those of GGUF.
type Type int32

// The types.
const (
	F32 Type = C.LESSKV_TYPE_F32
	F16 Type = C.LESSKV_TYPE_F16
	Q40 Type = C.LESSKV_TYPE_Q4_0 // blocks of 32: one f16 scale, 32 times 4 bits
	Q80 Type = C.LESSKV_TYPE_Q8_0 // blocks of 32: one f16 scale, 32 int8
)

// String returns GGUF's name of the type.
func (t Type) String() string {
	switch t {
	case F32:
		return "F32"
	case F16:
		return "F16"
	case Q40:
		return "Q4_0"
	case Q80:
		return "Q8_0"
	}
	return fmt.Sprintf("Type(%d)", int32(t))
}

// RowSize returns the bytes of n elements, 0 if the type is unknown or n does not fill its blocks.
func (t Type) RowSize(n int) int {
	return int(C.lesskv_row_size(C.enum_lesskv_type(t), C.int64_t(n)))
}

// FromF32 rounds to the type. len(x) must fill the type's blocks: it panics where RowSize would be 0, unless x is empty.
func (t Type) FromF32(x []float32) []byte {
	if len(x) == 0 {
		return nil
	}
	n := t.RowSize(len(x))
	if n == 0 {
		panic(fmt.Sprintf("kernels: %d elements are no whole number of blocks of %v", len(x), t))
	}
	b := make([]byte, n)
	C.lesskv_from_f32(C.enum_lesskv_type(t), unsafe.Pointer(&b[0]), (*C.float)(&x[0]), C.int64_t(len(x)))
	return b
}

// ToF32 returns the n elements that b begins with. It panics if b is shorter than RowSize(n).
func (t Type) ToF32(b []byte, n int) []float32 {
	if n == 0 {
		return nil
	}
	if size := t.RowSize(n); size == 0 || len(b) < size {
		panic(fmt.Sprintf("kernels: %d bytes can't hold %d elements of %v", len(b), n, t))
	}
	x := make([]float32, n)
	C.lesskv_to_f32(C.enum_lesskv_type(t), (*C.float)(&x[0]), unsafe.Pointer(&b[0]), C.int64_t(n))
	return x
}
