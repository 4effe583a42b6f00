package bench

import (
	"cmp"
	"slices"
	"time"

	"github.com/lesskv/lesskv/integration/worker"
)

// A runner is a method's process.
type runner struct {
	Method
	bench  *bench
	w      *worker.Worker
	slots  int                   // of the KV head with most of them; LESS
	states map[int][]byte        // by the tokens that they hold: unmodified, one micro-batch; LESS, what its cells begin with
	spent  map[int]time.Duration // by prompts at each context
	n      map[Cell]int          // decodes that a sample has
}

// settled is the number of tokens after which LESS's cost no longer changes: all slots are full, and the scores' spread has
// had time to grow.
func (r *runner) settled() int {
	u := r.bench.o.Ubatch
	return (r.slots + 2*u + u - 1) / u * u
}

// begins returns how many tokens LESS has to have seen where its cell is to begin after so many.
func (r *runner) begins(tokens int) int { return min(tokens, r.settled()) }

func (r *runner) setup() error {
	r.states, r.spent, r.n = map[int][]byte{}, map[int]time.Duration{}, map[Cell]int{}
	b := r.bench
	starts := []int{b.o.Ubatch}
	if r.Tree == worker.Patched {
		heads, err := r.w.Heads()
		if err != nil {
			return err
		}
		for _, h := range heads {
			r.slots = max(r.slots, h.Budget)
		}
		starts = nil
		for _, c := range b.o.Contexts {
			starts = append(starts, r.begins(c))
			if b.o.prompt(c) {
				starts = append(starts, r.begins(c-b.o.Ubatch))
			}
		}
		slices.Sort(starts)
		starts = slices.Compact(starts)
	}
	pos := 0
	for _, n := range starts {
		if n == 0 {
			continue
		}
		if _, err := r.w.Feed(0, pos, b.tokens(n-pos), worker.None); err != nil {
			return err
		}
		pos = n
		state, err := r.w.Save(0)
		if err != nil {
			return err
		}
		r.states[n] = state
	}
	return nil
}

// prepare leaves the cache as it is after so many tokens, and returns the next position.
func (r *runner) prepare(tokens int) (pos int, err error) {
	if tokens == 0 {
		return 0, r.w.Clear()
	}
	if r.Tree == worker.Patched {
		n := r.begins(tokens)
		_, err := r.w.Load(0, r.states[n])
		return n, err
	}
	u := r.bench.o.Ubatch
	if _, err := r.w.Load(0, r.states[u]); err != nil {
		return 0, err
	}
	if tokens < u {
		return tokens, r.w.SeqRemove(0, tokens, worker.End)
	}
	return tokens, r.w.Fill(0, tokens)
}

// measure takes the samples of one cell: the micro-batch that ends at the context, and what is decoded behind it.
func (r *runner) measure(round, context int) error {
	b := r.bench
	begin, prompt := context, b.o.prompt(context) && (round == 0 || r.spent[context] < b.o.Cell)
	if prompt {
		begin -= b.o.Ubatch
	}
	pos, err := r.prepare(begin)
	if err != nil {
		return err
	}
	if err := r.w.ResetPeak(); err != nil {
		return err
	}
	if prompt {
		tokens := b.tokens(b.o.Ubatch)
		if err := r.sample(Sample{Context: context, Phase: Prompt, Round: round, Tokens: len(tokens)}, func() (time.Duration, error) {
			out, err := r.w.Decode(0, pos, tokens, worker.Last)
			if err != nil {
				return 0, err
			}
			r.spent[context] += out.Elapsed
			return out.Elapsed, nil
		}); err != nil {
			return err
		}
		pos += len(tokens)
	}
	greedy := func(n int) (time.Duration, error) {
		_, out, err := r.w.Greedy(0, pos, b.rng.Int32N(int32(b.model.Vocab)), n, false)
		if err != nil {
			return 0, err
		}
		pos += n
		return out.Elapsed, nil
	}
	if err := r.decode(Sample{Context: context, Phase: Decode, Round: round, Tokens: 1}, greedy); err != nil {
		return err
	}
	if round == 0 {
		if err := r.memory(context); err != nil {
			return err
		}
	}
	if b.o.Sequences < 2 {
		return nil
	}
	return r.together(round, context, pos)
}

// together takes a sample of all sequences, each with what the first one holds, that decode a token each in every batch.
func (r *runner) together(round, context, pos int) error {
	batch := make([]worker.Token, r.bench.o.Sequences)
	for seq := 1; seq < len(batch); seq++ {
		if err := r.w.SeqCopy(0, seq, worker.End, worker.End); err != nil {
			return err
		}
	}
	err := r.decode(Sample{Context: context, Phase: Together, Round: round, Tokens: len(batch)}, func(n int) (t time.Duration, err error) {
		for range n {
			for seq, id := range r.bench.tokens(len(batch)) {
				batch[seq] = worker.Token{ID: id, Pos: int32(pos), Seq: int32(seq), Row: true}
			}
			out, err := r.w.DecodeEach(batch)
			if err != nil {
				return 0, err
			}
			t += out.Elapsed
			pos++
		}
		return t, nil
	})
	if err != nil {
		return err
	}
	for seq := 1; seq < len(batch); seq++ {
		if err := r.w.SeqRemove(seq, worker.End, worker.End); err != nil {
			return err
		}
	}
	return nil
}

// decode takes a sample of decoding: so many decodes of s.Tokens tokens as take about sampleTime, the same number in each round.
func (r *runner) decode(s Sample, f func(n int) (time.Duration, error)) error {
	t, err := f(warmTokens)
	if err != nil {
		return err
	}
	c := Cell{r.Name, s.Context, s.Phase}
	if r.n[c] == 0 {
		r.n[c] = min(max(minTokens, int(sampleTime*warmTokens/max(t, 1))), maxTokens)
	}
	s.Tokens *= r.n[c]
	return r.sample(s, func() (time.Duration, error) { return f(r.n[c]) })
}

// sample runs f and keeps how long it took, and where LESS's time went.
func (r *runner) sample(s Sample, f func() (time.Duration, error)) error {
	profile := r.bench.o.Profile && r.Tree == worker.Patched
	if profile {
		if _, err := r.w.Profile(); err != nil { // forget what was before
			return err
		}
	}
	t, err := f()
	if err != nil {
		return err
	}
	s.Method, s.Seconds = r.Name, t.Seconds()
	if profile {
		p, err := r.w.Profile()
		if err != nil {
			return err
		}
		s.Phases = map[string]float64{}
		for i, name := range p.Names {
			s.Phases[name] = p.Phases[i].Seconds()
		}
		s.Node = p.Attend.Seconds()
	}
	r.bench.result.Samples = append(r.bench.result.Samples, s)
	return nil
}

// memory keeps what the process and its cache take.
func (r *runner) memory(context int) error {
	b := r.bench
	m := Memory{Method: r.Name, Context: context}
	use, err := r.w.Memory()
	if err != nil {
		return err
	}
	m.Peak, m.Resident = use.Peak, use.Resident
	if r.Tree == worker.Unmodified {
		m.Cache = int64(context) * b.rowBytes(r.Type)
		m.Read = m.Cache
	} else {
		info, err := r.w.LESS()
		if err != nil {
			return err
		}
		layers, err := r.w.Layers(0)
		if err != nil {
			return err
		}
		for _, l := range layers {
			m.Kept = max(m.Kept, int(l.Kept))
		}
		m.Cache = info.CacheBytes()
		m.Read = info.SlotBytes*int64(m.Kept)/int64(max(1, r.slots)) + info.StateBytes + info.KernelBytes // slots that are full
		m.Scratch = info.ScratchBytes
		of := &b.result.Build // the worker says which of its inner loops run
		if r.Other {
			of = b.result.Other
		}
		of.ISA = cmp.Or(info.Level, of.ISA)
	}
	m.Full = int64(context) * b.rowBytes("f16")
	b.result.Memory = append(b.result.Memory, m)
	return nil
}
