package reference

import (
	"cmp"
	"slices"
	"strings"
)

// A Policy chooses what stays: steps 2 and 3 of "A micro-batch of T tokens". Each has a file of its own, which registers it.
type Policy struct {
	Name    string                                        // in algorithm.md
	Heavy   func(budget int) int                          // h of a budget where none is given ("Budgets")
	Queries int                                           // the micro-batch's last so many count; 0: all of them
	Gain    func(gain, weight float64) float64            // what a pair has gained, and one query's weight more; nil: no scores, the oldest stay
	Score   func(score, gain float64, tokens int) float64 // after a micro-batch
}

var policies []*Policy

func register(p Policy) *Policy {
	policies = append(policies, &p)
	return &p
}

// Policies lists the policies by name.
func Policies() []*Policy {
	return slices.SortedFunc(slices.Values(policies), func(a, b *Policy) int { return strings.Compare(a.Name, b.Name) })
}

// PolicyOf returns the policy of that name, nil if there is none.
func PolicyOf(name string) *Policy {
	if i := slices.IndexFunc(policies, func(p *Policy) bool { return p.Name == name }); i >= 0 {
		return policies[i]
	}
	return nil
}

// String returns the policy's name.
func (p *Policy) String() string { return p.Name }

// Scored reports whether scores decide what stays. Without them it is the oldest.
func (p *Policy) Scored() bool { return p.Gain != nil }

// Counts reports whether the weights of query t of n count.
func (p *Policy) Counts(t, n int) bool { return p.Scored() && (p.Queries == 0 || t >= n-p.Queries) }

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
	if b.Heavy > 0 {
		for _, i := range h.rank(held[:others], pinned)[:b.Heavy] {
			keep[i] = true
		}
	}
	return keep
}

// rank returns the indices of pairs that compete for the heavy slots, those that stay longest first.
func (h *head) rank(others []pair, pinned int) []int {
	order := make([]int, len(others))
	for i := range order {
		order[i] = i
	}
	if !h.Policy.Scored() {
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
