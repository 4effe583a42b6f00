package kernels

/*
#include <stdlib.h>
#include "lesskv.h"
*/
import "C"

import (
	"fmt"
	"strings"
	"unsafe"
)

// A Policy is a sparse policy, as its file policy_NAME.c registers it.
type Policy struct {
	Name string
	Help string // what stays, in a few words
}

// Policies lists the policies by name.
func Policies() []Policy {
	var all []Policy
	for i := 0; ; i++ {
		p := C.lesskv_policy_at(C.int(i))
		if p == nil {
			return all
		}
		all = append(all, Policy{C.GoString(C.lesskv_policy_name(p)), C.GoString(C.lesskv_policy_help(p))})
	}
}

// PolicyNames lists their names.
func PolicyNames() []string {
	var names []string
	for _, p := range Policies() {
		names = append(names, p.Name)
	}
	return names
}

// PolicyHelp returns all of them in a line, for the help of a flag.
func PolicyHelp() string {
	var all []string
	for _, p := range Policies() {
		all = append(all, fmt.Sprintf("%s (%s)", p.Name, p.Help))
	}
	return strings.Join(all, ", ")
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
