package worker

import "github.com/lesskv/lesskv/weights/memory"

// A Budget is what a cache may keep.
type Budget = memory.Budget

// Limit sets the budget of a configuration.
func (l *LESS) Limit(b Budget) {
	l.Budget, l.BudgetShare, l.BudgetBytes, l.BudgetFull = b.Tokens, b.Share, b.Bytes, b.Full
}
