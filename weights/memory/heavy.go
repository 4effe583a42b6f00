package memory

import "fmt"

// heavy is a policy's share of a budget, as it is registered in C, for builds without C. One that is not here is for the runtime to judge.
var heavy = map[string]func(budget int) int{
	"h2o":    func(budget int) int { return budget / 2 },
	"peak":   func(budget int) int { return budget / 4 },
	"lambda": func(budget int) int { return min(budget, 4) },
	"tova":   func(budget int) int { return max(0, budget-1) },
}

// checkPinned refuses, as the runtime does, a budget whose heavy part has no room for what is pinned.
func (c *Cache) checkPinned(budget int) error {
	policy := c.Policy
	switch {
	case policy != "":
	case c.Adapter != nil:
		policy = c.Adapter.Trained.Policy
	default:
		policy = "peak"
	}
	of, ok := heavy[policy]
	if !ok {
		return nil // which the runtime judges
	}
	h := of(budget)
	if a := c.Adapter; madeForBudget(a) && a.Trained.Heavy+a.Trained.Recent == budget && a.Trained.Heavy != h {
		h = max(a.Trained.Heavy, c.Pinned) // the trained heavy part comes along, and has room
	}
	if c.Pinned > h {
		return fmt.Errorf("%d slots a head, of which policy %s keeps %d by score, and %d pinned among those: want more slots, or fewer pinned: %w", budget, policy, h, c.Pinned, ErrBudget)
	}
	return nil
}
