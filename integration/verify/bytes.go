package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// CandidateTypes lists the types of slots that are tried where the best under so many bytes is looked for.
func CandidateTypes() []string { return []string{"f16", "q8_0", "q4_0", "q8_0,q4_0", "q4_0,q8_0"} }

// Best is what is closest to the full cache, by KL, under so many bytes of one sequence, everything counted.
type Best struct {
	Within  int64         `json:"within"` // bytes
	Context int           `json:"context"`
	Ubatch  int           `json:"ubatch"`
	From    int           `json:"from"` // first position that counts: behind the first eviction of every candidate, if its budget were spread equally
	Rows    []BestMeasure `json:"rows"` // of all candidates, the best first
}

// BestMeasure names a candidate.
type BestMeasure struct {
	Policy  string   `json:"policy"`
	Types   string   `json:"types"`
	Adapter string   `json:"adapter,omitempty"` // none: sparse only, and equal budgets
	Slots   int      `json:"slots"`             // of a KV head on average
	Bytes   int64    `json:"bytes"`
	KL      Estimate `json:"kl"`
	Top1    Estimate `json:"top1"`
}

// A candidate is one way to fill so many bytes, at one context.
type candidate struct {
	within        int64
	policy, types string
	adapter       *adapter // nil: sparse only
	budget        int      // what fits
}

// fit asks the runtime how many slots every candidate has: bytes are counted in one place.
func (v *verifier) fit(ctx context.Context, context int) ([]candidate, error) {
	w, err := worker.Start(ctx, v.paths[worker.Patched])
	if err != nil {
		return nil, err
	}
	defer w.Close()
	full, err := memory.Full(v.model, context, gguf.F16)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	var all []candidate
	for _, size := range v.plan.Bytes {
		within := int64(size.Limit(full))
		for _, types := range v.plan.SlotTypes {
			if !v.holds(types) {
				continue
			}
			for _, policy := range v.plan.Policies {
				for _, a := range append([]*adapter{nil}, v.adapters...) {
					if a != nil && a.Trained.Policy != policy {
						continue
					}
					l := worker.LESS{Policy: policy, BudgetBytes: within, ForceAdapter: v.plan.Force}
					l.TypeK, l.TypeV, _ = worker.SlotTypes(types)
					if a != nil {
						l.Adapter = a.path
					}
					_, err := w.Open(worker.Config{Model: v.plan.Model, Context: context, Batch: 32, Ubatch: 32, WindowOnly: true, LESS: &l})
					var refused *worker.Error
					if errors.As(err, &refused) {
						v.note("%s, %s, %d bytes: %s", policy, types, within, refused.Message)
						continue
					}
					if err != nil {
						return nil, fmt.Errorf("verify: %w", err)
					}
					info, err := w.LESS()
					if err != nil {
						return nil, fmt.Errorf("verify: %w", err)
					}
					all = append(all, candidate{within, policy, types, a, info.Budget})
					if err := w.CloseModel(); err != nil {
						return nil, fmt.Errorf("verify: %w", err)
					}
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("verify: nothing fits into any of the bytes that were asked for: %w", ErrPlan)
	}
	return all, nil
}

// holds reports whether the model's heads fill the blocks of keys and values of a type, and notes it where they don't.
func (v *verifier) holds(types string) bool {
	err := v.checkTypes(types)
	if err != nil {
		v.note("%s: %v", types, err)
	}
	return err == nil
}

// fillBytes plans a row for each candidate.
func (v *verifier) fillBytes(g *group) error {
	first := map[int64]int{} // by bytes: behind the first eviction of all
	for _, c := range v.fits[g.context] {
		if from := c.budget + g.ubatch; from+1 < g.context {
			first[c.within] = max(first[c.within], from)
		}
	}
	g.addRow(Row{Method: Full, Slots: g.context}, g.full)
	for _, c := range v.fits[g.context] {
		r := Row{Method: Sparse, Policy: c.policy, Types: c.types, Within: c.within, Budget: c.budget, Slots: c.budget, From: first[c.within]}
		if c.adapter != nil {
			r.Method = LESS
		}
		g.addRow(r, v.add(g, v.less(g, c.policy, c.types, c.budget, c.adapter)))
	}
	v.fillChecks(g, 0, 0)
	return nil
}

// best sorts what was measured under each number of bytes.
func (g *group) best() (all []Best) {
	for _, row := range g.rows {
		if row.Within == 0 || row.Fault != "" {
			continue
		}
		i := slices.IndexFunc(all, func(b Best) bool { return b.Within == row.Within })
		if i < 0 {
			i = len(all)
			all = append(all, Best{Within: row.Within, Context: g.context, Ubatch: g.ubatch, From: row.From})
		}
		all[i].Rows = append(all[i].Rows, BestMeasure{row.Policy, row.Types, row.Adapter, row.Slots, row.Bytes.Total, row.KL, row.Top1})
	}
	for _, b := range all {
		slices.SortStableFunc(b.Rows, func(x, y BestMeasure) int {
			return cmp.Or(cmp.Compare(x.KL.Value, y.KL.Value), cmp.Compare(x.Bytes, y.Bytes))
		})
	}
	return all
}
