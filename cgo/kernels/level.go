package kernels

/*
#include "lesskv.h"
*/
import "C"

// Level returns the instruction sets that the inner loops use: "x86-64", "x86-64-v3", "x86-64-v4", "arm64" or "plain", of those that
// were compiled in the best that this processor has, or the one that LESSKV_LEVEL in the environment names. The last bits of results depend on it.
func Level() string { return C.GoString(C.lesskv_level_name()) }
