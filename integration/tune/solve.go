package tune

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sort"

	"github.com/lesskv/lesskv/cgo/kernels"
)

// allocation is what an adapter with weights of these slots makes of the budget: the contract's arithmetic. Where slots differ in size it is
// the largest budget whose slots take no more than the meter's, spread equally.
func (m *meter) allocation(slots []int) (weights []float32, exact []int, err error) {
	base := least(m.budget)
	sum := 0.0
	for _, n := range slots {
		sum += float64(max(n-base, 0))
	}
	for _, n := range slots {
		w := 1.0
		if sum > 0 {
			w = float64(max(n-base, 0)) * float64(len(slots)) / sum
		}
		weights = append(weights, float32(w))
	}
	if exact, err = kernels.Allocate(weights, m.budget, base, m.context); err != nil || m.slot == nil {
		return weights, exact, err
	}
	room := m.takes(slices.Repeat([]int{m.budget}, len(slots)))
	fits := func(budget int) bool {
		var all []int
		if all, err = kernels.Allocate(weights, budget, least(budget), m.context); err != nil {
			return false
		}
		if m.takes(all) > room {
			return false
		}
		exact = all
		return true
	}
	sort.Search(m.context, func(b int) bool { return !fits(b + 1) }) // the last that fits is exact
	return weights, exact, err
}

// A candidate is an allocation that was measured as a whole.
type candidate struct {
	weights  []float32
	slots    []int
	distance float64
}

// try measures allocations as a whole.
func (m *meter) try(ctx context.Context, many ...[]int) (all []candidate, err error) {
	var exact [][]int
	for _, slots := range many {
		c := candidate{}
		if c.weights, c.slots, err = m.allocation(slots); err != nil {
			return nil, err
		}
		all, exact = append(all, c), append(exact, c.slots)
	}
	d, err := m.distances(ctx, Allocations, m.o.Windows, exact)
	for i := range d {
		all[i].distance = d[i]
	}
	return all, err
}

// closest returns the candidate of the least distance; of equal ones the first.
func closest(all []candidate) candidate {
	return slices.MinFunc(all, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
}

// solve finds the allocation: what the parts predict, and what is better than that when it is measured. Never one that is worse than
// equal budgets.
func (m *meter) solve(ctx context.Context, r *Result) error {
	slots, err := m.greedy(ctx, r)
	if err != nil {
		return err
	}
	tries := [][]int{slices.Repeat([]int{r.Budget}, len(r.Heads)), slots}
	if m.o.From != nil {
		var begin []int
		for _, h := range r.Heads {
			begin = append(begin, h.Slots)
		}
		tries = append(tries, begin)
	}
	parts, layers, rounds := partsOf(r.Heads), byLayer(m.heads), m.o.rounds(r.Replayed)
	m.total = len(tries) + rounds*(2*len(parts)+len(trusts)) + 2
	if r.Replayed {
		m.total = len(tries) + rounds*(len(layers)+2) + 2
	}
	first, err := m.try(ctx, tries...)
	if err != nil {
		return err
	}
	equal, best := first[0], first[1]
	r.Equal = equal.distance
	for j, h := range r.Heads {
		r.Guess += curve(r.Levels, h.Distance, m.context, best.slots[j])
	}
	r.Guess += r.Full
	best = closest(first)
	costs := r
	for round, trust := 0, 1.; round < rounds && len(parts) > 1; round++ {
		var next candidate
		if r.Replayed {
			next, costs, err = m.correct(ctx, costs, layers, best)
		} else {
			next, err = m.round(ctx, parts, best, trust)
		}
		if err != nil {
			return err
		}
		if next.distance >= best.distance {
			if trust /= 2; trust < .2 || r.Replayed { // what is left is noise
				break
			}
			continue
		}
		best = next
	}
	m.total = 0
	d, err := m.distances(ctx, Validation, m.o.Valid, [][]int{equal.slots, best.slots})
	if err != nil {
		return err
	}
	if r.EqualValid, r.TunedValid = d[0], d[1]; r.EqualValid <= r.TunedValid {
		best, r.TunedValid = equal, r.EqualValid
	}
	r.Tuned, r.Bytes = best.distance, m.bytesOf(best.slots)
	for j := range r.Heads {
		r.Heads[j].Slots, r.Heads[j].Weight = best.slots[j], best.weights[j]
	}
	return nil
}

// rounds is how many there are at most.
func (o *Options) rounds(replayed bool) int {
	switch {
	case o.Rounds != 0:
		return max(o.Rounds, 0)
	case replayed:
		return 1
	}
	return 4
}

// partsOf lists what is given less or more at a time: each head that was measured by itself, and of each layer the others.
func partsOf(heads []Head) (parts [][]int) {
	layer := -1
	for j, h := range heads {
		switch {
		case h.Measured:
			parts = append(parts, []int{j})
		case h.Layer == layer:
			parts[len(parts)-1] = append(parts[len(parts)-1], j)
		default:
			parts = append(parts, []int{j})
			layer = h.Layer
		}
	}
	return parts
}

const factor = 1.5 // by which a part has less or more in a round, at a trust of 1

var trusts = [2]float64{1, .5} // how far a round goes, of a factor of 2: the better of these is taken

// round measures how the distance changes where one part has less or more slots than an allocation, the others as they are, and spreads
// the total by that.
func (m *meter) round(ctx context.Context, parts [][]int, now candidate, trust float64) (candidate, error) {
	by := math.Pow(factor, trust)
	var all [][]int
	for _, part := range parts {
		for _, x := range []float64{1 / by, by} {
			all = append(all, m.scaled(now.slots, part, x))
		}
	}
	d, err := m.distances(ctx, Allocations, m.o.Windows, all)
	if err != nil {
		return now, err
	}
	slopes := make([]slope, len(parts))
	for i, part := range parts {
		count := func(slots []int) (n float64) {
			for _, j := range part {
				n += float64(slots[j]) * m.size(j)
			}
			return n
		}
		n := count(now.slots)
		slopes[i] = newSlope(n, count(all[2*i])/n, count(all[2*i+1])/n, d[2*i]-now.distance, now.distance-d[2*i+1])
	}
	var next [][]int
	for _, t := range trusts {
		slots := now.slots
		for i, x := range spread(slopes, math.Pow(2, trust*t)) {
			slots = m.scaled(slots, parts[i], x)
		}
		next = append(next, slots)
	}
	tried, err := m.try(ctx, next...)
	if err != nil {
		return now, err
	}
	return closest(tried), nil
}

// scaled gives a part x times the slots that it has.
func (m *meter) scaled(slots, part []int, x float64) []int {
	slots = slices.Clone(slots)
	for _, j := range part {
		slots[j] = min(m.context, max(least(m.budget), int(math.Round(float64(slots[j])*x))))
	}
	return slots
}

// A slope is what a part costs when it has x times its n slots, for x near 1: gain x^-power, and a constant.
type slope struct{ n, gain, power float64 }

// newSlope makes one of what it costs to have less times the slots, and what having more times as many gains. One of the two is 1 where
// a part has as few or as many as it can.
func newSlope(n, less, more, costs, gains float64) slope {
	s := slope{n, 0, 1}
	costs, gains = max(costs, 0), max(gains, 0)
	if less < 1 && more > 1 && costs > 0 && gains > 0 { // as both are, for steps of nearly one size
		s.power = math.Log(costs/gains) / math.Log(math.Sqrt(more/less))
		s.power = min(max(s.power, .3), 4)
	}
	if fall := math.Pow(less, -s.power) - math.Pow(more, -s.power); fall > 0 {
		s.gain = (costs + gains) / fall
	}
	return s
}

// spread returns the factors, up to most and down to its inverse, that keep the sum of the slots and make the parts cost least together.
func spread(parts []slope, most float64) []float64 {
	total := 0.0
	for _, s := range parts {
		total += s.n
	}
	at := func(price float64) (x []float64, sum float64) { // where one slot more gains as much as the price everywhere
		for _, s := range parts {
			f := 1 / most
			if s.gain > 0 {
				f = min(max(math.Pow(s.gain*s.power/(price*s.n), 1/(s.power+1)), 1/most), most)
			}
			x = append(x, f)
			sum += f * s.n
		}
		return x, sum
	}
	low, high := 1e-30, 1e30
	for range 300 {
		price := math.Sqrt(low * high)
		if _, sum := at(price); sum > total {
			low = price
		} else {
			high = price
		}
	}
	x, _ := at(high)
	return x
}
