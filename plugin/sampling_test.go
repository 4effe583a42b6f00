package lesskv_test

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// A chain is the sampling that docs/compatibility.md describes, in plain loops.
type chain struct {
	llama.PredictOptions
	newline int     // the token that PenalizeNL is about
	mu      float64 // mirostat's, in bits
}

type candidate struct {
	token    int
	logit, p float64
	seen     float64 // how often, among the tokens that are penalised
}

// softmax sets the probabilities, and sorts by them.
func softmax(list []candidate) []candidate {
	slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(b.logit, a.logit) })
	var sum float64
	for _, c := range list {
		sum += math.Exp(c.logit - list[0].logit)
	}
	for i, c := range list {
		list[i].p = math.Exp(c.logit-list[0].logit) / sum
	}
	return list
}

// first returns the first that have a probability of p together.
func first(list []candidate, p float32) []candidate {
	var sum float64
	for i, c := range list {
		if sum += c.p; sum >= float64(p) {
			return list[:i+1]
		}
	}
	return list
}

// candidates returns the tokens that may follow a text.
func (c *chain) candidates(logits []float64, text []int) []candidate {
	seen := map[int]float64{}
	for _, token := range text[max(0, len(text)-c.Repeat):] {
		seen[token]++
	}
	var list []candidate
	for token, x := range logits {
		if n := seen[token]; n > 0 && (c.PenalizeNL || token != c.newline) {
			if x > 0 {
				x /= float64(c.Penalty)
			} else {
				x *= float64(c.Penalty)
			}
			x -= n*float64(c.FrequencyPenalty) + float64(c.PresencePenalty)
		}
		list = append(list, candidate{token: token, logit: x, seen: seen[token]})
	}
	list = softmax(list)
	if c.Mirostat == 0 {
		return c.heat(c.truncate(list))
	}
	list = c.heat(list)
	n := 1
	if c.Mirostat == 1 { // Basu et al., arXiv 2007.14966, algorithm 1: Zipf's exponent, from the 100 most likely
		var tb, tt float64
		for i := range 99 {
			t, b := math.Log(float64(i+2)/float64(i+1)), math.Log(list[i].p/list[i+1].p)
			tb += t * b
			tt += t * t
		}
		s := tb / tt
		n = max(n, int(math.Pow((s-1)*math.Pow(2, c.mu)/(1-math.Pow(float64(len(list)), 1-s)), 1/s)))
	} else { // none but the first that surprises more than mu
		for n < len(list) && -math.Log2(list[n].p) <= c.mu {
			n++
		}
	}
	return softmax(list[:min(n, len(list))])
}

// tailFree takes the tail off: each token weighs as much as the curve of the probabilities bends behind it, and the first from the
// second on that makes more than z of these weights, together with those before it, is where the tail begins.
func tailFree(list []candidate, z float64) []candidate {
	if len(list) <= 2 || z >= 1 {
		return list
	}
	var weights []float64
	var sum float64
	for i := range list[2:] {
		step, next := list[i].p-list[i+1].p, list[i+1].p-list[i+2].p
		weights = append(weights, math.Abs(step-next))
		sum += weights[i]
	}
	var together float64
	for i, w := range weights {
		if sum < 1e-6 { // they lie on a line
			together += 1 / float64(len(weights))
		} else {
			together += w / sum
		}
		if i > 0 && together > z {
			return list[:i]
		}
	}
	return list
}

// truncate is top-k, tail-free, typical, top-p.
func (c *chain) truncate(list []candidate) []candidate {
	if c.TopK > 0 {
		list = softmax(list[:c.TopK])
	}
	list = softmax(tailFree(list, float64(c.TailFreeSamplingZ)))
	if c.TypicalP < 1 { // Meister et al., arXiv 2202.00666: those whose surprise is nearest to the entropy
		var entropy float64
		for _, x := range list {
			entropy -= x.p * math.Log(x.p)
		}
		far := func(x candidate) float64 { return math.Abs(-math.Log(x.p) - entropy) }
		slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(far(a), far(b)) })
		list = softmax(first(list, c.TypicalP))
	}
	return first(list, c.TopP)
}

// A line bends nowhere: its tokens weigh the same. Of ten that are as likely, four are no more than half of the eight that count.
func TestTailFreeOfALine(t *testing.T) {
	logits := make([]float32, vocabularySize)
	for i := range logits {
		logits[i] = -50
	}
	for i := range 10 {
		logits[300+i] = 3
	}
	model := load(t, writeConstant(t, logits), lesskv.Disable(), llama.SetContext(256))
	for z, want := range map[float32]int{0: 1, .25: 2, .5: 4, .99: 7, 1: 10} {
		drawn := map[string]bool{}
		predict(t, model, prompt, llama.SetTailFreeSamplingZ(z), llama.SetTopK(10), llama.SetTopP(1), llama.SetTemperature(1), llama.SetPenalty(1), llama.SetTokens(300), llama.SetSeed(1),
			llama.SetTokenCallback(func(piece string) bool { drawn[piece] = true; return true }))
		assert.Len(t, drawn, want, "z = %g", z)
	}
}

func (c *chain) heat(list []candidate) []candidate {
	for i := range list {
		list[i].logit /= float64(c.Temperature)
	}
	return softmax(list)
}

// learn is what mirostat does with the probability of the token that was drawn.
func (c *chain) learn(p float64) {
	c.mu -= float64(c.MirostatETA) * (-math.Log2(p) - float64(c.MirostatTAU))
}

// A tally is a sum over a text's tokens of some number that each has, and what is expected of it.
type tally struct{ got, want, variance float64 }

func (s *tally) add(list []candidate, drawn int, number func(candidate) float64) {
	var mean, square float64
	for _, c := range list {
		mean += c.p * number(c)
		square += c.p * number(c) * number(c)
	}
	s.got += number(list[drawn])
	s.want += mean
	s.variance += square - mean*mean
}

func (s tally) check(t *testing.T, what string) {
	t.Helper()
	assert.InDelta(t, s.want, s.got, 5*math.Sqrt(s.variance)+2, what)
}

// A thousand tokens (with -short 200) are each among the reference's candidates, and drawn as often as it expects. The model gives the same logits
// after every text, from 3 down to -2.
func TestSamplingFollowsItsReference(t *testing.T) {
	const newline, biased, bias = 3 + '\n', "a", 1.5
	vocab := tinymodels.SentencePiece("<s>", "</s>")
	pieces := map[string]int{}
	for c := '!'; c <= '~'; c++ {
		pieces[string(c)] = vocab.Token(string(c))
	}
	logits := make([]float32, vocabularySize)
	for i := range logits {
		logits[i] = -50
	}
	for _, token := range pieces {
		logits[token] = 3 - 5*float32(token*37%95)/95 // in no order
	}
	pieces["\n"], logits[newline] = newline, 2.02
	model := load(t, writeConstant(t, logits), lesskv.Disable(), llama.SetContext(256))
	_, start, err := model.TokenizeString(prompt)
	require.NoError(t, err)
	known := make([]float64, len(logits))
	for i, x := range logits {
		known[i] = float64(x)
	}
	known[pieces[biased]] += bias
	tokens := 1000
	if testing.Short() {
		tokens = 200
	}

	for name, opts := range map[string][]llama.PredictOption{
		"top-k":       {llama.SetTopK(10)},
		"typical-p":   {llama.SetTypicalP(.6)},
		"top-p":       {llama.SetTopP(.6)},
		"temperature": {llama.SetTemperature(.5)},
		"tail-free":   {llama.SetTailFreeSamplingZ(.5)},
		"tail-free 0": {llama.SetTailFreeSamplingZ(0), llama.SetFrequencyPenalty(.3), llama.SetRepeat(200)}, // LocalAI's default
		"below 0":     {llama.SetTailFreeSamplingZ(-1), llama.SetFrequencyPenalty(.3), llama.SetRepeat(200)},
		"small tail":  {llama.SetTailFreeSamplingZ(.97), llama.SetTemperature(2)},
		"1":           {llama.SetTailFreeSamplingZ(1)},
		"above 1":     {llama.SetTailFreeSamplingZ(1.5)},
		"no number":   {llama.SetTailFreeSamplingZ(float32(math.NaN()))},
		"of two":      {llama.SetTopK(2), llama.SetTailFreeSamplingZ(0)},
		"of three":    {llama.SetTopK(3), llama.SetTailFreeSamplingZ(.9)},
		"all of them": {llama.SetTopK(40), llama.SetTailFreeSamplingZ(.9), llama.SetTypicalP(.6), llama.SetTopP(.7), llama.SetTemperature(3)},
		"penalties": {llama.SetPenalty(1.2), llama.SetFrequencyPenalty(.3), llama.SetPresencePenalty(.9), llama.SetRepeat(200),
			llama.SetTemperature(.3)}, // so that all of them tell
		"newlines too": {llama.SetPenalty(2), llama.SetRepeat(30), llama.SetPenalizeNL(true), llama.SetTemperature(.3)},
		"mirostat 1":   {llama.SetMirostat(1), llama.SetMirostatTAU(3), llama.SetMirostatETA(.3), llama.SetTemperature(.7)},
		"mirostat 2":   {llama.SetMirostat(2), llama.SetMirostatTAU(3), llama.SetMirostatETA(.3), llama.SetTemperature(.7)},
	} {
		t.Run(name, func(t *testing.T) {
			opts = append([]llama.PredictOption{
				llama.SetTemperature(1), llama.SetTopP(1), llama.SetTopK(0), llama.SetPenalty(1), llama.SetTokens(tokens), llama.SetSeed(1),
				llama.SetLogitBias(strconv.Itoa(pieces[biased]) + "+" + strconv.FormatFloat(bias, 'g', -1, 64)),
			}, opts...)
			c := chain{PredictOptions: llama.NewPredictOptions(opts...), newline: newline}
			c.mu = 2 * float64(c.MirostatTAU)
			var text []int
			for _, token := range start {
				text = append(text, int(token))
			}
			var surprise, seen tally
			var often [vocabularySize]tally
			predict(t, model, prompt, append(opts, llama.SetTokenCallback(func(piece string) bool {
				list := c.candidates(known, text)
				drawn := slices.IndexFunc(list, func(x candidate) bool { return x.token == pieces[piece] })
				if !assert.GreaterOrEqual(t, drawn, 0, "token %d, %q, is no candidate", len(text)-len(start), piece) {
					return false
				}
				surprise.add(list, drawn, func(x candidate) float64 { return -math.Log(x.p) })
				seen.add(list, drawn, func(x candidate) float64 { return x.seen })
				for i, x := range list {
					often[x.token].want += x.p
					often[x.token].variance += x.p * (1 - x.p)
					if i == drawn {
						often[x.token].got++
					}
				}
				c.learn(list[drawn].p)
				text = append(text, pieces[piece])
				return true
			}))...)
			assert.Len(t, text, len(start)+tokens)
			surprise.check(t, "surprise")
			seen.check(t, "repetition")
			for piece, token := range pieces {
				often[token].check(t, piece)
			}
		})
	}
}
