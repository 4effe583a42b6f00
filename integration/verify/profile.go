package verify

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
)

// A Profile says what a policy holds at the end of the first window, in the first context and micro-batch.
type Profile struct {
	Context int            `json:"context"`
	Ubatch  int            `json:"ubatch"`
	Policy  string         `json:"policy"`
	Budget  int            `json:"budget"`
	Seen    int            `json:"seen"` // tokens
	Layers  []LayerProfile `json:"layers"`
}

// LayerProfile is one layer of a Profile.
type LayerProfile struct {
	Layer int     `json:"layer"`
	Kept  float64 `json:"kept"` // share of the tokens
	// Attention is the share of the full cache's attention that goes to what is kept, mean over heads and the last queries.
	Attention float64 `json:"attention"`
	// Held says, for each KV head, how much of each of equal parts of the sequence is kept, from 0 to 1.
	Held [][]float64 `json:"held"`
}

const (
	heldBins       = 64
	profileQueries = 32
)

// exactKV is what one layer of the full cache has seen.
type exactKV struct {
	info worker.LayerInfo
	q    []float32 // [queries][Hq][D], the last of the window
	k    []float32 // [tokens][Hkv][D]
	hq   int
	hkv  int
	d    int
}

// profiles looks into the sparse caches of the first group.
func (v *verifier) profiles(ctx context.Context, groups []*group) ([]Profile, error) {
	g := groups[0]
	seen := (g.context - 1) / g.ubatch * g.ubatch // before the last micro-batch
	if seen == 0 {
		return nil, nil
	}
	var runs []*row
	for _, r := range g.rows {
		if r.Method == Sparse {
			runs = append(runs, r)
		}
	}
	kept := int64(g.context*v.model.Sum(func(s weights.Shape) int { return s.HeadsKV * s.KeyLength })) * 4
	if need := v.info.Bytes + v.process(g.full) + 3*kept + v.ours(g.ubatch, 1); need > v.plan.Memory {
		v.note("no profile of the layers: the keys of a window in f32 beside the rest take %s, and the bound is %s", memory.Size(need), memory.Size(v.plan.Memory))
		return nil, nil
	}
	var exact []exactKV // when the first profile wants it
	var all []Profile
	for _, r := range runs {
		p, err := cached(v, v.key("profile", g, r.run, hashTokens(g.windows[0])), func() (p Profile, err error) {
			if exact == nil {
				if exact, err = v.exact(ctx, g, seen); err != nil {
					return p, err
				}
			}
			v.say("layers of "+r.run.describe(), 0)
			return v.profile(ctx, g, r, exact, seen)
		})
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(p.Layers, func(l LayerProfile) bool { return !distance.Finite(l.Attention) }) {
			v.note("no profile of %s: attention that is not finite", r.run.describe())
			continue
		}
		all = append(all, p)
	}
	return all, nil
}

// exact takes the first window through a cache that evicts nothing, and keeps the keys and the last queries.
func (v *verifier) exact(ctx context.Context, g *group, seen int) ([]exactKV, error) {
	v.say("attention of the full cache", 0)
	chunk := v.chunk(g.ubatch)
	w, err := v.open(ctx, &run{tree: worker.Patched, config: worker.Config{
		Context: g.context, Ubatch: g.ubatch, Capture: true, GPULayers: v.plan.GPULayers, LESS: &worker.LESS{Policy: "lambda", Budget: g.context}}}, chunk, v.threads(1), v.plan.RPC)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := w.Capture(); err != nil {
		return nil, err
	}
	tokens := g.windows[0]
	var all []exactKV
	index := map[int]int{}
	first := max(seen, len(tokens)-profileQueries) // of the queries
	for at := 0; at < len(tokens); at += chunk {
		if _, err := w.Decode(0, at, tokens[at:min(at+chunk, len(tokens))], worker.None); err != nil {
			return nil, err
		}
		if all == nil {
			infos, err := w.Layers(0)
			if err != nil {
				return nil, err
			}
			for _, l := range infos {
				if !l.Window {
					index[l.Layer] = len(all)
					all = append(all, exactKV{info: l})
				}
			}
		}
		captured, err := w.Captured()
		if err != nil {
			return nil, err
		}
		pos := map[int]int{} // of the next record, by layer
		for _, a := range captured {
			i, ok := index[a.Layer]
			if !ok {
				continue
			}
			e := &all[i]
			e.hq, e.hkv, e.d = a.Heads, a.HeadsKV, a.KeyLength
			e.k = append(e.k, a.K...)
			start := at + pos[a.Layer]
			pos[a.Layer] += a.Tokens
			if skip := first - start; skip < a.Tokens {
				e.q = append(e.q, a.Q[max(skip, 0)*a.Heads*a.KeyLength:]...)
			}
		}
	}
	return all, nil
}

// profile takes the first window through a sparse cache but for its last micro-batch, and looks what is there.
func (v *verifier) profile(ctx context.Context, g *group, r *row, exact []exactKV, seen int) (Profile, error) {
	p := Profile{Context: g.context, Ubatch: g.ubatch, Policy: r.Policy, Budget: r.Budget, Seen: seen}
	w, err := v.open(ctx, r.run, v.chunk(g.ubatch), v.threads(1), v.plan.RPC)
	if err != nil {
		return p, err
	}
	defer w.Close()
	if _, err := w.Feed(0, 0, g.windows[0][:seen], worker.None); err != nil {
		return p, fmt.Errorf("verify: %s: %w", r.run.describe(), err)
	}
	for _, e := range exact {
		l := LayerProfile{Layer: e.info.Layer}
		for head := range e.hkv {
			held, _, err := w.Slots(0, e.info.Layer, head)
			if err != nil {
				return p, err
			}
			l.Kept += float64(len(held)) / float64(seen) / float64(e.hkv)
			l.Held = append(l.Held, histogram(held, seen))
			l.Attention += e.attention(head, held, seen) / float64(e.hkv)
		}
		p.Layers = append(p.Layers, l)
	}
	return p, nil
}

// histogram is the share of each part of [0, seen) that is held.
func histogram(held []int32, seen int) []float64 {
	bins := min(heldBins, seen)
	h := make([]float64, bins)
	bin := func(pos int) int { return pos * bins / seen }
	size := make([]float64, bins)
	for pos := range seen {
		size[bin(pos)]++
	}
	for _, pos := range held {
		h[bin(int(pos))] += 1 / size[bin(int(pos))]
	}
	return h
}

// attention is the share of a KV head's attention that goes to held positions and to those from seen on.
func (e *exactKV) attention(head int, held []int32, seen int) float64 {
	tokens := len(e.k) / (e.hkv * e.d)
	queries := len(e.q) / (e.hq * e.d)
	keep := make([]bool, tokens)
	for _, p := range held {
		keep[p] = true
	}
	for i := seen; i < tokens; i++ {
		keep[i] = true
	}
	group := e.hq / e.hkv
	total := 0.0
	logits := make([]float64, tokens)
	for i := range queries {
		pos := tokens - queries + i
		for h := head * group; h < (head+1)*group; h++ {
			q := e.q[(i*e.hq+h)*e.d:][:e.d]
			most := math.Inf(-1)
			for t := range pos + 1 {
				k := e.k[(t*e.hkv+head)*e.d:][:e.d]
				dot := 0.0
				for c, x := range q {
					dot += float64(x) * float64(k[c])
				}
				logits[t] = dot * float64(e.info.Scale)
				if c := float64(e.info.SoftCap); c > 0 {
					logits[t] = c * math.Tanh(logits[t]/c)
				}
				most = max(most, logits[t])
			}
			all, kept := 0.0, 0.0
			for t := range pos + 1 {
				x := math.Exp(logits[t] - most)
				all += x
				if keep[t] {
					kept += x
				}
			}
			total += kept / all
		}
	}
	return total / float64(queries*group)
}
