package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lesskv/lesskv/integration/heldout"
	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/memory"
)

// A Report is what was measured, and all that the page has numbers of.
type Report struct {
	Model   string           `json:"model"`
	Build   provenance.Build `json:"build,omitzero"`
	Sizes   []Size           `json:"sizes"`
	Left    Left             `json:"left"`
	Layers  Layers           `json:"layers"`
	Ubatch  []Ubatch         `json:"ubatch"`
	Prose   []Prose          `json:"prose"`
	Recall  []Recall         `json:"recall"`
	Windows int              `json:"windows"`
}

// A Size is one byte count. Rows are what tune found, without phi and psi and with them, first what it writes.
type Size struct {
	KiB    int64   `json:"kib"`
	Before float64 `json:"before"` // KL
	Target float64 `json:"target"`
	From   int     `json:"from"` // first position that counts
	Rows   []Row   `json:"rows"`
}

// A Row is one of these, measured on the held-out windows.
type Row struct {
	Types    string          `json:"types"`
	Windows  int             `json:"windows"` // that it was tuned on
	Rounds   int             `json:"rounds"`  // in so many at most; -1: none
	Slots    int             `json:"slots"`   // a head on average
	Heads    []int           `json:"heads"`   // of each
	Bytes    int64           `json:"bytes"`
	KL       verify.Estimate `json:"kl"`
	Top1     verify.Estimate `json:"top1"`
	Equal    verify.Estimate `json:"equal"` // KL of equal budgets in as many bytes, without phi and psi
	TunedOn  float64         `json:"tuned_on"`
	NotTuned float64         `json:"not_tuned_on"`  // of the training text
	Phi      []Phi           `json:"phi,omitempty"` // layers with phi and psi
}

// Phi is a layer with phi and psi: their error of its output, relative to sparse only's, and the bytes that they and the state take.
type Phi struct {
	Layer int     `json:"layer"`
	Error float64 `json:"error"`
	Bytes uint64  `json:"bytes"`
}

// Name says what a row is.
func (r *Row) Name() string {
	name := r.Types
	if k, v, two := strings.Cut(r.Types, ","); two {
		name = fmt.Sprintf("keys %s, values %s", k, v)
	}
	if len(r.Phi) > 0 {
		var layers []string
		for _, l := range r.Phi {
			layers = append(layers, strconv.Itoa(l.Layer))
		}
		name += "; phi and psi in layers " + strings.Join(layers, ", ")
	}
	return name
}

// Left is what makes the distance of the best row of a size.
type Left struct {
	KiB   int64      `json:"kib"`
	KL    float64    `json:"kl"`
	Types float64    `json:"types"` // with nothing evicted: what the types of the slots cost
	Heads []HeadLeft `json:"heads"`
}

// HeadLeft is a KV head, and what is gained where it alone has the whole context.
type HeadLeft struct {
	Layer int     `json:"layer"`
	Head  int     `json:"head"`
	Slots int     `json:"slots"`
	Gain  float64 `json:"gain"` // KL
}

// Layers compares budgets by layer with budgets by head, at one size and type.
type Layers struct {
	KiB   int64           `json:"kib"`
	Types string          `json:"types"`
	Equal verify.Estimate `json:"equal"`
	Layer verify.Estimate `json:"by_layer"`
	Head  verify.Estimate `json:"by_head"`
}

// Ubatch is the best row of a size at another micro-batch than it was tuned for.
type Ubatch struct {
	KiB    int64           `json:"kib"`
	Ubatch int             `json:"ubatch"`
	KL     verify.Estimate `json:"kl"`
	Equal  verify.Estimate `json:"equal"`
}

// Prose is the best row of a size on a text that is not Go.
type Prose struct {
	KiB   int64           `json:"kib"`
	KL    verify.Estimate `json:"kl"`
	Equal verify.Estimate `json:"equal"`
}

// Recall is how often one kind of task is answered, of one length, under so many bytes.
type Recall struct {
	Share   string         `json:"share"` // of the bytes of the full f16 cache
	Types   string         `json:"types"`
	Policy  string         `json:"policy"`
	Tuned   bool           `json:"tuned"`              // else equal budgets
	LookUps bool           `json:"look_ups,omitempty"` // tuned on Go text with look-ups, else on Go text alone
	Kind    string         `json:"kind"`
	Tokens  int            `json:"tokens"` // of the prompt
	Tasks   int            `json:"tasks"`
	Full    int            `json:"full"` // that the full cache answers
	Right   int            `json:"right"`
	Depth   []verify.Depth `json:"depth,omitempty"`

	FullByDepth []verify.Depth `json:"full_by_depth,omitempty"`
}

const full = 6144 << 10 // bytes of the f16 cache of either model

func kib(n int64) worker.Budget { return worker.Budget{Bytes: n << 10} }

// report measures all sections, and hands over what there is after each.
func (m *measurer) report(save func(*Report) error) error {
	r := &Report{Model: filepath.Base(m.model), Windows: len(m.windows), Build: provenance.Of(m.worker)}
	best := map[int64]*found{}
	for _, section := range []func(*Report, map[int64]*found) error{
		m.sizes, m.recalled("1/20", "q8_0", false), m.left, m.layers, m.prosaic, m.recalled("1/50", "q4_0", false), m.ubatches,
		m.recalled("1/20", "q4_0", false), m.recalled("1/20", "q8_0", true), m.recalled("1/50", "q4_0", true), m.recalled("1/20", "q4_0", true),
	} {
		if err := section(r, best); err != nil {
			return err
		}
		if err := save(r); err != nil {
			return err
		}
	}
	return nil
}

// sizes tunes for every byte count, and measures that.
func (m *measurer) sizes(r *Report, best map[int64]*found) error {
	for _, g := range goals {
		s := Size{KiB: g.kib, Before: g.before, Target: g.target}
		f, err := m.trained(m.model, m.goText, kib(g.kib), g.types, g.effort)
		if err != nil {
			return err
		}
		best[g.kib] = f
		of, err := m.verified(f.all(), kib(g.kib), m.windows, heldout.Ubatch)
		if err != nil {
			return err
		}
		s.From = of.Best[0].From
		for _, a := range f.all() { // first what tune writes
			row := Row{Types: g.types, Windows: g.windows, Rounds: g.rounds, TunedOn: a.result.Tuned, NotTuned: a.result.TunedValid}
			for _, h := range a.result.Heads {
				row.Heads = append(row.Heads, h.Slots)
			}
			for _, l := range a.fitted {
				row.Phi = append(row.Phi, Phi{l.Layer, l.Error, l.Bytes})
			}
			for _, x := range of.Best[0].Rows {
				switch x.Adapter {
				case "":
					row.Equal = x.KL
				case filepath.Base(a.path):
					row.Slots, row.Bytes, row.KL, row.Top1 = x.Slots, x.Bytes, x.KL, x.Top1
				}
			}
			if row.Slots == 0 {
				return fmt.Errorf("%d KiB: verify has no row of %s", g.kib, a.path)
			}
			m.say("%d KiB, %s: KL %.4f, target %.4f", g.kib, row.Name(), row.KL.Value, g.target)
			s.Rows = append(s.Rows, row)
		}
		r.Sizes = append(r.Sizes, s)
	}
	slices.SortFunc(r.Sizes, func(a, b Size) int { return cmp.Compare(a.KiB, b.KiB) })
	return nil
}

// prosaic measures the allocations on a text that is not Go.
func (m *measurer) prosaic(r *Report, best map[int64]*found) error {
	prose := m.proseWindows()
	for _, s := range r.Sizes {
		found, err := m.verified([]*allocation{best[s.KiB].best()}, kib(s.KiB), prose, heldout.Ubatch)
		if err != nil {
			return err
		}
		p := Prose{KiB: s.KiB}
		p.KL, p.Equal = pair(found)
		r.Prose = append(r.Prose, p)
		m.say("%d KiB, prose: KL %.4f, equal %.4f", s.KiB, p.KL.Value, p.Equal.Value)
	}
	return nil
}

// ubatches measures the allocations at other micro-batches.
func (m *measurer) ubatches(r *Report, best map[int64]*found) error {
	for _, ubatch := range []int{512, 1} {
		for _, s := range r.Sizes {
			found, err := m.verified([]*allocation{best[s.KiB].best()}, kib(s.KiB), m.windows, ubatch)
			if err != nil {
				return err
			}
			u := Ubatch{KiB: s.KiB, Ubatch: ubatch}
			u.KL, u.Equal = pair(found)
			r.Ubatch = append(r.Ubatch, u)
			m.say("%d KiB, micro-batches of %d: KL %.4f, equal %.4f", s.KiB, ubatch, u.KL.Value, u.Equal.Value)
		}
	}
	return nil
}

// pair takes an allocation and equal budgets out of a report on both.
func pair(r *verify.Report) (tuned, equal verify.Estimate) {
	for _, x := range r.Best[0].Rows {
		if x.Adapter == "" {
			equal = x.KL
		} else {
			tuned = x.KL
		}
	}
	return tuned, equal
}

// left measures what is gained where a head alone has the whole context.
func (m *measurer) left(r *Report, best map[int64]*found) error {
	a := best[363].best()
	o, err := m.options(m.model, m.goText, kib(363), a.types, effort{3, 4})
	if err != nil {
		return err
	}
	o.Windows, o.Work = m.windows, filepath.Join(m.work, "left")
	if len(a.fitted) > 0 {
		o.Adapter = a.path
	}
	now := make([]int, len(a.result.Heads))
	whole := make([]int, len(now))
	for j, h := range a.result.Heads {
		now[j], whole[j] = h.Slots, heldout.Tokens
	}
	all := [][]int{now, whole}
	for j := range now {
		one := append([]int{}, now...)
		one[j] = heldout.Tokens
		all = append(all, one)
	}
	d, err := tune.Measure(m.ctx, *o, all)
	if err != nil {
		return err
	}
	r.Left = Left{KiB: 363, KL: d[0], Types: d[1]}
	for j, h := range a.result.Heads {
		r.Left.Heads = append(r.Left.Heads, HeadLeft{h.Layer, h.Head, h.Slots, d[0] - d[2+j]})
	}
	return nil
}

// layers compares budgets by head with what each layer has of them, spread over its heads equally.
func (m *measurer) layers(r *Report, best map[int64]*found) error {
	a := best[363].plain
	sum, n := map[int]float32{}, map[int]float32{}
	for _, h := range a.result.Heads {
		sum[h.Layer] += h.Weight
		n[h.Layer]++
	}
	of := *a.result
	of.Heads = slices.Clone(of.Heads)
	for j, h := range of.Heads {
		of.Heads[j].Weight = sum[h.Layer] / n[h.Layer]
	}
	by := &allocation{result: &of, types: a.types, path: strings.TrimSuffix(a.path, ".lesskv.gguf") + "-layers.lesskv.gguf"}
	if err := m.write(m.model, by); err != nil {
		return err
	}
	r.Layers = Layers{KiB: 363, Types: a.types}
	for _, x := range []struct {
		a  *allocation
		to *verify.Estimate
	}{{by, &r.Layers.Layer}, {a, &r.Layers.Head}} {
		found, err := m.verified([]*allocation{x.a}, kib(363), m.windows, heldout.Ubatch)
		if err != nil {
			return err
		}
		*x.to, r.Layers.Equal = pair(found)
	}
	m.say("by layer %.4f, by head %.4f", r.Layers.Layer.Value, r.Layers.Head.Value)
	return nil
}

// proseWindows are six of the text that is not Go, or as many as it has.
func (m *measurer) proseWindows() (all [][]int32) {
	n := min(6, len(m.prose)/heldout.Tokens)
	for i := range n {
		at := i * (len(m.prose) - heldout.Tokens) / max(n-1, 1)
		all = append(all, m.prose[at:at+heldout.Tokens])
	}
	return all
}

// recalled returns what asks gopher-recall-5m under a share of the full cache's bytes, with equal budgets by all policies and with an
// allocation that was tuned on Go text: alone, or with look-ups that are none of the tasks.
func (m *measurer) recalled(share, types string, lookUps bool) func(*Report, map[int64]*found) error {
	return func(r *Report, _ map[int64]*found) error {
		part, err := memory.ParseBudget(share)
		if err != nil {
			return fmt.Errorf("%s: %w", share, err)
		}
		budget, on := worker.Budget{Bytes: int64(part.Full * full)}, m.goText
		if lookUps {
			on = m.lookUps
		}
		f, err := m.trained(m.recall, on, budget, types, effort{3, 4})
		if err != nil {
			return err
		}
		a := f.best()
		plan := verify.Plan{
			Model: m.recall, Adapters: []string{}, Tokens: m.windowText(), Windows: 1, NoStart: true, Contexts: []int{heldout.Tokens},
			Bytes: []verify.Budget{budget}, SlotTypes: []string{types}, Generate: -1, Tasks: 4,
		}
		if !lookUps { // equal budgets are asked once
			if err := m.asked(r, plan, share, false); err != nil {
				return err
			}
		}
		plan.Adapters, plan.Policies = []string{a.path}, []string{policy}
		return m.asked(r, plan, share, lookUps)
	}
}

// asked adds what a plan's methods answer: those with its adapter if it has one, else those with equal budgets.
func (m *measurer) asked(r *Report, plan verify.Plan, share string, lookUps bool) error {
	found, err := m.verify(plan)
	if err != nil {
		return err
	}
	for _, k := range found.Recall {
		row := Recall{Share: share, Types: plan.SlotTypes[0], Tuned: len(plan.Adapters) > 0, LookUps: lookUps, Kind: k.Kind, Tokens: k.Length, Tasks: k.Tasks, Full: k.Full, FullByDepth: k.FullByDepth}
		for _, x := range k.Methods {
			if x.Within == 0 || (x.Adapter != "") != row.Tuned {
				continue
			}
			row.Policy, row.Right, row.Depth = x.Policy, x.Right, x.ByDepth
			r.Recall = append(r.Recall, row)
			m.say("recall at %s, %s, %s, %s of %d: %d of %d, full %d", share, row.Types, row.budgets(), k.Kind, k.Length, x.Right, k.Tasks, k.Full)
		}
		if k.Weak {
			row.Right = -1
			r.Recall = append(r.Recall, row)
		}
	}
	return nil
}

// windowText is the held-out windows one after the other.
func (m *measurer) windowText() (all []int32) {
	for _, w := range m.windows {
		all = append(all, w...)
	}
	return all
}
