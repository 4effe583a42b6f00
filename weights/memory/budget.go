package memory

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// A Budget is what a cache may keep ("Budgets" in algorithm.md). At most one of these is not zero; the zero value is the default,
// which depends on the adapter ("Defaults" there).
type Budget struct {
	Tokens int     // slots of a KV head
	Share  float64 // of the context as the runtime rounds it up (Pad), up to 1: 0.05 is 5 %, at least 64 slots
	Bytes  int64   // of one sequence: as many slots as fit, after state, phi and psi
	Full   float64 // the same, as a share of the bytes of the full f16 cache as apps have it (func Full), up to 1
}

// suffixes are those that the runtime takes, and no others: "64M" is nothing to it.
var suffixes = map[string]float64{"KiB": units.KiB, "MiB": units.MiB, "GiB": units.GiB}

// ParseBudget reads a budget for commands, which may be built without the runtime, as ParseLESSKVBudget of the patched go-llama.cpp
// does for apps: "1024" tokens, "5%" of the context, "64MiB" (or KiB, GiB), "1/16" of the full f16 cache's bytes, "" the default.
// plugin's FuzzBudget compares the two. It fails with ErrBudget.
func ParseBudget(s string) (Budget, error) {
	if s == "" {
		return Budget{}, nil
	}
	if digits, ok := strings.CutSuffix(s, "%"); ok {
		if x, ok := positive(digits); ok {
			return Budget{Share: min(x/100, 1)}, nil
		}
	}
	for unit, size := range suffixes {
		digits, ok := strings.CutSuffix(s, unit)
		if x, positive := positive(digits); ok && positive && x*size >= 1 && x*size < 1<<62 {
			return Budget{Bytes: int64(x * size)}, nil
		}
	}
	if part, whole, ok := strings.Cut(s, "/"); ok {
		n, err := strconv.ParseUint(strings.TrimSpace(part), 10, 31)
		of, err2 := strconv.ParseUint(strings.TrimSpace(whole), 10, 31)
		if err == nil && err2 == nil && n > 0 && n <= of {
			return Budget{Full: float64(n) / float64(of)}, nil
		}
	}
	if n, err := strconv.ParseInt(s, 10, 32); err == nil && n > 0 {
		return Budget{Tokens: int(n)}, nil
	}
	if m := bytesOtherwise.FindStringSubmatch(s); m != nil { // as --memory takes them
		return Budget{}, fmt.Errorf("want a budget in memory as %s%siB: %w", m[1], strings.ToUpper(m[2]), ErrBudget)
	}
	return Budget{}, fmt.Errorf("want slots a head (1024), a share of the context (5%%), memory (64MiB), or a share of the full cache's (1/16): %w", ErrBudget)
}

var bytesOtherwise = regexp.MustCompile(`^([1-9][\d.]*) ?([kKmMgG])([iI]?[bB])?$`)

func positive(digits string) (float64, bool) {
	x, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	return x, err == nil && x > 0 && !math.IsInf(x, 0) // nor NaN
}

// InBytes reports whether the slots depend on the bytes of one.
func (b Budget) InBytes() bool { return b.Bytes > 0 || b.Full > 0 }

// Limit returns the bytes of a budget in bytes; full is what the full f16 cache takes at the context (Full).
func (b Budget) Limit(full uint64) uint64 {
	if b.Full > 0 {
		return uint64(max(1, b.Full*float64(full)))
	}
	return uint64(b.Bytes)
}

// Slots returns the slots of a KV head, of a budget in tokens or as a share of the context, as the runtime counts them: it rounds a
// context up first. They may be more than the context has.
func (b Budget) Slots(context int) int {
	if b.Tokens > 0 {
		return b.Tokens
	}
	return max(64, int(b.Share*float64(Pad(context))))
}

// Check fails with ErrBudget where a budget is below nothing, or a share above all.
func (b Budget) Check() error {
	if b.Tokens < 0 || b.Bytes < 0 || !(b.Share >= 0 && b.Share <= 1) || !(b.Full >= 0 && b.Full <= 1) {
		return fmt.Errorf("%d tokens, %g of the context, %d bytes, %g of the full cache's: %w", b.Tokens, b.Share, b.Bytes, b.Full, ErrBudget)
	}
	return nil
}

// resolve returns the slots of a head, on average: "Budgets" of algorithm.md. full is what the f16 cache takes.
func (l *layout) resolve(b Budget, full uint64) (int, error) {
	if err := b.Check(); err != nil {
		return 0, err
	}
	bytes := b.Limit(full)
	switch {
	case len(l.slot) == 0: // sliding windows alone
		return l.context, nil
	case b.Tokens > 0 || b.Share > 0:
		return min(b.Slots(l.context), l.context), nil
	case bytes > 0:
		n := l.fit(bytes)
		if n == 0 {
			least, _ := l.slots(1)
			return 0, fmt.Errorf("%d bytes: state, phi and psi, sliding windows and one slot in every head take %d: %w", bytes, least+l.state+l.kernels, ErrBudget)
		}
		return n, nil
	case l.trained > 0:
		return min(l.trained, l.context), nil
	}
	return min(max(Least, l.fit(l.full/Fraction+l.fixed)), l.context), nil
}

// The default budget, where no phi and psi bring one: as many slots as fit into 1/Fraction of the full f16 cache's bytes, both of the
// layers that have a budget; at least Least.
const (
	Fraction = 12
	Least    = 1024
)

// fit returns the largest number of slots of a head, on average, that takes no more bytes; 0 if one does not fit.
func (l *layout) fit(bytes uint64) int {
	fits := func(n int) bool {
		slots, err := l.slots(n)
		return err == nil && slots+l.state+l.kernels <= bytes
	}
	if !fits(1) {
		return 0
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
	return n
}
