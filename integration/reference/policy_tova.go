package reference

// TOVA keeps those to which the last query gives the largest weights in sum.
var TOVA = register(Policy{
	Name:    "tova",
	Heavy:   func(budget int) int { return max(0, budget-1) },
	Queries: 1,
	Gain:    func(gain, weight float64) float64 { return gain + weight },
	Score:   func(_, gain float64, _ int) float64 { return gain },
})
