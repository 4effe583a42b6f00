package memory

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// A Budget is what a KV head may keep: slots, a share of the context, or bytes of a sequence with its state and the kernels. At most one
// of them is not zero; the zero value is 5 % of the context.
type Budget struct {
	Slots int
	Share float64 // of the context, above 0 and up to 1
	Bytes uint64
}

// ParseBudget reads a budget as the runtime does: "1024" slots, "5%" of the context, "64MiB" (or KiB, GiB). It fails with ErrBudget.
func ParseBudget(s string) (b Budget, err error) {
	bad := fmt.Errorf("%q: want a number of tokens, a share of the context such as 5%%, or memory such as 64MiB: %w", s, ErrBudget)
	unit := 0.0
	digits := s
	for suffix, scale := range map[string]float64{"%": 0.01, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = rest, scale
		}
	}
	x, err := strconv.ParseFloat(digits, 64)
	switch {
	case err != nil || !(x > 0) || x > math.MaxInt64/(1<<30):
		return Budget{}, bad
	case unit == 0.01 && x <= 100:
		return Budget{Share: x / 100}, nil
	case unit == 0 && x == math.Trunc(x) && x <= math.MaxInt32:
		return Budget{Slots: int(x)}, nil
	case unit > 1 && x*unit >= 1:
		return Budget{Bytes: uint64(x * unit)}, nil
	}
	return Budget{}, bad
}

// String returns the budget as ParseBudget reads it.
func (b Budget) String() string {
	switch {
	case b.Slots > 0:
		return strconv.Itoa(b.Slots)
	case b.Bytes > 0:
		return strconv.FormatFloat(float64(b.Bytes)/(1<<10), 'f', -1, 64) + "KiB"
	}
	return strconv.FormatFloat(100*b.share(), 'f', -1, 64) + "%"
}

func (b Budget) share() float64 {
	if b.Share > 0 {
		return b.Share
	}
	return 0.05
}

// resolve returns the slots of a head, on average: "Budgets" of algorithm.md.
func (l *layout) resolve(b Budget) (int, error) {
	switch {
	case b.Slots < 0 || b.Share < 0 || b.Share > 1:
		return 0, fmt.Errorf("%d slots, %g of the context: %w", b.Slots, b.Share, ErrBudget)
	case len(l.slot) == 0: // sliding windows alone
		return l.context, nil
	case b.Slots > 0:
		return min(b.Slots, l.context), nil
	case b.Bytes == 0:
		return min(max(64, int(b.share()*float64(l.context))), l.context), nil
	}
	fits := func(n int) bool {
		slots, err := l.slots(n)
		return err == nil && slots+l.state+l.kernels <= b.Bytes
	}
	if !fits(1) {
		least, _ := l.slots(1)
		return 0, fmt.Errorf("%d bytes: state, kernels, sliding windows and one slot in every head take %d: %w", b.Bytes, least+l.state+l.kernels, ErrBudget)
	}
	n, over := 1, l.context+1
	for over-n > 1 {
		if mid := n + (over-n)/2; fits(mid) {
			n = mid
		} else {
			over = mid
		}
	}
	for more := min(over+8, l.context); more > n; more-- { // where slots differ in size a larger one may take less
		if fits(more) {
			n = more
		}
	}
	return n, nil
}
