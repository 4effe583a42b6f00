package reference

// Lambda keeps the newest and the oldest.
var Lambda = register(Policy{
	Name:  "lambda",
	Heavy: func(budget int) int { return min(4, budget) },
})
