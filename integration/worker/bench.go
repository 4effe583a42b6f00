package worker

import (
	"strings"
	"time"
)

// Fill continues what a sequence of an unmodified cache holds with copies of it, to n tokens at positions 0 to n - 1: keys and
// values of no meaning, for measuring speed.
func (w *Worker) Fill(seq, n int) error {
	_, err := w.call("fill", nil, "seq", seq, "n", n)
	return err
}

// ResetPeak makes Memory's peak count from now on, where the system can (Linux).
func (w *Worker) ResetPeak() error {
	_, err := w.call("memory", nil, "reset", true)
	return err
}

// Quantize writes a model in another type, one of llama.cpp's names like Q4_0 or Q4_K_M.
func (w *Worker) Quantize(from, to, kind string, threads int) error {
	_, err := w.call("quantize", nil, "from", from, "to", to, "type", kind, "threads", threads)
	return err
}

// Matmul is a prompt's attention as the runtime's own matrix product computes it.
type Matmul struct {
	HeadSize       int // D = Dv
	Pairs          int // that every query sees
	Tokens         int
	Heads, HeadsKV int
	Threads        int
}

// Flops counts two operations for each multiplication of the two products.
func (m Matmul) Flops() float64 {
	return 4 * float64(m.HeadSize) * float64(m.Pairs) * float64(m.Tokens) * float64(m.Heads)
}

// Matmul returns how long the two products take: queries times keys, weights times values; the median of a few rounds.
func (w *Worker) Matmul(m Matmul) (time.Duration, error) {
	r, err := w.call("matmul", nil, "d", m.HeadSize, "pairs", m.Pairs, "tokens", m.Tokens, "heads", m.Heads, "heads_kv", m.HeadsKV,
		"threads", m.Threads)
	if err != nil {
		return 0, err
	}
	return time.Duration(r.integer("us")) * time.Microsecond, r.err
}

// Profile says where the LESS cache's time went, over all layers.
type Profile struct {
	Names          []string
	Phases         []time.Duration // of each name, summed over the threads
	Attend, Commit time.Duration   // the two nodes as a whole, of the busiest thread
}

// Profile returns where the time went since the last call. The model was opened with LESS.Profile.
func (w *Worker) Profile() (Profile, error) {
	r, err := w.call("profile", nil)
	if err != nil {
		return Profile{}, err
	}
	p := Profile{Names: strings.Split(r.fields["names"], ","), Attend: time.Duration(r.integer("attend")), Commit: time.Duration(r.integer("commit"))}
	for _, ns := range view[int64](r.payload) {
		p.Phases = append(p.Phases, time.Duration(ns))
	}
	return p, r.err
}
