// Package distance compares the logits of a cache that evicts with those of one that does not.
package distance

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/lesskv/lesskv/integration/worker"
)

// Expected is the full cache's rows of some tokens, ready to be compared with: probabilities and their logarithms.
type Expected struct {
	out  *worker.Output
	p    []float64 // [rows][vocab]
	norm []float64 // log sum exp of a row
	top  []int
}

// Expect makes the full cache's rows ready.
func Expect(out *worker.Output) *Expected {
	e := &Expected{out: out, p: make([]float64, len(out.Values)), norm: make([]float64, out.Len()), top: make([]int, out.Len())}
	for i := range out.Len() {
		row, p := out.Row(i), e.p[i*out.Width:]
		e.top[i], e.norm[i] = LogSum(row)
		for t, x := range row {
			p[t] = math.Exp(float64(x) - e.norm[i])
		}
	}
	return e
}

// Points compare one run's logits with the full cache's, at each position of one window.
type Points struct {
	KL, NLL, Full []float64 // [tokens]; NLL and Full of the next token, 0 at the last position, which has none
	Agree         []bool
	Fault         string // logits that are not finite, the method's or the full cache's: no number of these points means anything
	FullFault     string // the full cache's
}

// Skip takes n positions for equal, of which nobody wants a number.
func (p *Points) Skip(n int) {
	zeros := make([]float64, n)
	p.KL, p.NLL, p.Full = append(p.KL, zeros...), append(p.NLL, zeros...), append(p.Full, zeros...)
	p.Agree = append(p.Agree, slices.Repeat([]bool{true}, n)...)
}

// Add compares a method's rows with the full cache's; next are the tokens that follow each, and may lack the last.
func (p *Points) Add(e *Expected, out *worker.Output, next []int32) error {
	if out.Width != e.out.Width || out.Len() != e.out.Len() {
		return fmt.Errorf("distance: %d rows of %d logits: want %d of %d, as the full cache has", out.Len(), out.Width, e.out.Len(), e.out.Width)
	}
	for i := range out.Len() {
		full, row, probabilities := e.out.Row(i), out.Row(i), e.p[i*out.Width:]
		top, norm := LogSum(row)
		kl := 0.0
		for t, x := range row {
			if q := probabilities[t]; q > 0 { // a logit of -Inf is no fault
				kl += q * ((float64(full[t]) - e.norm[i]) - (float64(x) - norm))
			}
		}
		var nll, nllFull float64
		if i < len(next) {
			nll, nllFull = norm-float64(row[next[i]]), e.norm[i]-float64(full[next[i]])
		}
		if p.FullFault == "" && !Finite(e.norm[i], nllFull) {
			p.FullFault = fmt.Sprintf("position %d: logits of the full cache that are not finite", len(p.KL))
			p.Fault = cmp.Or(p.Fault, p.FullFault)
		}
		if p.Fault == "" && !Finite(kl, norm, nll) {
			p.Fault = fmt.Sprintf("position %d: logits that are not finite", len(p.KL))
		}
		p.KL = append(p.KL, kl)
		p.NLL = append(p.NLL, nll)
		p.Full = append(p.Full, nllFull)
		p.Agree = append(p.Agree, top == e.top[i])
	}
	return nil
}

// Finite reports whether all of some numbers are.
func Finite(all ...float64) bool {
	return !slices.ContainsFunc(all, func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) })
}

// LogSum returns the index of the largest logit and log sum exp, which is not finite where one logit is NaN or +Inf, or all are -Inf.
func LogSum(x []float32) (top int, norm float64) {
	for i, a := range x {
		if a > x[top] {
			top = i
		}
	}
	sum := 0.0
	for _, a := range x {
		sum += math.Exp(float64(a) - float64(x[top]))
	}
	return top, float64(x[top]) + math.Log(sum)
}
