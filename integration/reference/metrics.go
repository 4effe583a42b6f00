package reference

import "math"

// Metrics compares a method's logits with the full cache's, in sums over positions.
type Metrics struct {
	n, targets   int
	nllFull, nll float64
	kl           float64
	agree        int
}

// Add takes in the positions from first on of one sequence: logits of both sides [n][vocab], and the sequence's n tokens. The
// last position has no next token and counts for KL and top-1 only.
func (m *Metrics) Add(full, method []float32, tokens []int32, first int) {
	vocab := len(full) / len(tokens)
	for i := first; i < len(tokens); i++ {
		p, q := full[i*vocab:][:vocab], method[i*vocab:][:vocab]
		topP, normP := logSum(p)
		topQ, normQ := logSum(q)
		for t := range p {
			a, b := float64(p[t])-normP, float64(q[t])-normQ
			m.kl += math.Exp(a) * (a - b)
		}
		m.n++
		if topP == topQ {
			m.agree++
		}
		if i+1 < len(tokens) {
			m.targets++
			m.nllFull += normP - float64(p[tokens[i+1]])
			m.nll += normQ - float64(q[tokens[i+1]])
		}
	}
}

// Merge adds what other has summed.
func (m *Metrics) Merge(other Metrics) {
	m.n += other.n
	m.targets += other.targets
	m.nllFull += other.nllFull
	m.nll += other.nll
	m.kl += other.kl
	m.agree += other.agree
}

// FullPerplexity is the full cache's perplexity of the next token.
func (m *Metrics) FullPerplexity() float64 { return math.Exp(m.nllFull / float64(m.targets)) }

// Perplexity is the method's.
func (m *Metrics) Perplexity() float64 { return math.Exp(m.nll / float64(m.targets)) }

// KL is the mean of KL(full || method), in nats.
func (m *Metrics) KL() float64 { return m.kl / float64(m.n) }

// Top1 is the share of positions where both find the same token the most likely one.
func (m *Metrics) Top1() float64 { return float64(m.agree) / float64(m.n) }

// logSum returns the index of the largest logit and log sum exp.
func logSum(x []float32) (top int, norm float64) {
	for i, a := range x {
		if a > x[top] {
			top = i
		}
	}
	sum := 0.0
	for _, a := range x {
		sum += math.Exp(float64(a - x[top]))
	}
	return top, float64(x[top]) + math.Log(sum)
}
