package worker

import (
	"fmt"
	"strconv"
	"strings"
)

// A Budget is what a cache may keep ("Budgets" in algorithm.md): one of these is not zero.
type Budget struct {
	Tokens int     // slots of a KV head
	Share  float64 // of the context: 0.05 is 5 %, at least 64 slots
	Bytes  int64   // of one sequence: as many slots as fit, after state and kernels
	Full   float64 // the same, as a share of the bytes of the full f16 cache
}

// ParseBudget reads 102, 5%, 64MiB (KiB, GiB) or 1/16, as the plugin does.
func ParseBudget(s string) (Budget, error) {
	text := strings.TrimSpace(s)
	number := func(digits string) (float64, bool) {
		x, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		return x, err == nil && x > 0 // nor NaN
	}
	if digits, ok := strings.CutSuffix(text, "%"); ok {
		if x, ok := number(digits); ok && x <= 100 {
			return Budget{Share: x / 100}, nil
		}
	}
	for i, unit := range []string{"KiB", "MiB", "GiB"} {
		digits, ok := strings.CutSuffix(text, unit)
		if x, isNumber := number(digits); ok && isNumber {
			if x *= float64(int64(1) << (10 * (i + 1))); x >= 1 && x < 1<<62 {
				return Budget{Bytes: int64(x)}, nil
			}
		}
	}
	if part, whole, ok := strings.Cut(text, "/"); ok {
		n, err := strconv.ParseUint(strings.TrimSpace(part), 10, 31)
		of, err2 := strconv.ParseUint(strings.TrimSpace(whole), 10, 31)
		if err == nil && err2 == nil && n > 0 && n <= of {
			return Budget{Full: float64(n) / float64(of)}, nil
		}
	}
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n > 0 {
		return Budget{Tokens: int(n)}, nil
	}
	return Budget{}, fmt.Errorf("budget %q: want tokens (102), a share of the context (5%%), memory (64MiB), or a share of the full cache's (1/16)", s)
}

// InBytes says whether it depends on the bytes of a slot.
func (b Budget) InBytes() bool { return b.Bytes > 0 || b.Full > 0 }

// Slots returns the slots of a KV head, of a budget that is not in bytes.
func (b Budget) Slots(context int) int {
	if b.Tokens > 0 {
		return b.Tokens
	}
	return max(64, int(b.Share*float64(context)))
}

// Limit sets the budget of a configuration.
func (b Budget) Limit(l *LESS) {
	l.Budget, l.BudgetShare, l.BudgetBytes, l.BudgetFull = b.Tokens, b.Share, b.Bytes, b.Full
}
