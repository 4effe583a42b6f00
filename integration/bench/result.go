package bench

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"

	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/weights"
)

// Phase is what a sample times.
type Phase string

const (
	Prompt Phase = "prompt" // one micro-batch that ends at the context
	Decode Phase = "decode" // tokens one by one behind the context

	Together Phase = "together" // the same of several sequences, a token of each in a batch; speeds are of all of them
)

// Result is what Run measured, as JSON has it.
type Result struct {
	Time time.Time `json:"time"`
	provenance.Build
	Other *provenance.Build `json:"other,omitempty"` // the runtime of the methods that end in -other: compiler, flags, instruction sets

	Model   string `json:"model"`
	Threads int    `json:"threads"`
	GPU     int    `json:"gpu_layers,omitempty"` // layers on a device
	Device  bool   `json:"on_device,omitempty"`  // LESS on it too
	Ubatch  int    `json:"ubatch"`
	Layers  int    `json:"layers"`
	Budget  int    `json:"budget"` // slots per KV head
	Policy  string `json:"policy"`
	Slots   string `json:"slots"` // type
	Rank    int    `json:"rank"`  // the largest of a layer, as the hidden size
	Hidden  int    `json:"hidden"`
	Sizes   string `json:"sizes,omitempty"` // of an adapter's layers, in words
	Kernels string `json:"kernels"`         // types of phi and psi; "": there are none

	Sequences int `json:"sequences,omitempty"` // that decode together

	Samples []Sample `json:"samples,omitempty"`
	Memory  []Memory `json:"memory,omitempty"`
	Node    *Node    `json:"node,omitempty"`
	Growth  *Growth  `json:"growth,omitempty"`

	Weights   int64     `json:"weights,omitempty"`   // bytes of them that decoding reads for a token
	Bandwidth []float64 `json:"bandwidth,omitempty"` // bytes a second that as many threads read from main memory, by round

	Processes []Process `json:"processes,omitempty"`
}

// A Sample is one measurement.
type Sample struct {
	Method  string  `json:"method"`
	Context int     `json:"context"` // tokens
	Phase   Phase   `json:"phase"`
	Round   int     `json:"round"`
	Tokens  int     `json:"tokens"`
	Seconds float64 `json:"seconds"`

	Phases map[string]float64 `json:"phases,omitempty"` // seconds of LESS's phases, summed over layers and threads
	Node   float64            `json:"node,omitempty"`   // seconds of the attention nodes
}

// Memory is what a process holds at a context.
type Memory struct {
	Method   string `json:"method"`
	Context  int    `json:"context"`
	Peak     int64  `json:"peak"` // of the process, while it prompted and decoded there
	Resident int64  `json:"resident"`
	Cache    int64  `json:"cache"` // of this context; LESS: slots, state, phi and psi
	Scratch  int64  `json:"scratch,omitempty"`
	Read     int64  `json:"read,omitempty"` // bytes of the cache that decoding reads for a token
	Full     int64  `json:"full"`           // what an f16 cache of this context holds
	Kept     int    `json:"kept,omitempty"`
}

// Node compares rates in GFLOPS: LESS's attention node, and the runtime's matrix product of its shapes.
type Node struct {
	Context int     `json:"context"`
	Node    float64 `json:"node"`
	Matmul  float64 `json:"matmul"`
}

// Growth is the peak of a process that fed a long prompt, before and after.
type Growth struct {
	From   int   `json:"from"` // tokens
	To     int   `json:"to"`
	Budget int   `json:"budget"`
	Before int64 `json:"before"` // bytes
	After  int64 `json:"after"`
}

// Process is the peak of a process that was opened for a context, and has prompted and decoded a little.
type Process struct {
	Method  string `json:"method"`
	Context int    `json:"context"` // n_ctx
	Peak    int64  `json:"peak"`    // bytes
}

// process returns the peak of a method's process of a context, 0 if it was not measured.
func (r *Result) process(method string, context int) int64 {
	for _, p := range r.Processes {
		if p.Method == method && p.Context == context {
			return p.Peak
		}
	}
	return 0
}

func newResult(o *Options, name, program string, m *weights.Model, budget int) Result {
	r := Result{
		Time: time.Now().UTC().Truncate(time.Second), Build: provenance.Of(program),
		Model: name, Threads: o.Threads, GPU: o.GPULayers, Device: o.OnDevice, Ubatch: o.Ubatch, Layers: m.Layers, Budget: budget, Policy: o.Policy,
		Slots: o.SlotType, Rank: o.Rank, Hidden: o.Hidden, Sizes: o.sizes, Kernels: o.types,
		Sequences: o.Sequences,
	}
	if o.OtherBuild != "" {
		other := provenance.Runtime(layout.Layout(o.OtherBuild).Worker())
		r.Other = &other
	}
	return r
}

// A Spread is a median with the extremes and the interval round it.
type Spread struct {
	Median, Min, Max float64
	Low, High        float64 // interval
	N                int
}

func (s Spread) String() string {
	return fmt.Sprintf("%.3g (%.3g to %.3g, %d)", s.Median, s.Min, s.Max, s.N)
}

func spread(x []float64) Spread {
	if len(x) == 0 {
		return Spread{}
	}
	x = slices.Sorted(slices.Values(x))
	low, high := interval(x)
	return Spread{median(x), x[0], x[len(x)-1], low, high, len(x)}
}

// confidence is the probability with which an interval holds the median of all rounds that could be run.
const confidence = 7. / 8

// interval returns two of some sorted values, as near to each other as confidence allows: of seven the second and the sixth. Of fewer than
// four they are the extremes, whatever the probability.
func interval(x []float64) (low, high float64) {
	below := distuv.Binomial{N: float64(len(x)), P: 0.5} // how many of them are below that median
	out := sort.Search(len(x)/2, func(n int) bool {      // how many are left out at each end: as long as one more may be
		return 2*below.CDF(float64(n+1)) > 1-confidence+1e-9 // what is equal is computed with rounding
	})
	return x[out], x[len(x)-1-out]
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	switch n := len(x); {
	case n == 0:
		return 0
	case n%2 == 0:
		return stat.Mean(x[n/2-1:n/2+1], nil)
	default:
		return x[n/2]
	}
}

// Cell names what was measured over and over.
type Cell struct {
	Method  string
	Context int
	Phase   Phase
}

// speeds returns tokens a second by round.
func (r *Result) speeds(c Cell) map[int]float64 {
	m := map[int]float64{}
	for _, s := range r.Samples {
		if s.Method == c.Method && s.Context == c.Context && s.Phase == c.Phase {
			m[s.Round] = float64(s.Tokens) / s.Seconds
		}
	}
	return m
}

// Speed returns tokens a second.
func (r *Result) Speed(c Cell) Spread { return spread(values(r.speeds(c))) }

// Ratio divides a's speed by b's, round by round.
func (r *Result) Ratio(a, b Cell) Spread { return pairs(r.speeds(a), r.speeds(b)) }

func pairs(a, b map[int]float64) Spread {
	var ratios []float64
	for round, x := range a {
		if y, ok := b[round]; ok {
			ratios = append(ratios, x/y)
		}
	}
	return spread(ratios)
}

func values(m map[int]float64) []float64 {
	var x []float64
	for _, v := range m {
		x = append(x, v)
	}
	return x
}

// Best returns the cell of the unmodified method that was the fastest there.
func (r *Result) Best(context int, phase Phase) Cell {
	best := Cell{"f16", context, phase}
	for _, m := range Methods() {
		if c := (Cell{m.Name, context, phase}); m.Tree == worker.Unmodified && r.Speed(c).Median > r.Speed(best).Median {
			best = c
		}
	}
	return best
}

// Contexts lists the contexts that have samples or processes, ascending.
func (r *Result) Contexts() []int {
	var list []int
	for _, s := range r.Samples {
		list = append(list, s.Context)
	}
	for _, p := range r.Processes {
		list = append(list, p.Context)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Methods lists the methods that have samples or processes, in the order of Methods, each before itself on the other runtime.
func (r *Result) Methods() []string {
	var list []string
	for _, m := range Methods() {
		for _, name := range []string{m.Name, m.other().Name} {
			if slices.ContainsFunc(r.Samples, func(s Sample) bool { return s.Method == name }) ||
				slices.ContainsFunc(r.Processes, func(p Process) bool { return p.Method == name }) {
				list = append(list, name)
			}
		}
	}
	return list
}

// whole returns the tokens a second of a whole prompt by round. The time of a micro-batch is a line between the contexts that
// were measured: attention's cost grows with the context, LESS's until its slots are full. From the first context down it
// is that one's.
func (r *Result) whole(method string, context int) map[int]float64 {
	out := map[int]float64{}
	for round := range r.speeds(Cell{method, context, Prompt}) {
		var at, t []float64 // where a micro-batch ends, and seconds that it takes
		for _, c := range r.Contexts() {
			speeds := r.speeds(Cell{method, c, Prompt})
			speed, ok := speeds[round]
			if !ok || c > context {
				continue
			}
			at, t = append(at, float64(c)), append(t, float64(r.Ubatch)/speed)
		}
		sum, i := 0., 0
		for end := r.Ubatch; end <= context; end += r.Ubatch {
			x := float64(end)
			for i+1 < len(at) && x > at[i+1] {
				i++
			}
			switch {
			case x <= at[0]:
				sum += t[0]
			case i+1 < len(at):
				sum += t[i] + (t[i+1]-t[i])*(x-at[i])/(at[i+1]-at[i])
			default:
				sum += t[len(t)-1]
			}
		}
		out[round] = float64(context/r.Ubatch*r.Ubatch) / sum
	}
	return out
}

// Whole returns the tokens a second of a whole prompt, summed up from its measured micro-batches.
func (r *Result) Whole(method string, context int) Spread {
	return spread(values(r.whole(method, context)))
}

// bestWhole returns the unmodified method that was the fastest over a whole prompt.
func (r *Result) bestWhole(context int) string {
	best := "f16"
	for _, m := range Methods() {
		if m.Tree == worker.Unmodified && r.Whole(m.Name, context).Median > r.Whole(best, context).Median {
			best = m.Name
		}
	}
	return best
}

// WholeRatio divides a's speed over a whole prompt by b's, round by round.
func (r *Result) WholeRatio(a, b string, context int) Spread {
	return pairs(r.whole(a, context), r.whole(b, context))
}

// memory returns what was kept of a method at a context.
func (r *Result) memory(method string, context int) (Memory, bool) {
	i := slices.IndexFunc(r.Memory, func(m Memory) bool { return m.Method == method && m.Context == context })
	if i < 0 {
		return Memory{}, false
	}
	return r.Memory[i], true
}
