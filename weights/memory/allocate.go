package memory

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/lesskv/lesskv/weights"
)

// Allocate spreads len(w) times budget slots over KV heads by their weights, of which each has at least least and none more than most:
// "Budgets by layer and head" in algorithm.md, in exact integers. It fails with ErrBudget unless 1 <= least <= budget <= most and every
// weight is from 0 to weights.MaxWeight.
func Allocate(w []float32, budget, least, most int) ([]int, error) {
	if len(w) == 0 || least < 1 || budget < least || most < budget {
		return nil, fmt.Errorf("%d slots over %d heads, of which each has from %d to %d: %w", budget, len(w), least, most, ErrBudget)
	}
	fixed := make([]uint64, len(w)) // in parts of 2^16
	for i, x := range w {
		if !(x >= 0 && x <= weights.MaxWeight) {
			return nil, fmt.Errorf("weight %v of head %d: want 0 to %d: %w", x, i, weights.MaxWeight, ErrBudget)
		}
		fixed[i] = uint64(math.Round(float64(x) * (1 << 16)))
	}
	slots, capped, left := make([]int, len(w)), make([]bool, len(w)), make([]uint64, len(w))
	for {
		rest, sum, n := uint64(len(w)*budget), uint64(0), uint64(0)
		for i := range w {
			if capped[i] {
				rest -= uint64(most)
				continue
			}
			rest -= uint64(least)
			sum += fixed[i]
			n++
		}
		of := func(i int) uint64 { return fixed[i] }
		if sum == 0 {
			of, sum = func(int) uint64 { return 1 }, n
		}
		again := false
		for i := range w {
			if capped[i] {
				continue
			}
			hi, lo := bits.Mul64(rest, of(i))
			overHi, overLo := bits.Mul64(uint64(most-least), sum)
			if hi > overHi || hi == overHi && lo > overLo {
				capped[i], again = true, true
			}
		}
		if again {
			continue
		}
		for i := range w {
			if slots[i] = most; !capped[i] {
				hi, lo := bits.Mul64(rest, of(i))
				var share uint64
				share, left[i] = bits.Div64(hi, lo, sum)
				slots[i] = least + int(share)
			}
		}
		spread(slots, capped, left, len(w)*budget)
		return slots, nil
	}
}

// spread gives what rounding down has left to the largest fractions, one slot each.
func spread(slots []int, capped []bool, left []uint64, total int) {
	open := false
	for i, n := range slots {
		total -= n
		open = open || !capped[i]
	}
	for ; open && total > 0; total-- {
		top := 0
		for i := range left {
			if left[i] > left[top] {
				top = i
			}
		}
		slots[top]++
		left[top] = 0
	}
}
