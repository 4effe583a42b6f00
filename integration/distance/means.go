package distance

import (
	"math"

	"github.com/lesskv/lesskv/integration/worker"
)

// Compare returns the points of one sequence of n tokens: full and method are the logits of both caches, [n][vocab].
func Compare(full, method []float32, tokens []int32) (*Points, error) {
	rows := func(values []float32) *worker.Output {
		return &worker.Output{Width: len(full) / len(tokens), Values: values}
	}
	p := &Points{}
	return p, p.Add(Expect(rows(full)), rows(method), tokens[1:])
}

// Means are what a method is worth over positions.
type Means struct {
	KL             float64 // KL(full || method), nats
	FullPerplexity float64 // of the full cache, of the next token
	Perplexity     float64 // of the method
	Top1           float64 // share of the positions where both find the same token the most likely one
}

// Mean is over the positions of each sequence from first on. The last position of a sequence has no next token, and counts for KL and Top1 only.
func Mean(first int, all ...*Points) Means {
	var m Means
	var n, targets, agree, full, nll float64
	for _, p := range all {
		for i := first; i < len(p.KL); i++ {
			n++
			m.KL += p.KL[i]
			if p.Agree[i] {
				agree++
			}
			if i+1 < len(p.KL) {
				targets++
				full += p.Full[i]
				nll += p.NLL[i]
			}
		}
	}
	m.KL, m.Top1 = m.KL/n, agree/n
	m.FullPerplexity, m.Perplexity = math.Exp(full/targets), math.Exp(nll/targets)
	return m
}
