package reference

// H2O keeps the newest, and those with the largest sum of weights.
var H2O = register(Policy{
	Name:  "h2o",
	Heavy: func(budget int) int { return budget / 2 },
	Gain:  func(gain, weight float64) float64 { return gain + weight },
	Score: func(score, gain float64, _ int) float64 { return score + gain },
})
