package verify

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Requirement is a bound on a measure of every row of a method, as ParseRequirement reads it.
type Requirement struct {
	Method  string // as rows name it, in any case
	Policy  string // "": every
	Budget  int    // 0: every
	Measure string
	Less    bool // the measure must be below the bound, else above
	Equal   bool // or equal
	Bound   float64
	text    string
}

// A Check is whether something holds that must: a requirement for one row, or that the build is to be trusted.
type Check struct {
	Requirement string  `json:"requirement"`
	Built       bool    `json:"built_in"` // checked in every run
	Context     int     `json:"context,omitempty"`
	Ubatch      int     `json:"ubatch,omitempty"`
	Method      string  `json:"method,omitempty"`
	Policy      string  `json:"policy,omitempty"`
	Budget      int     `json:"budget,omitempty"`
	Found       float64 `json:"found"`
	OK          bool    `json:"ok"`
	Reason      string  `json:"reason,omitempty"` // why it does not hold
}

// String says what was wanted, where, and what was found.
func (c Check) String() string {
	s := c.Requirement
	if !c.Built && c.Method != "" {
		s += fmt.Sprintf(": %s at budget %d, context %d, micro-batches of %d", name(c.Method, c.Policy), c.Budget, c.Context, c.Ubatch)
	}
	if !c.OK {
		s += ": " + c.Reason
	}
	return s
}

// measures are what can be required. Estimates also have .low and .high, the ends of their intervals.
var measures = map[string]func(*Row) (Estimate, bool){
	"kl":               func(r *Row) (Estimate, bool) { return r.KL, true },
	"kl.p99":           func(r *Row) (Estimate, bool) { return r.KLP99, true },
	"kl.max":           func(r *Row) (Estimate, bool) { return value(r.KLMax), true },
	"ppl":              func(r *Row) (Estimate, bool) { return r.Perplexity, true },
	"ppl.increase":     func(r *Row) (Estimate, bool) { return r.Increase, true },
	"top1":             func(r *Row) (Estimate, bool) { return r.Top1, true },
	"bytes":            func(r *Row) (Estimate, bool) { return value(float64(r.Bytes.Total)), true },
	"closed.kl":        func(r *Row) (Estimate, bool) { return pointer(r.ClosedKL) },
	"closed.ppl":       func(r *Row) (Estimate, bool) { return pointer(r.ClosedPPL) },
	"minus.sparse":     func(r *Row) (Estimate, bool) { return against(r, Sparse) },
	"minus.baseline+":  func(r *Row) (Estimate, bool) { return against(r, Plus) },
	"minus.baseline++": func(r *Row) (Estimate, bool) { return against(r, PlusPlus) },
	"prefix":           func(r *Row) (Estimate, bool) { return generation(r, func(g *Generation) Estimate { return g.Prefix }) },
	"rouge1":           func(r *Row) (Estimate, bool) { return generation(r, func(g *Generation) Estimate { return g.Rouge1 }) },
	"rouge2":           func(r *Row) (Estimate, bool) { return generation(r, func(g *Generation) Estimate { return g.Rouge2 }) },
	"rougel":           func(r *Row) (Estimate, bool) { return generation(r, func(g *Generation) Estimate { return g.RougeL }) },
}

// texts are the measures of generations.
var texts = []string{"prefix", "rouge1", "rouge2", "rougel"}

func value(x float64) Estimate { return Estimate{Value: x, Low: x, High: x} }

func pointer(e *Estimate) (Estimate, bool) {
	if e == nil {
		return Estimate{}, false
	}
	return *e, true
}

func against(r *Row, method string) (Estimate, bool) {
	d, ok := r.Against[method]
	return d.KL, ok
}

func generation(r *Row, of func(*Generation) Estimate) (Estimate, bool) {
	if r.Generation == nil {
		return Estimate{}, false
	}
	return of(r.Generation), true
}

// MeasureNames lists what can be required.
func MeasureNames() []string {
	var out []string
	for m := range measures {
		out = append(out, m)
	}
	slices.Sort(out)
	return out
}

var requirement = regexp.MustCompile(`^(?:([a-z0-9_+ ]+):)?\s*([a-z0-9.+]+?)(\.low|\.high)?\s*(<=|>=|<|>)\s*([-+.0-9e]+)$`)

// ParseRequirement reads [[POLICY] METHOD [BUDGET]:] MEASURE (< | <= | > | >=) NUMBER, in any case: "kl <= 0.2",
// "peak less 102: minus.baseline+.high < 0". Without a method it is LESS's.
func ParseRequirement(s string) (Requirement, error) {
	fail := func(format string, args ...any) (Requirement, error) {
		return Requirement{}, fmt.Errorf("requirement %q: "+format+": %w", append(append([]any{s}, args...), ErrPlan)...)
	}
	m := requirement.FindStringSubmatch(strings.ToLower(strings.TrimSpace(s)))
	if m == nil {
		return fail("want [[POLICY] METHOD [BUDGET]:] MEASURE <= NUMBER, as in \"peak less: kl <= 0.2\"")
	}
	r := Requirement{Method: LESS, Measure: m[2] + m[3], Less: m[4][0] == '<', Equal: len(m[4]) == 2, text: strings.TrimSpace(s)}
	if _, ok := measures[m[2]]; !ok {
		return fail("no measure %s: want one of %s", m[2], strings.Join(MeasureNames(), ", "))
	}
	var err error
	if r.Bound, err = strconv.ParseFloat(m[5], 64); err != nil {
		return fail("%s is no number", m[5])
	}
	methods, policies := Methods(), Policies()
	for _, word := range strings.Fields(m[1]) {
		method := slices.IndexFunc(methods, func(x string) bool { return strings.EqualFold(x, word) })
		n, err := strconv.Atoi(word)
		switch {
		case method >= 0:
			r.Method = methods[method]
		case slices.Contains(policies, word):
			r.Policy = word
		case err == nil && n > 0:
			r.Budget = n
		default:
			return fail("%s is no method (%s), policy or budget", word, strings.Join(methods, ", "))
		}
	}
	return r, nil
}

// Must is ParseRequirement for a requirement that is part of a program; it panics if it makes no sense.
func Must(s string) Requirement {
	r, err := ParseRequirement(s)
	if err != nil {
		panic(err)
	}
	return r
}

// Check adds requirements to what the report checks, one check for each row that they are about, and returns all checks, those
// that are built in too. A requirement that no row can answer does not hold.
func (r *Report) Check(requirements ...Requirement) []Check {
	for _, q := range requirements {
		n := 0
		for _, row := range r.Measured() {
			if row.Method != q.Method || q.Policy != "" && row.Policy != q.Policy || q.Budget != 0 && row.Budget != q.Budget {
				continue
			}
			if row.Generation == nil && row.Fault == "" && slices.Contains(texts, strings.TrimSuffix(strings.TrimSuffix(q.Measure, ".low"), ".high")) {
				continue // another micro-batch than the first
			}
			n++
			r.Checks = append(r.Checks, q.check(row))
		}
		if n == 0 {
			r.Checks = append(r.Checks, Check{Requirement: q.text, Method: q.Method, Policy: q.Policy, Budget: q.Budget, Reason: "nothing that it is about was measured"})
		}
	}
	return r.Checks
}

// Failed are the checks that do not hold.
func (r *Report) Failed() []Check {
	var out []Check
	for _, c := range r.Checks {
		if !c.OK {
			out = append(out, c)
		}
	}
	return out
}

func (q Requirement) check(row *Row) Check {
	c := Check{Requirement: q.text, Context: row.Context, Ubatch: row.Ubatch, Method: row.Method, Policy: row.Policy, Budget: row.Budget}
	if row.Fault != "" {
		c.Reason = row.Fault
		return c
	}
	measure, low := strings.CutSuffix(q.Measure, ".low")
	measure, high := strings.CutSuffix(measure, ".high")
	e, ok := measures[measure](row)
	if !ok {
		c.Reason = "was not measured"
		return c
	}
	c.Found = e.Value
	if low {
		c.Found = e.Low
	} else if high {
		c.Found = e.High
	}
	if q.Less {
		c.OK = c.Found < q.Bound
	} else {
		c.OK = c.Found > q.Bound
	}
	c.OK = c.OK || q.Equal && c.Found == q.Bound
	if !c.OK {
		c.Reason = fmt.Sprintf("found %.6g", c.Found)
	}
	return c
}
