package kernels

/*
#include "lesskv.h"
*/
import "C"

import "unsafe"

// MaxWeight is the largest weight of an allocation.
const MaxWeight = C.LESSKV_WEIGHT_MAX

// HeadLeast returns m of a budget: what Allocate is to leave every head.
func HeadLeast(budget, pinned int) int {
	return int(C.lesskv_head_least(C.int32_t(budget), C.int32_t(pinned)))
}

// HeadHeavy returns h of a head that has so many slots of a budget, heavy being the budget's, below 0 the policy's own share.
func HeadHeavy(policy string, slots, budget, heavy, pinned int) (int, error) {
	p, err := findPolicy(policy)
	if err != nil {
		return 0, err
	}
	return int(C.lesskv_head_heavy(p, C.int32_t(slots), C.int32_t(budget), C.int32_t(heavy), C.int32_t(pinned))), nil
}

// Allocate spreads len(weights) times budget slots over KV heads by their weights, of which each has at least least and none more than
// most; see lesskv_allocate and "Budgets by layer and head" in algorithm.md. ErrArgument unless 1 <= least <= budget <= most and every
// weight is between 0 and MaxWeight.
func Allocate(weights []float32, budget, least, most int) ([]int, error) {
	slots := make([]int32, len(weights))
	err := check(C.lesskv_allocate((*C.float)(unsafe.SliceData(weights)), C.int32_t(len(weights)), C.int32_t(budget), C.int32_t(least), C.int32_t(most),
		(*C.int32_t)(unsafe.SliceData(slots))), "%d slots a head over %d heads, of which each has from %d to %d", budget, len(weights), least, most)
	if err != nil {
		return nil, err
	}
	all := make([]int, len(slots))
	for i, n := range slots {
		all[i] = int(n)
	}
	return all, nil
}
