package reference

import "math"

// decay is what a peak keeps of its score after one token.
var decay = math.Pow(0.95, 1.0/32)

// Peak keeps the newest, and those with the largest weight of late.
var Peak = register(Policy{
	Name:  "peak",
	Heavy: func(budget int) int { return budget / 4 },
	Gain:  func(gain, weight float64) float64 { return max(gain, weight) },
	Score: func(score, gain float64, tokens int) float64 {
		return max(score*math.Pow(decay, float64(tokens)), gain)
	},
})
