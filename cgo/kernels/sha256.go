package kernels

/*
#include "lesskv.h"
*/
import "C"

import "unsafe"

// SHA256 returns the lower-case hex digest of the parts, one after the other, as the C side computes fingerprints.
func SHA256(parts ...[]byte) string {
	var s C.struct_lesskv_sha256
	var hex [65]C.char
	C.lesskv_sha256_init(&s)
	for _, p := range parts {
		C.lesskv_sha256_update(&s, unsafe.Pointer(unsafe.SliceData(p)), C.size_t(len(p)))
	}
	C.lesskv_sha256_final(&s, &hex[0])
	return C.GoString(&hex[0])
}
