package tune

import (
	"context"
	"math"
	"slices"
)

// calibrationLevels are the slots to which layers are limited where their heads are replayed: what the layers cost there turns errors
// into nats.
func calibrationLevels(budget int, levels []int) []int {
	i := slices.Index(levels, budget)
	return []int{levels[max(i-2, 0)]}
}

// A calibration is the KL of a layer for each unit of its heads' errors, at one or several levels of slots.
type calibration struct {
	levels []int
	nats   []float64
}

// at returns it at any number of slots: between two levels a power law, beyond them what it is there.
func (c calibration) at(n int) float64 {
	i, ok := slices.BinarySearch(c.levels, n)
	switch {
	case ok:
		return c.nats[i]
	case i == 0:
		return c.nats[0]
	case i == len(c.levels):
		return c.nats[i-1]
	}
	share := math.Log(float64(n)/float64(c.levels[i-1])) / math.Log(float64(c.levels[i])/float64(c.levels[i-1]))
	return math.Pow(c.nats[i-1], 1-share) * math.Pow(c.nats[i], share)
}

// calibrate turns the errors of replays into what limiting each head costs. The KL is that of a layer, measured at some of the levels,
// shared among its heads in proportion to their errors; at the other levels a unit of error costs as much as there. A layer that costs
// nothing that can be measured counts as the one whose errors cost least.
func calibrate(r *Result, layers [][]int, losses []Loss, levels []int, measured [][]float64) {
	sums := make([][]float64, len(layers)) // of the errors, [layer][level]
	for i, heads := range layers {
		sums[i] = make([]float64, len(r.Levels))
		for _, j := range heads {
			for l, e := range losses[j].Error {
				sums[i][l] += e
			}
		}
	}
	all := make([]calibration, len(layers))
	for i := range layers {
		all[i] = calibration{levels, make([]float64, len(levels))}
	}
	for k, n := range levels {
		l := slices.Index(r.Levels, n)
		lowest := 0.
		for i := range layers {
			if sums[i][l] > 0 {
				all[i].nats[k] = max(0, measured[i][k]) / sums[i][l]
			}
			if x := all[i].nats[k]; x > 0 && (lowest == 0 || x < lowest) {
				lowest = x
			}
		}
		for i := range layers {
			all[i].nats[k] = max(all[i].nats[k], lowest)
		}
	}
	for i, heads := range layers {
		row := make([]float64, len(r.Levels))
		for l, n := range r.Levels {
			c := all[i].at(n)
			for _, j := range heads {
				r.Heads[j].Distance[l] = c * losses[j].Error[l]
			}
			row[l] = c * sums[i][l]
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
			d := slices.Clone(c.Heads[j].Distance)
			for l := range d {
				d[l] *= by[i]
			}
			c.Heads[j].Distance = d
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
	if tried[1].distance < tried[0].distance {
		return tried[1], c, nil
	}
	return tried[0], c, nil
}
