package kernels

/*
#include "internal.h"
#include "vec.h"

// y[n] = f(x[n]), n a multiple of 16
#define EACH(name, f) \
    static void name(const float * x, float * y, int n) { \
        for (int i = 0; i < n; i += VW) { \
            vf_store(y + i, f(vf_load(x + i))); \
        } \
    }
EACH(each_exp,  vf_exp)
EACH(each_tanh, vf_tanh)
EACH(each_gelu, vf_gelu)
*/
import "C"

// What lesskv.h does not show, for the tests: cgo is not allowed in test files.

func floats(x []float32) *C.float { return (*C.float)(&x[0]) }

func exp32(x, y []float32)  { C.each_exp(floats(x), floats(y), C.int(len(x))) }
func tanh32(x, y []float32) { C.each_tanh(floats(x), floats(y), C.int(len(x))) }
func gelu32(x, y []float32) { C.each_gelu(floats(x), floats(y), C.int(len(x))) }

func selectKey(key []uint64, k int) uint64 {
	return uint64(C.lesskv_select((*C.uint64_t)(&key[0]), C.int32_t(len(key)), C.int32_t(k)))
}

func sortKeys(key []uint64) {
	C.lesskv_sort((*C.uint64_t)(&key[0]), C.int32_t(len(key)))
}
