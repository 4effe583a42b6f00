package verify

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
)

// report turns what is kept into the report.
func (v *verifier) report(r *Report, groups []*group) error {
	v.info.File, v.info.Name, v.info.Architecture = filepath.Base(v.plan.Model), v.model.Name, v.model.Architecture
	v.info.SHA256, v.info.Layers, v.info.Context = v.sums[0], v.model.Layers, v.model.Context
	r.Version, r.Model, r.Runtime = ReportVersion, v.info, unmodified(v.paths[worker.Unmodified])
	r.Build = provenance.Of(v.paths[worker.Patched])
	if v.plan.SlotType != "f16" {
		r.SlotType = v.plan.SlotType
	}
	r.GPU = v.plan.GPULayers
	r.Seed, r.Samples, r.Block = v.plan.Seed, v.plan.Samples, v.plan.Block
	r.Adapters = []AdapterInfo{}
	for _, a := range v.adapters {
		r.Adapters = append(r.Adapters, a.info())
	}
	longest := groups[0]
	for _, g := range groups {
		if g.context > longest.context {
			longest = g
		}
	}
	r.Text = TextInfo{hashTokens(longest.windows...), len(v.text), v.plan.Windows, v.stride(), len(v.start) > 0}
	for i, g := range groups {
		v.say(fmt.Sprintf("intervals, %d of %d", i+1, len(groups)), 0)
		if err := v.reportGroup(r, g); err != nil {
			return err
		}
	}
	r.Notes = v.notes
	r.Findings = r.findings()
	return nil
}

// unmodified says what the unmodified runtime is: what the build folder around its worker was stamped with.
func unmodified(worker string) string {
	const built = ", built from the same sources with the same compiler and flags"
	sources := layout.Layout(filepath.Dir(filepath.Dir(worker))).UnmodifiedSources()
	header, err := os.ReadFile(filepath.Join(sources, "src", "llama-version.h"))
	m := regexp.MustCompile(`(?m)^#define LLAMA_COMMIT "([^"]+)"$`).FindSubmatch(header)
	switch {
	case err != nil || m == nil:
		return "llama.cpp of an unknown version" + built
	case strings.HasSuffix(string(m[1]), "(untested)"): // a folder that the user named
		return string(m[1]) + built
	}
	return string(m[1]) + " as released" + built
}

// reportGroup adds the rows of one group.
func (v *verifier) reportGroup(r *Report, g *group) error {
	read := map[*run][]*distance.Points{}
	fault := map[*run]string{}
	size := map[*run]Bytes{}
	for _, x := range g.runs {
		var why string
		if v.store.Load(v.faultKey(g, x), &why) {
			fault[x] = why
			continue
		}
		var b Bytes
		if !v.store.Load(v.bytesKey(g, x), &b) {
			return fmt.Errorf("verify: %s: its bytes are gone from %s", x.describe(), v.store.Dir)
		}
		size[x] = b
		for i := range g.windowsOf(x) {
			p := &distance.Points{}
			if !v.store.Load(v.pointsKey(g, x, i), p) {
				return fmt.Errorf("verify: %s: window %d is gone from %s", x.describe(), i, v.store.Dir)
			}
			if p.Fault != "" && fault[x] == "" {
				fault[x] = fmt.Sprintf("window %d, %s", i, p.Fault)
			}
			if p.FullFault != "" && fault[g.full] == "" {
				fault[g.full] = fmt.Sprintf("window %d, %s", i, p.FullFault)
			}
			read[x] = append(read[x], p)
		}
	}
	// The full cache beside itself: what every run says of it.
	size[g.full] = Bytes{Slots: g.full.bytes, Total: g.full.bytes}
	for _, p := range read[v.complete(g, read)] {
		n := len(p.KL)
		full := &distance.Points{KL: make([]float64, n), NLL: p.Full, Full: p.Full, Agree: slices.Repeat([]bool{true}, n)}
		read[g.full] = append(read[g.full], full)
	}

	common := 0
	for _, row := range g.rows {
		common = max(common, row.From)
	}
	blocksOf := map[[2]any][]sums{} // by run and first position
	of := func(x *run, from int) []sums {
		k := [2]any{x, from}
		if blocksOf[k] == nil {
			blocksOf[k] = blocks(read[x], from, 1<<60, v.plan.Block)
		}
		return blocksOf[k]
	}
	shared := map[*run]*Measures{}
	bucketsOf := map[*run][]Bucket{}
	generations := map[*run]*Generation{}
	for _, row := range g.rows {
		x := row.run
		row.Bytes = size[x]
		row.CommonFrom = common
		if fault[x] != "" {
			row.Fault = fault[x]
			continue
		}
		if len(read[x]) == 0 {
			row.Fault = "not measured"
			continue
		}
		if row.Method == Off || row.Method == NothingEvicted {
			row.From = 0 // nothing is ever evicted
		}
		row.Measures = v.draw.measure(read[x], row.From, v.plan.Block)
		row.FullPerplexity = v.draw.of(of(x, row.From), sums.fullPerplexity)
		if !row.measured() {
			if row.Method == Off {
				row.Generation = v.generation(g, x)
			}
			continue
		}
		if shared[x] == nil {
			m := v.draw.measure(read[x], common, v.plan.Block)
			shared[x] = &m
			bucketsOf[x] = v.draw.buckets(read[x], g.context, v.plan.Buckets, v.plan.Block)
			generations[x] = v.generation(g, x)
		}
		row.Common, row.Buckets, row.Generation = shared[x], bucketsOf[x], generations[x]
	}
	for _, row := range g.rows {
		if row.Method != LESS || row.Fault != "" {
			continue
		}
		mine := of(row.run, row.From)
		row.Against = map[string]Difference{}
		for _, other := range g.rows {
			if other.Budget != row.Budget || other.Policy != row.Policy || other.Types != row.Types || other.Fault != "" || other.Method != Sparse && other.Method != Plus && other.Method != PlusPlus {
				continue
			}
			theirs := of(other.run, row.From)
			row.Against[other.Method] = Difference{
				KL:         v.draw.pair(mine, theirs, func(a, b sums) float64 { return a.meanKL() - b.meanKL() }),
				Perplexity: v.draw.pair(mine, theirs, func(a, b sums) float64 { return a.perplexity() - b.perplexity() }),
			}
			if other.Method == Sparse && other.KL.Value > 0 {
				kl := v.draw.pair(mine, theirs, func(a, b sums) float64 { return 1 - a.meanKL()/b.meanKL() })
				row.ClosedKL = &kl
				if other.Increase.Low > 0 { // else there is no gap to speak of
					ppl := v.draw.pair(mine, theirs, func(a, b sums) float64 { return (b.perplexity() - a.perplexity()) / b.increase() })
					row.ClosedPPL = &ppl
				}
			}
		}
	}
	for _, row := range g.rows {
		r.Rows = append(r.Rows, &row.Row)
	}
	r.Recall = append(r.Recall, v.recallReport(g)...)
	r.Frontier = append(r.Frontier, frontier(g, common))
	r.Best = append(r.Best, g.best()...)
	r.Checks = append(r.Checks, g.trusted(read)...)
	return nil
}

// complete returns a run that has read every window.
func (v *verifier) complete(g *group, read map[*run][]*distance.Points) *run {
	for _, x := range g.runs {
		if !x.few && len(read[x]) == len(g.windows) {
			return x
		}
	}
	return nil
}

// frontier finds the rows that are best at their bytes.
func frontier(g *group, common int) Frontier {
	f := Frontier{Context: g.context, Ubatch: g.ubatch, From: common}
	seen := map[*run]bool{}
	var all []FrontierEntry
	for _, row := range g.rows {
		if row.Common == nil || seen[row.run] {
			continue
		}
		seen[row.run] = true
		e := FrontierEntry{Method: row.Method, Policy: row.Policy, Slots: row.Slots, Bytes: row.Bytes.Total, KL: row.Common.KL}
		if row.run.config.LESS != nil {
			e.Budget = row.Budget
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b FrontierEntry) int {
		return cmp.Or(cmp.Compare(a.Bytes, b.Bytes), cmp.Compare(a.KL.Value, b.KL.Value))
	})
	for _, e := range all {
		if n := len(f.Rows); n == 0 || e.KL.Value < f.Rows[n-1].KL.Value {
			f.Rows = append(f.Rows, e)
		}
	}
	return f
}

// nothingEvictedKL bounds what rounding may do to a cache that evicts nothing.
const nothingEvictedKL = 1e-4

// referenceKL bounds what it may do between the kernels' two loops, by the type of the slots. Where the last bits of a sum differ, a
// later key or value may be rounded to the next step, and that is the further away the coarser the type.
var referenceKL = map[string]float64{"": 1e-3, F32: 1e-3, "f16": 1e-3, Q8: 5e-3, Q4: 2e-2}

// trusted says whether the build is what it claims to be.
func (g *group) trusted(read map[*run][]*distance.Points) []Check {
	var all []Check
	at := fmt.Sprintf("context %d, micro-batches of %d", g.context, g.ubatch)
	for _, row := range g.rows {
		c := Check{Context: g.context, Ubatch: g.ubatch, Method: row.Method, Policy: row.Policy, Budget: row.Budget, Built: true}
		switch {
		case row.measured():
			continue
		case row.Fault != "":
			c.Requirement, c.Reason = row.Method, row.Fault
		case row.Method == Off:
			c.Requirement = "off: the patched runtime without LESS equals the unmodified one, exactly (" + at + ")"
			c.Found = row.KLMax
			gen := row.Generation
			c.OK = row.KLMax == 0 && row.KL.Value == 0 && row.Increase.Value == 0 && row.Top1.Value == 1 && (gen == nil || gen.Same == gen.Prompts)
		case row.Method == NothingEvicted:
			c.Requirement = fmt.Sprintf("nothing-evicted: a budget of the whole context equals the full cache to rounding, mean KL <= %g (%s)", nothingEvictedKL, at)
			c.Found, c.OK = row.KL.Value, row.KL.Value <= nothingEvictedKL && row.KL.Value >= -nothingEvictedKL
		case row.Method == Reference:
			l := row.run.config.LESS
			bound := 0.0
			for name, kl := range referenceKL { // those that a layer has
				if strings.Contains(l.TypeK+","+l.TypeV, name) {
					bound = max(bound, kl)
				}
			}
			c.Requirement = fmt.Sprintf("reference: the reference loops agree with the kernels, %s %d, mean difference of KL <= %g (%s)", row.Policy, row.Budget, bound, at)
			fast, reference := read[row.fast], read[row.run]
			if len(fast) == 0 || len(reference) == 0 {
				c.Reason = "not measured"
				break
			}
			var sum float64
			for i, x := range reference[0].KL {
				sum += math.Abs(x - fast[0].KL[i])
			}
			c.Found = sum / float64(len(reference[0].KL))
			if c.OK = c.Found <= bound; !distance.Finite(c.Found) {
				c.Found, c.Reason = 0, "logits that are not finite"
			}
		}
		if !c.OK && c.Reason == "" {
			c.Reason = fmt.Sprintf("found %.3g", c.Found)
		}
		all = append(all, c)
	}
	return all
}

// findings says in words what the rows say in numbers, also where that is not in LESS's favour.
func (r *Report) findings() []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, other := range []string{Plus, PlusPlus} {
		below, above, open, n := 0, 0, 0, 0
		var not []string
		for _, row := range r.Rows {
			d, ok := row.Against[other]
			if !ok {
				continue
			}
			n++
			label := fmt.Sprintf("%s %d at micro-batches of %d", row.Policy, row.Budget, row.Ubatch)
			switch {
			case d.KL.High < 0:
				below++
			case d.KL.Low > 0:
				above++
				not = append(not, label)
			default:
				open++
				not = append(not, label+" (undecided)")
			}
		}
		if n == 0 {
			continue
		}
		what := map[string]string{Plus: "the bytes of its state as slots", PlusPlus: "the bytes of its state, phi and psi as slots"}[other]
		s := fmt.Sprintf("LESS against %s (%s), by KL: better in %d of %d settings, worse in %d, undecided in %d.", other, what, below, n, above, open)
		if len(not) > 0 && below > 0 {
			s += " Not better: " + list(not, 12) + "."
		}
		out = append(out, s)
	}
	for _, f := range r.Frontier {
		if len(f.Rows) == 0 { // every row has a fault
			continue
		}
		var names []string
		for _, e := range f.Rows {
			names = append(names, fmt.Sprintf("%s (%.0f KiB, KL %.4f)", e.Name(), float64(e.Bytes)/1024, e.KL.Value))
		}
		say("Best at equal bytes, by slots, context %d, micro-batches of %d, positions from %d on: %s.", f.Context, f.Ubatch, f.From, list(names, 40))
	}
	for _, k := range r.Recall {
		if k.Weak && k.Ubatch == r.Recall[0].Ubatch {
			say("Recall, %s of %d tokens: the full cache fails too (%d of %d), so that this says nothing of any method.", k.Kind, k.Length, k.Full, k.Tasks)
		}
	}
	return out
}

// list names so many of all at most, and counts the others.
func list(all []string, most int) string {
	s := strings.Join(all[:min(most, len(all))], ", ")
	if n := len(all) - most; n > 0 {
		s += fmt.Sprintf(" and %d more", n)
	}
	return s
}
