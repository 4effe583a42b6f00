package kernels

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/reference"
)

// allocation is "Budgets by layer and head" of algorithm.md, step by step, in fractions.
func allocation(weights []float32, budget, least, most int) []int {
	n := len(weights)
	w := make([]int64, n)
	for i, x := range weights {
		w[i] = int64(math.Round(float64(x) * 65536))
	}
	capped := make([]bool, n)
	share := make([]*big.Rat, n)
	for again := true; again; {
		rest, sum, open := big.NewRat(int64(n)*int64(budget), 1), int64(0), int64(0)
		for i := range n {
			if capped[i] {
				rest.Sub(rest, big.NewRat(int64(most), 1))
			} else {
				rest.Sub(rest, big.NewRat(int64(least), 1))
				sum, open = sum+w[i], open+1
			}
		}
		again = false
		for i := range n {
			switch {
			case capped[i]:
				share[i] = big.NewRat(int64(most), 1)
				continue
			case sum == 0:
				share[i] = big.NewRat(1, open)
			default:
				share[i] = big.NewRat(w[i], sum)
			}
			share[i].Mul(share[i], rest)
			share[i].Add(share[i], big.NewRat(int64(least), 1))
		}
		for i := range n {
			if !capped[i] && share[i].Cmp(big.NewRat(int64(most), 1)) > 0 {
				capped[i], again = true, true
			}
		}
	}
	slots, order, over := make([]int, n), make([]int, n), n*budget
	fraction := make([]*big.Rat, n)
	for i := range n {
		slots[i], order[i] = int(new(big.Int).Quo(share[i].Num(), share[i].Denom()).Int64()), i
		fraction[i] = new(big.Rat).Sub(share[i], big.NewRat(int64(slots[i]), 1))
		over -= slots[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return fraction[b].Cmp(fraction[a]) })
	for _, i := range order {
		if over > 0 && slots[i] < most {
			slots[i]++
			over--
		}
	}
	return slots
}

// TestAllocate: allocations of random geometries are those of the contract, their sum is exact, and so are the bytes of a cache.
func TestAllocate(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 1))
	for range 1000 {
		weights := make([]float32, 1+rng.IntN(70))
		kind := rng.IntN(5)
		for i := range weights {
			switch weights[i] = float32(rng.Float64()); {
			case kind == 0:
				weights[i] = 1
			case kind == 1 && rng.IntN(3) > 0:
				weights[i] = 0
			case kind == 2:
				weights[i] = float32(math.Exp(8 * rng.NormFloat64()))
			case kind == 3:
				weights[i] = float32(rng.IntN(3)) / 3
			}
			weights[i] = min(weights[i], MaxWeight)
		}
		most := 1 + rng.IntN(pick(rng, 10, 5000, math.MaxInt32))
		budget := 1 + rng.IntN(most)
		least := min(budget, 1+rng.IntN(20))
		slots, err := Allocate(weights, budget, least, most)
		require.NoError(t, err)
		require.Equal(t, allocation(weights, budget, least, most), slots, "%v, %d a head, from %d to %d", weights, budget, least, most)

		total := 0
		for _, n := range slots {
			require.True(t, n >= least && n <= most)
			total += n
		}
		require.Equal(t, len(slots)*budget, total)
		types := []Type{F32, F16, Q80, Q40}
		k, v := rng.IntN(len(types)), rng.IntN(len(types))
		block := []int{1, 1, 32, 32}           // numbers
		blockBytes := []int{4, 2, 34, 18}      // of one
		dk, dv := 1+rng.IntN(8), 1+rng.IntN(8) // blocks
		l := Layer{Heads: len(slots), HeadsKV: len(slots), KeySize: dk * block[k], ValueSize: dv * block[v], KeyType: types[k], ValueType: types[v], Policy: "peak"}
		for _, n := range slots {
			l.Budgets = append(l.Budgets, Budget{Slots: n, Heavy: n / 4})
		}
		c := testCase{layer: l, rank: rng.IntN(3), hidden: 1}
		c.kernels(t, rng)
		bytes, state, err := c.layer.Bytes()
		require.NoError(t, err)
		require.Equal(t, total*(dk*blockBytes[k]+dv*blockBytes[v]+8), bytes)
		require.Equal(t, len(slots)*4*c.rank*(l.ValueSize+1), state)
	}
}

// TestHeads: the floor, and h of a head ("Budgets by layer and head" in algorithm.md).
func TestHeads(t *testing.T) {
	for _, want := range [][3]int{{100, 0, 8}, {100, 1, 8}, {100, 4, 8}, {100, 10, 14}, {5, 1, 5}, {12, 10, 12}, {100, math.MaxInt32, 100}} {
		require.Equal(t, want[2], HeadLeast(want[0], want[1]), want)
	}
	for _, c := range [][5]int{{100, 41, -1, 1, 25}, {8, 41, -1, 1, 2}, {1, 41, -1, 0, 0}, {3, 41, -1, 1, 1}, {8, 41, -1, 6, 6}, {8, 41, -1, 20, 8}, {100, 41, 10, 1, 24}, {3, 41, 10, 1, 1}, {8, 41, 0, 0, 0}} {
		slots, budget, heavy, pinned := c[0], c[1], c[2], c[3]
		for _, policy := range PolicyNames() {
			want := slots * heavy / budget
			if heavy < 0 {
				want = reference.PolicyOf(policy).Heavy(slots)
			}
			want = min(max(want, pinned), slots)
			h, err := HeadHeavy(policy, slots, budget, heavy, pinned)
			require.NoError(t, err)
			require.Equal(t, want, h, "%s: %v", policy, c)
			if policy == "peak" {
				require.Equal(t, c[4], h, c)
			}
		}
	}
	_, err := HeadHeavy("oracle", 8, 41, -1, 1)
	require.ErrorIs(t, err, ErrArgument)
}

func TestAllocateRefused(t *testing.T) {
	for name, bad := range map[string]func() ([]int, error){
		"no heads":         func() ([]int, error) { return Allocate(nil, 10, 1, 10) },
		"nothing":          func() ([]int, error) { return Allocate([]float32{1}, 10, 0, 10) },
		"too little":       func() ([]int, error) { return Allocate([]float32{1}, 3, 4, 10) },
		"too much":         func() ([]int, error) { return Allocate([]float32{1}, 11, 1, 10) },
		"a negative":       func() ([]int, error) { return Allocate([]float32{1, -.1}, 5, 1, 10) },
		"not a number":     func() ([]int, error) { return Allocate([]float32{1, float32(math.NaN())}, 5, 1, 10) },
		"infinite":         func() ([]int, error) { return Allocate([]float32{float32(math.Inf(1)), 1}, 5, 1, 10) },
		"a weight too far": func() ([]int, error) { return Allocate([]float32{2 * MaxWeight, 1}, 5, 1, 10) },
	} {
		_, err := bad()
		require.ErrorIs(t, err, ErrArgument, name)
	}
}
