package kernels

/*
#include <stdlib.h>
#include "lesskv.h"
*/
import "C"

import (
	"strings"
	"unsafe"
)

// PolicyNames lists the policies, in the order of the C side.
func PolicyNames() []string {
	var names []string
	for i := 0; ; i++ {
		name := C.lesskv_policy_at(C.int(i))
		if name == nil {
			return names
		}
		names = append(names, C.GoString(name))
	}
}

// PolicyHeavy returns h, the heavy part of a budget of B slots where none is given ("Budgets" in algorithm.md).
func PolicyHeavy(name string, budget int) (int, error) {
	policy, err := findPolicy(name)
	if err != nil {
		return 0, err
	}
	return int(C.lesskv_policy_heavy(policy, C.int32_t(budget))), nil
}

func findPolicy(name string) (*C.struct_lesskv_policy, error) {
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	policy := C.lesskv_policy_find(s)
	if policy == nil {
		return nil, argument("policy %q: want one of %s", name, strings.Join(PolicyNames(), ", "))
	}
	return policy, nil
}
