package memory

import "fmt"

// heavy is a policy's share of a budget, as it is registered in C, for builds without C. One that is not here is for the runtime to judge.
var heavy = map[string]func(budget int) int{
	"h2o":    func(budget int) int { return budget / 2 },
	"peak":   func(budget int) int { return budget / 4 },
	"lambda": func(budget int) int { return min(budget, 4) },
	"tova":   func(budget int) int { return max(0, budget-1) },
}

// Heavy returns how many slots of a budget are kept by score: the policy's share or, where phi and psi of the adapter were trained for that budget,
// as many as then. False: a policy that is not known here.
func (c *Cache) Heavy(budget int) (slots int, known bool) {
	of, known := heavy[c.policy()]
	if !known {
		return 0, false
	}
	slots = of(budget)
	if a := c.Adapter; madeForBudget(a) && a.Trained.Heavy+a.Trained.Recent == budget && a.Trained.Heavy != slots {
		slots = max(a.Trained.Heavy, c.Pinned) // there is room for these
	}
	return slots, true
}

func (c *Cache) policy() string {
	switch {
	case c.Policy != "":
		return c.Policy
	case c.Adapter != nil:
		return c.Adapter.Trained.Policy
	}
	return "peak"
}

// checkPinned refuses, as the runtime does, a budget whose heavy part has no room for what is pinned.
func (c *Cache) checkPinned(budget int) error {
	if h, known := c.Heavy(budget); known && c.Pinned > h { // others the runtime judges
		return fmt.Errorf("%d slots a head, of which policy %s keeps %d by score, and %d pinned among those: want more slots, or fewer pinned: %w", budget, c.policy(), h, c.Pinned, ErrBudget)
	}
	return nil
}
