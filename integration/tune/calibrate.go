package tune

import (
	"context"
	"math"
	"slices"
)

// calibrationLevel returns the slots to which layers are limited where their heads are replayed, one of the levels: about a quarter of the
// budget, where even a layer that hardly matters costs more than noise.
func calibrationLevel(budget int, levels []int) int {
	return levels[max(slices.Index(levels, budget)-2, 0)]
}

// calibrate turns the errors of replays into what limiting each head costs. The KL is that of a layer, measured at one of the levels, shared
// among its heads in proportion to their errors. At the other levels a unit of error costs as much as there: KL grows as the square of a
// small change of what a layer puts out. A layer that costs nothing that can be measured counts as the one whose errors cost least.
func calibrate(r *Result, layers [][]int, losses []Loss, level int, measured []float64) {
	at := slices.Index(r.Levels, level)
	nats := make([]float64, len(layers)) // for a unit of error
	lowest := 0.
	for i, heads := range layers {
		sum := 0.
		for _, j := range heads {
			sum += losses[j].Error[at]
		}
		if sum > 0 && measured[i] > 0 {
			nats[i] = measured[i] / sum
			if lowest == 0 || nats[i] < lowest {
				lowest = nats[i]
			}
		}
	}
	for i, heads := range layers {
		row := make([]float64, len(r.Levels))
		for l := range r.Levels {
			for _, j := range heads {
				d := max(nats[i], lowest) * losses[j].Error[l]
				r.Heads[j].Distance[l] = d
				row[l] += d
			}
		}
		for _, j := range heads {
			falling(r.Heads[j].Distance)
		}
		r.Layers = append(r.Layers, falling(row))
	}
}

// predicted returns what the heads of a layer cost together, each limited alone.
func (m *meter) predicted(r *Result, heads, slots []int) (sum float64) {
	for _, j := range heads {
		sum += curve(r.Levels, r.Heads[j].Distance, m.context, slots[j])
	}
	return sum
}

// corrected returns a result whose heads cost so many times as much, by layer.
func corrected(r *Result, layers [][]int, by []float64) *Result {
	c := *r
	c.Heads = slices.Clone(r.Heads)
	for i, heads := range layers {
		for _, j := range heads {
			c.Heads[j].Distance = scaled(c.Heads[j].Distance, by[i])
		}
	}
	return &c
}

// correct is a round where heads were replayed. It measures how the distance changes where one layer that matters has less slots than an
// allocation, the others as they are, and spreads the total anew with costs that would have predicted it. It returns these costs too.
func (m *meter) correct(ctx context.Context, r *Result, layers [][]int, now candidate) (candidate, *Result, error) {
	costs := make([][]float64, len(layers))
	for i, heads := range layers {
		costs[i] = []float64{m.predicted(r, heads, now.slots)}
	}
	var which []int
	var all [][]int
	for _, i := range matter(costs, m.o.Share) {
		if less := m.scaled(now.slots, layers[i], 1/factor); !slices.Equal(less, now.slots) { // else it has the least already
			which, all = append(which, i), append(all, less)
		}
	}
	d, err := m.distances(ctx, Allocations, m.o.Windows, all)
	if err != nil {
		return now, r, err
	}
	by := slices.Repeat([]float64{1}, len(layers))
	const most = 4 // beyond that one of the two is noise
	for k, i := range which {
		if want := m.predicted(r, layers[i], all[k]) - costs[i][0]; want > 0 {
			by[i] = min(max((d[k]-now.distance)/want, 1./most), most)
		}
	}
	c := corrected(r, layers, by)
	slots, err := m.greedy(ctx, c)
	if err != nil {
		return now, r, err
	}
	half := make([]int, len(slots))
	for j := range half {
		half[j] = int(math.Round(math.Sqrt(float64(slots[j]) * float64(now.slots[j]))))
	}
	tried, err := m.try(ctx, slots, half)
	if err != nil {
		return now, r, err
	}
	return closest(tried), c, nil
}
