package bench

import "slices"

// A target is a line of the table.
type target struct {
	measure string
	group   string // whose result has it
	want    float64
	most    bool // want is the most that it may be, not the least
	unit    string
	counted bool // bytes, which rounds would not change
	value   func(r *Result) Spread
}

func atLeast(want float64, measure, group string, value func(r *Result) Spread) target {
	return target{measure: measure, group: group, want: want, unit: "x", value: value}
}

func atMost(want float64, measure, group string, value func(r *Result) Spread) target {
	return target{measure: measure, group: group, want: want, most: true, unit: "x", value: value}
}

// minRounds is how many rounds a ratio of speeds is to have.
const minRounds = 7

// verdict says whether what was measured is what was wanted. Two things that are equally fast have a median below 1 every other time: so
// 1x is missed where the whole interval lies below it, and any other target where the median falls short.
func (t target) verdict(s Spread) string {
	short := func(x float64) bool { return x < t.want && !t.most || x > t.want && t.most }
	equal := t.want == 1 && !t.most
	text := "met"
	switch {
	case equal && short(s.High), !equal && short(s.Median):
		text = "**missed**"
	case short(s.Median):
		text = "met: 1x is in the interval"
	}
	if s.N < minRounds && !t.counted {
		text += ", in too few rounds"
	}
	return text
}

// againstBest divides a method's speed by that of the unmodified runtime, the fastest of its caches there.
func againstBest(method string, context int, phase Phase) func(r *Result) Spread {
	return func(r *Result) Spread { return r.Ratio(Cell{method, context, phase}, r.Best(context, phase)) }
}

// wholeAgainstBest divides LESS's speed over a whole prompt in the same way.
func wholeAgainstBest(context int) func(r *Result) Spread {
	return func(r *Result) Spread { return r.WholeRatio("less", r.bestWhole(context), context) }
}

// againstEmpty divides a method's speed at 32k by that of the unmodified runtime with an empty cache.
func againstEmpty(method string) func(r *Result) Spread {
	return func(r *Result) Spread { return r.Ratio(Cell{method, 32768, Decode}, r.Best(0, Decode)) }
}

// at32k divides the speeds of two methods, and so the second one's time by the first one's.
func at32k(method, by string, phase Phase) func(r *Result) Spread {
	return func(r *Result) Spread { return r.Ratio(Cell{method, 32768, phase}, Cell{by, 32768, phase}) }
}

func targets() []target {
	list := []target{
		atLeast(0.92, "decoding at 32k, llama-3.2-1b Q4_0, budget 5%, f16 slots: against the unmodified runtime with an empty cache, the best of its caches", "llama-3.2-1b", againstEmpty("less")),
		atLeast(0.95, "the same, q8_0 slots", "llama-3.2-1b-slots", againstEmpty("less-q8_0")),
		atLeast(5, "the same, f16 slots, against the unmodified runtime at 32k, the best of f16, f16 with flash attention, q8_0 and q4_0", "llama-3.2-1b", againstBest("less", 32768, Decode)),
		atLeast(5, "decoding at 32k, llama-3.2-1b Q4_0, with the default's policy, slots and budget: against the unmodified runtime's q8_0 with flash attention at 32k", "llama-3.2-1b-default", againstBest("less", 32768, Decode)),
		atLeast(12, "decoding at 32k, smollm2-135m Q4_0, budget 5%, against the unmodified runtime at 32k, the best of its caches", "smollm2-135m", againstBest("less", 32768, Decode)),
		atLeast(9, "prompt of 32k tokens, smollm2-135m, budget 5%, summed up from micro-batches, against the unmodified runtime, the best of its caches", "smollm2-135m", wholeAgainstBest(32768)),
		atLeast(1.3, "prompt of 8k tokens, llama-3.2-1b, 1,638 slots, summed up from micro-batches, against the unmodified runtime, the best of f16, f16 with flash attention and q8_0", "llama-3.2-1b-prompt", wholeAgainstBest(8192)),
		atMost(1.05, "decoding at 32k, smollm2-135m: LESS's time against sparse-only's at the same budget", "smollm2-135m", at32k("sparse", "less", Decode)),
		atMost(1.05, "the same, llama-3.2-1b", "llama-3.2-1b", at32k("sparse", "less", Decode)),
	}
	for _, shape := range []string{"llama-3.2-1b", "smollm2-135m"} {
		for _, slots := range []string{"q8_0", "q4_0"} {
			list = append(list,
				atLeast(1, "decoding at 32k, "+shape+": "+slots+" slots against as many in f16", shape+"-slots", at32k("less-"+slots, "less", Decode)),
				atLeast(1, "the same, as many as take the bytes of those in f16", shape+"-slots", at32k("less-"+slots+"-bytes", "less", Decode)))
		}
	}
	return append(list,
		atMost(1.02, "decoding at 32k, smollm2-135m, sparse only: time of budgets of 0.25 and 1.75 times the mean, head by head, against that of equal ones", "smollm2-135m-profile", at32k("sparse", "sparse-unequal", Decode)),
		atMost(1.02, "prompt, its last micro-batch at 32k: the same", "smollm2-135m-profile", at32k("sparse", "sparse-unequal", Prompt)),
		atLeast(1, "prompt of 512 tokens, nothing evicted, smollm2-135m: LESS on against unmodified, the best of its caches", "smollm2-135m", againstBest("less", 512, Prompt)),
		atLeast(1, "decoding at 512, the same", "smollm2-135m", againstBest("less", 512, Decode)),
		atLeast(1, "prompt of 512 tokens, llama-3.2-1b", "llama-3.2-1b", againstBest("less", 512, Prompt)),
		atLeast(1, "decoding at 512, the same", "llama-3.2-1b", againstBest("less", 512, Decode)),
		atLeast(0.92, "decoding at 32k, granite-4.0-1b Q4_0, budget 5%, f16 slots: against the unmodified runtime with an empty cache, the best of f16, f16 with flash attention and q8_0", "granite-4.0-1b", againstEmpty("less")),
		atLeast(0.95, "the same, q8_0 slots", "granite-4.0-1b", againstEmpty("less-q8_0")),
		atLeast(5, "the same, f16 slots, against the unmodified runtime at 32k", "granite-4.0-1b", againstBest("less", 32768, Decode)),
		atMost(1.05, "decoding at 32k, granite-4.0-1b: LESS's time against sparse-only's at the same budget", "granite-4.0-1b", at32k("sparse", "less", Decode)),
		atLeast(1, "the same: q8_0 slots against as many in f16", "granite-4.0-1b", at32k("less-q8_0", "less", Decode)),
		atLeast(1, "prompt of 512 tokens, granite-4.0-1b", "granite-4.0-1b", againstBest("less", 512, Prompt)),
		atLeast(1, "decoding at 512, the same", "granite-4.0-1b", againstBest("less", 512, Decode)),
		atLeast(0.97, "a runtime for any machine (-preset portable) against one for this machine, llama-3.2-1b, LESS: decoding at 32k", "llama-3.2-1b-portable", at32k("less-other", "less", Decode)),
		atLeast(0.97, "the same, prompt of 512 tokens", "llama-3.2-1b-portable", func(r *Result) Spread { return r.Ratio(Cell{"less-other", 512, Prompt}, Cell{"less", 512, Prompt}) }),
		atLeast(0.6, "LESS's attention node in a prompt, smollm2-135m: floating-point rate against the runtime's own matmul of the same shapes", "smollm2-135m-profile", node),
		atLeast(0.6, "the same, llama-3.2-1b", "llama-3.2-1b-profile", node),
		atLeast(3, "8 sequences decoding together, llama-3.2-1b, 1k tokens each, 1,024 slots: tokens of all a second against one's", "llama-3.2-1b-sequences", func(r *Result) Spread {
			return r.Ratio(Cell{"less", 1024, Together}, Cell{"less", 1024, Decode})
		}),
		atLeast(1, "the same against the unmodified runtime's 8, the best of its caches", "llama-3.2-1b-sequences", againstBest("less", 1024, Together)),
		target{"total bytes at 32k, llama-3.2-1b, budget 5%, phi and psi included, against the full f16 cache", "llama-3.2-1b", 0.07, true, "x", true, func(r *Result) Spread {
			m, ok := r.memory("less", 32768)
			if !ok {
				return Spread{}
			}
			return spread([]float64{float64(m.Cache) / float64(m.Full)})
		}},
		target{"growth of peak memory from 2k to 64k tokens of context, gopher-5m", "gopher-5m-growth", 2, true, " MiB", true, func(r *Result) Spread {
			if r.Growth == nil {
				return Spread{}
			}
			return spread([]float64{mib(r.Growth.After - r.Growth.Before)})
		}},
	)
}

// node divides the rate of LESS's attention node in each round by the matrix product's, which was measured once.
func node(r *Result) Spread {
	if r.Node == nil {
		return Spread{}
	}
	var seconds []float64
	for _, s := range r.Samples {
		if s.Method == "less" && s.Context == r.Node.Context && s.Phase == Prompt {
			seconds = append(seconds, s.Node)
		}
	}
	ratios := slices.Clone(seconds)
	for i := range ratios {
		ratios[i] = r.Node.Node / r.Node.Matmul * median(seconds) / seconds[i] // Node is that of the median
	}
	return spread(ratios)
}
