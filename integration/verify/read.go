package verify

import (
	"context"
	"fmt"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/worker"
)

// Reading is a text read along, longer than a full cache could be afforded for: one method alone.
type Reading struct {
	Policy  string        `json:"policy"`
	Method  string        `json:"method"`
	Adapter string        `json:"adapter,omitempty"`
	Budget  int           `json:"budget"`
	Ubatch  int           `json:"ubatch"`
	Tokens  int           `json:"tokens"`
	Start   Bytes         `json:"start"` // after the first micro-batch
	End     Bytes         `json:"end"`   // after the last token
	Peak    int64         `json:"peak"`  // of the process
	Grown   int64         `json:"grown"` // resident bytes at the end less those after the first budget and micro-batch
	Full    int64         `json:"full"`  // what the f16 cache would hold
	Parts   []ReadingPart `json:"parts"`
	Fault   string        `json:"fault,omitempty"` // logits that are not finite: there are no parts
}

// ReadingPart is the perplexity of the tokens [From, To).
type ReadingPart struct {
	From       int     `json:"from"`
	To         int     `json:"to"`
	Perplexity float64 `json:"perplexity"`
}

// reading reads Plan.Read tokens with every sparse and LESS row of the first context and micro-batch.
func (v *verifier) reading(ctx context.Context, groups []*group) ([]Reading, error) {
	if v.plan.Read == 0 {
		return nil, nil
	}
	n := v.plan.Read
	tokens := append(append([]int32{}, v.start...), v.text...)[:n]
	g := groups[0]
	var all []Reading
	for _, r := range g.rows {
		if r.Method != Sparse && r.Method != LESS {
			continue
		}
		c := *r.run
		c.config.Context = n
		// A worker's peak is its own: not that of a run before.
		read, err := cached(v, v.key("reading", &c, hashTokens(tokens)), func() (Reading, error) {
			return v.readAlong(ctx, g, r, &c, tokens)
		})
		if err != nil {
			return nil, err
		}
		all = append(all, read)
	}
	return all, nil
}

func (v *verifier) readAlong(ctx context.Context, g *group, r *row, c *run, tokens []int32) (Reading, error) {
	out := Reading{Policy: r.Policy, Method: r.Method, Adapter: r.Adapter, Budget: r.Budget, Ubatch: g.ubatch, Tokens: len(tokens),
		Full: v.fullBytes[len(tokens)]}
	chunk := v.chunk(g.ubatch)
	w, err := v.open(ctx, c, chunk, v.threads(1), v.plan.RPC)
	if err != nil {
		return out, err
	}
	defer w.Close()
	held := func() (Bytes, error) {
		info, err := w.LESS()
		return bytesOf(info), err
	}
	settled := int64(-1)
	part := max(len(tokens)/v.plan.Buckets, 1)
	var p ReadingPart
	nll, n := 0.0, 0
	for at := 0; at < len(tokens); at += chunk {
		end := min(at+chunk, len(tokens))
		v.say(fmt.Sprintf("reading along: %s, token %d of %d", r.run.describe(), at, len(tokens)), 0)
		rows, err := w.Decode(0, at, tokens[at:end], worker.All)
		if err != nil {
			return out, fmt.Errorf("verify: reading with %s: %w", r.run.describe(), err)
		}
		for i := range rows.Len() {
			pos := at + i
			if pos+1 < len(tokens) {
				_, norm := distance.LogSum(rows.Row(i))
				x := norm - float64(rows.Row(i)[tokens[pos+1]])
				if out.Fault == "" && !distance.Finite(x) {
					out.Fault = fmt.Sprintf("position %d: logits that are not finite", pos)
				}
				nll += x
				n++
			}
			if (pos+1)%part == 0 || pos+1 == len(tokens) {
				if p.To = pos + 1; n > 0 {
					p.Perplexity = exp(nll / float64(n))
				}
				out.Parts = append(out.Parts, p)
				p, nll, n = ReadingPart{From: pos + 1}, 0, 0
			}
		}
		if at == 0 {
			if out.Start, err = held(); err != nil {
				return out, err
			}
		}
		if settled < 0 && end >= r.Budget+g.ubatch {
			m, err := w.Memory()
			if err != nil {
				return out, err
			}
			settled = m.Resident
		}
	}
	if out.Fault != "" {
		out.Parts = nil
	}
	if out.End, err = held(); err != nil {
		return out, err
	}
	m, err := w.Memory()
	if settled >= 0 {
		out.Grown = m.Resident - settled
	}
	out.Peak = m.Peak
	return out, err
}
