package memory

import (
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// A Plan is what a process with a model takes, by context and cache, and which fit into how much memory.
type Plan struct {
	Model       *weights.Model
	Weights     uint64 // bytes of the model's tensors: func Weights
	Cache       Cache  // LESS's, but for context and budget
	Checkpoints int    // of a LESS cache
	Ubatch      int    // tokens of a micro-batch
	Threads     int
	Bound       uint64 // bytes that the process may take

	Rows []Row
}

// A Row is one cache at one context.
type Row struct {
	Context int
	Full    bool      // the unmodified cache
	Type    gguf.Type // of that
	Budget  Budget    // of LESS's; zero is the default
	Slots   int       // of a KV head, on average, of LESS's
	Process Process
}

// AddFull adds the unmodified cache of a type. It fails with ErrType.
func (p *Plan) AddFull(context int, t gguf.Type) error {
	bytes, err := Full(p.Model, context, t)
	if err != nil {
		return err
	}
	p.Rows = append(p.Rows, Row{Context: context, Full: true, Type: t,
		Process: Process{Weights: p.Weights, Slots: bytes, State: p.Model.RecurrentBytes(), Compute: Compute(p.Model, p.Ubatch)}})
	return nil
}

// AddLESS adds the cache of LESS under a budget. It fails as Less does.
func (p *Plan) AddLESS(context int, b Budget) error {
	c := p.Cache
	c.Context, c.Budget = context, b
	bytes, err := Less(p.Model, c)
	if err != nil {
		return err
	}
	p.Rows = append(p.Rows, Row{Context: context, Budget: b, Slots: bytes.Budget, Process: Process{
		Weights: p.Weights, Kernels: bytes.Kernels, Slots: bytes.Slots, State: bytes.State + bytes.Recurrent, Checkpoints: bytes.Checkpoints(p.Model, p.Checkpoints),
		Scratch: Scratch(p.Model, bytes.Most, p.Ubatch, p.Threads), Compute: Compute(p.Model, p.Ubatch)}})
	return nil
}

// Fits tells whether a row's process takes no more than the bound.
func (p *Plan) Fits(r Row) bool { return r.Process.Total() <= p.Bound }

// Best returns the row to advise: at the longest context at which one fits, the full f16 cache, or else the LESS cache by default or with most
// slots.
func (p *Plan) Best() (best Row, ok bool) {
	for _, r := range p.Rows {
		if !p.Fits(r) || r.Full && r.Type != gguf.F16 {
			continue
		}
		if !ok || r.Context > best.Context || !best.Full && r.better(best) {
			best, ok = r, true
		}
	}
	return best, ok
}

// Default returns LESS's cache of a context with the default budget, if that is among the rows.
func (p *Plan) Default(context int) (Row, bool) {
	for _, r := range p.Rows {
		if r.Context == context && r.byDefault() {
			return r, true
		}
	}
	return Row{}, false
}

// Below returns LESS's cache to advise of those of a context with which a process takes less than so many bytes.
func (p *Plan) Below(context int, bytes uint64) (best Row, ok bool) {
	for _, r := range p.Rows {
		if r.Context == context && !r.Full && r.Process.Total() < bytes && (!ok || r.better(best)) {
			best, ok = r, true
		}
	}
	return best, ok
}

func (r Row) byDefault() bool { return !r.Full && r.Budget == Budget{} }

// better tells whether a LESS cache is rather advised than another: that by default, or else the one with more slots.
func (r Row) better(than Row) bool {
	if r.byDefault() != than.byDefault() {
		return r.byDefault()
	}
	return r.Slots > than.Slots
}
