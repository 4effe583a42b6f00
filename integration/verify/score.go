package verify

import (
	"fmt"
	"math"

	"github.com/lesskv/lesskv/integration/worker"
)

// expected is the full cache's rows of some tokens, ready to be compared with: probabilities and their logarithms.
type expected struct {
	out  *worker.Output
	p    []float64 // [rows][vocab]
	norm []float64 // log sum exp of a row
	top  []int
}

func expect(out *worker.Output) *expected {
	e := &expected{out: out, p: make([]float64, len(out.Values)), norm: make([]float64, out.Len()), top: make([]int, out.Len())}
	for i := range out.Len() {
		row, p := out.Row(i), e.p[i*out.Width:]
		e.top[i], e.norm[i] = logSum(row)
		for t, x := range row {
			p[t] = math.Exp(float64(x) - e.norm[i])
		}
	}
	return e
}

// add compares a method's rows with the full cache's; next are the tokens that follow each, and may lack the last.
func (p *points) add(e *expected, out *worker.Output, next []int32) error {
	if out.Width != e.out.Width || out.Len() != e.out.Len() {
		return fmt.Errorf("verify: %d rows of %d logits: want %d of %d, as the full cache has", out.Len(), out.Width, e.out.Len(), e.out.Width)
	}
	for i := range out.Len() {
		full, row, probabilities := e.out.Row(i), out.Row(i), e.p[i*out.Width:]
		top, norm := logSum(row)
		kl := 0.0
		for t, x := range row {
			if q := probabilities[t]; q > 0 { // a logit of -Inf is no fault
				kl += q * ((float64(full[t]) - e.norm[i]) - (float64(x) - norm))
			}
		}
		if (math.IsNaN(kl) || math.IsInf(kl, 0)) && p.Fault == "" {
			p.Fault = fmt.Sprintf("position %d: logits that are not finite", len(p.KL))
		}
		var nll, nllFull float64
		if i < len(next) {
			nll, nllFull = norm-float64(row[next[i]]), e.norm[i]-float64(full[next[i]])
		}
		p.KL = append(p.KL, kl)
		p.NLL = append(p.NLL, nll)
		p.Full = append(p.Full, nllFull)
		p.Agree = append(p.Agree, top == e.top[i])
	}
	return nil
}

// logSum returns the index of the largest logit and log sum exp.
func logSum(x []float32) (top int, norm float64) {
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
