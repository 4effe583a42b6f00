package kernels

/*
#include "internal.h"
#include "train_math.h"
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

static const char * level_name(int i) {
    const struct lesskv_level * level = lesskv_level_at(i);
    return level ? level->name : NULL;
}

static void use_level(int i) {
    lesskv_level_use(lesskv_level_at(i));
}

static void rows_few(enum lesskv_type type, const void * data, size_t stride, int32_t count, int32_t n, const float * x, int32_t nq, float * out) {
    lesskv_rows_few((struct rows) { type, data, stride, count }, n, x, (size_t) n, nq, out, (size_t) count);
}

static void cols_few(enum lesskv_type type, const void * data, size_t stride, int32_t count, int32_t n, const float * p, int32_t nq, float * out) {
    lesskv_cols_few((struct rows) { type, data, stride, count }, n, p, (size_t) count, nq, out, (size_t) n);
}

static void gelu_back(const float * x, float * d, int n) {
    lesskv_level()->gelu_back(x, d, (size_t) n);
}
*/
import "C"

import "unsafe"

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

// rowsFew and colsFew are lesskv_rows_few and lesskv_cols_few of rows without gaps; x and out lie likewise.
func rowsFew(kind Type, rows []byte, n int, x []float32, nq int, out []float32) {
	count := len(rows) / kind.RowSize(n)
	C.rows_few(C.enum_lesskv_type(kind), unsafe.Pointer(unsafe.SliceData(rows)), C.size_t(kind.RowSize(n)), C.int32_t(count),
		C.int32_t(n), floats(x), C.int32_t(nq), floats(out))
}

func colsFew(kind Type, rows []byte, n int, p []float32, nq int, out []float32) {
	count := len(rows) / kind.RowSize(n)
	C.cols_few(C.enum_lesskv_type(kind), unsafe.Pointer(unsafe.SliceData(rows)), C.size_t(kind.RowSize(n)), C.int32_t(count),
		C.int32_t(n), floats(p), C.int32_t(nq), floats(out))
}

// gemm is lesskv_gemm, of a and b as their strides say; c has no gaps.
func gemm(m, n, k int, a []float32, ra, ca int, b []float32, rb, cb int, c []float32, add bool) {
	pack := make([]float32, C.gemm_pack(C.int32_t(m), C.int32_t(k)))
	C.lesskv_gemm(C.int32_t(m), C.int32_t(n), C.int32_t(k), floats(a), C.size_t(ra), C.size_t(ca), floats(b), C.size_t(rb), C.size_t(cb),
		floats(c), C.size_t(n), C.bool(add), floats(pack))
}

// gemmPanels is lesskv_gemm_panels; a and c have no gaps.
func gemmPanels(m, n, k int, a, panels, c []float32) {
	pack := make([]float32, C.gemm_pack(C.int32_t(m), C.int32_t(k)))
	C.lesskv_gemm_panels(C.int32_t(m), C.int32_t(n), C.int32_t(k), floats(a), C.size_t(k), floats(panels), floats(c), C.size_t(n), floats(pack))
}

// count is lesskv_cache_count.
func (c *Cache) count(pos, tokens int) { C.lesskv_cache_count(c.c, C.int32_t(pos), C.int32_t(tokens)) }

func geluBack(x, d []float32) { C.gelu_back(floats(x), floats(d), C.int(len(x))) }

// levels are the names of the instruction sets that the inner loops are compiled for and this processor has, the best one last; useLevel
// chooses among them. No call may be running.
func levels() (names []string) {
	for C.level_name(C.int(len(names))) != nil {
		names = append(names, C.GoString(C.level_name(C.int(len(names)))))
	}
	return names
}

func useLevel(i int) { C.use_level(C.int(i)) }
