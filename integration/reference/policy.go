package reference

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Policy chooses what stays: step 3 of "A micro-batch of T tokens".
type Policy uint8

const (
	H2O    Policy = iota // the newest and those with the largest sum of weights
	Lambda               // the newest and the oldest
	Peak                 // the newest and those with the largest recent weight
)

var policyNames = [...]string{"h2o", "lambda", "peak"}

// String returns the policy's name in algorithm.md.
func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy %d", uint8(p))
}

// Heavy returns h of a budget where none is given ("Budgets").
func (p Policy) Heavy(budget int) int {
	switch p {
	case Lambda:
		return min(4, budget)
	case Peak:
		return budget / 4
	default:
		return budget / 2
	}
}

// decay is what a peak keeps of its score after one token.
var decay = math.Pow(0.95, 1.0/32)

// gain adds the weight that one query gives a pair to what the micro-batch has given it.
func (p Policy) gain(gain *float64, weight float64) {
	if p == Peak {
		*gain = max(*gain, weight)
	} else {
		*gain += weight
	}
}

// score is step 2 for a micro-batch of n tokens.
func (p Policy) score(score, gain float64, n int) float64 {
	if p == Peak {
		return max(score*math.Pow(decay, float64(n)), gain)
	}
	return score + gain
}

// choose is step 3: which of the held pairs, in position order, stay. Positions below pinned do.
func (h *head) choose(held []pair, pinned int) []bool {
	keep := make([]bool, len(held))
	b := h.budgetOf(h.j)
	if len(held) <= b.Slots {
		for i := range keep {
			keep[i] = true
		}
		return keep
	}
	others := len(held) - (b.Slots - b.Heavy)
	for i := others; i < len(held); i++ {
		keep[i] = true
	}
	for _, i := range h.rank(held[:others], pinned)[:b.Heavy] {
		keep[i] = true
	}
	return keep
}

// rank returns the indices of pairs that compete for the heavy slots, those that stay longest first.
func (h *head) rank(others []pair, pinned int) []int {
	order := make([]int, len(others))
	for i := range order {
		order[i] = i
	}
	if h.Policy == Lambda {
		return order
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &others[a], &others[b]
		if x.pos < pinned || y.pos < pinned {
			return cmp.Compare(x.pos, y.pos)
		}
		return cmp.Or(cmp.Compare(y.score, x.score), cmp.Compare(y.pos, x.pos))
	})
	return order
}
