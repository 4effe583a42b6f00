package verify

import (
	"fmt"
	"slices"

	"github.com/lesskv/lesskv/integration/worker"
)

// prompt is a prompt, tokenised for a context.
type prompt struct {
	tokens    []int32
	reference string
}

// Generation is how greedy generations of a method go, beside those of the full cache. They are made at the first micro-batch
// of a plan: what follows the prompt is decoded one by one in any case.
type Generation struct {
	Prompts int      `json:"prompts"`
	Tokens  int      `json:"tokens"` // of each
	Prefix  Estimate `json:"prefix"` // tokens until it first differs
	Same    int      `json:"same"`   // generations that never do
	Rouge1  Estimate `json:"rouge1"` // F1 against the full cache's text
	Rouge2  Estimate `json:"rouge2"`
	RougeL  Estimate `json:"rougeL"`

	// Against reference texts, where there are any: the method, and the full cache beside it.
	References int       `json:"references,omitempty"`
	ReferenceL *Estimate `json:"reference_rougeL,omitempty"`
	FullL      *Estimate `json:"full_reference_rougeL,omitempty"`
	Reference1 *Estimate `json:"reference_rouge1,omitempty"`
	Full1      *Estimate `json:"full_reference_rouge1,omitempty"`
	Reference2 *Estimate `json:"reference_rouge2,omitempty"`
	Full2      *Estimate `json:"full_reference_rouge2,omitempty"`
}

// generated is one generation.
type generated struct {
	Tokens []int32
	Text   string
}

// readPrompts tokenises the plan's prompts.
func (v *verifier) readPrompts(w *worker.Worker) error {
	for i, p := range v.plan.Prompts {
		tokens, err := w.Tokenize(p.Prompt, false)
		if err != nil {
			return fmt.Errorf("verify: prompt %d: %w", i, err)
		}
		tokens = slices.Concat(v.start, tokens)
		if len(tokens) == 0 {
			return fmt.Errorf("verify: prompt %d is empty: %w", i, ErrPlan)
		}
		v.prompts = append(v.prompts, prompt{tokens, p.Reference})
	}
	return nil
}

// promptsOf returns what a group's generations begin with: the plan's prompts, or the first halves of its windows.
func (v *verifier) promptsOf(g *group) []prompt {
	if v.plan.Generate < 1 || !g.texts {
		return nil
	}
	var all []prompt
	for i, p := range v.prompts {
		if len(p.tokens)+v.plan.Generate > g.context {
			v.note("prompt %d has %d tokens: with %d more it does not fit a context of %d, and is left out there", i, len(p.tokens), v.plan.Generate, g.context)
			continue
		}
		all = append(all, p)
	}
	if len(v.plan.Prompts) > 0 {
		return all
	}
	for _, w := range g.windows {
		if half := len(w) / 2; half > 0 && half+v.plan.Generate <= len(w) {
			all = append(all, prompt{tokens: w[:half]})
		}
	}
	return all
}

// continuation is what follows a prompt in the text, where it was cut out of it.
func (v *verifier) continuation(g *group, i int, p prompt) []int32 {
	if len(v.plan.Prompts) > 0 {
		return nil
	}
	return g.windows[i][len(p.tokens):][:v.plan.Generate]
}

func (v *verifier) generateKey(g *group, r *run) string {
	h := [][]int32{}
	for _, p := range v.promptsOf(g) {
		h = append(h, p.tokens)
	}
	return v.key("generate", g, r, hashTokens(h...), v.plan.Generate)
}

func (v *verifier) generated(g *group, r *run) bool {
	if v.plan.Generate < 1 || !g.texts {
		return true
	}
	for i, p := range v.promptsOf(g) {
		if text := v.continuation(g, i, p); r == g.full && text != nil && !v.store.Has(v.continuationKey(text)) {
			return false
		}
	}
	return v.store.Has(v.generateKey(g, r))
}

func (v *verifier) continuationKey(text []int32) string {
	return v.key("continuation", hashTokens(text))
}

// generate continues every prompt greedily, and keeps the texts. The full cache keeps the references' too.
func (v *verifier) generate(g *group, o *opened) error {
	if v.generated(g, o.run) {
		return nil
	}
	var all []generated
	for i, p := range v.promptsOf(g) {
		out, err := v.answer(o, p.tokens, v.plan.Generate)
		if err != nil {
			return err
		}
		all = append(all, out)
		if text := v.continuation(g, i, p); o.run == g.full && text != nil && !v.store.Has(v.continuationKey(text)) {
			s, err := o.w.Detokenize(text, false)
			if err != nil {
				return fmt.Errorf("verify: %s: %w", o.describe(), err)
			}
			if err := v.store.Save(v.continuationKey(text), s); err != nil {
				return err
			}
		}
	}
	return v.store.Save(v.generateKey(g, o.run), all)
}

// answer continues a prompt by the n most likely tokens.
func (v *verifier) answer(o *opened, prompt []int32, n int) (generated, error) {
	fail := func(err error) (generated, error) {
		return generated{}, fmt.Errorf("verify: %s: %w", o.describe(), err)
	}
	if err := o.w.Clear(); err != nil {
		return fail(err)
	}
	last := len(prompt) - 1
	if last > 0 {
		if _, err := o.w.Feed(0, 0, prompt[:last], worker.None); err != nil {
			return fail(err)
		}
	}
	tokens, _, err := o.w.Greedy(0, last, prompt[last], n, false)
	if err != nil {
		return fail(err)
	}
	text, err := o.w.Detokenize(tokens, false)
	if err != nil {
		return fail(err)
	}
	return generated{tokens, text}, nil
}

// generation compares a run's texts with the full cache's.
func (v *verifier) generation(g *group, r *run) *Generation {
	var full, texts []generated
	if v.plan.Generate < 1 || !g.texts || !v.store.Load(v.generateKey(g, g.full), &full) || !v.store.Load(v.generateKey(g, r), &texts) || len(full) != len(texts) || len(full) == 0 {
		return nil
	}
	out := &Generation{Prompts: len(full), Tokens: v.plan.Generate}
	var prefix, one, two, long []float64
	var reference, referenceFull [3][]float64
	for i, p := range v.promptsOf(g) {
		n := 0
		for n < len(full[i].Tokens) && full[i].Tokens[n] == texts[i].Tokens[n] {
			n++
		}
		if n == len(full[i].Tokens) {
			out.Same++
		}
		prefix = append(prefix, float64(n))
		a, b, c := Rouge(full[i].Text, texts[i].Text)
		if full[i].Text == texts[i].Text { // texts without a word are equal too
			a.F1, b.F1, c.F1 = 1, 1, 1
		}
		one, two, long = append(one, a.F1), append(two, b.F1), append(long, c.F1)
		want := p.reference
		if text := v.continuation(g, i, p); text != nil {
			v.store.Load(v.continuationKey(text), &want)
		}
		if want == "" {
			continue
		}
		for j, t := range []string{texts[i].Text, full[i].Text} {
			a, b, c := Rouge(want, t)
			to := []*[3][]float64{&reference, &referenceFull}[j]
			for k, o := range []Overlap{a, b, c} {
				to[k] = append(to[k], o.F1)
			}
		}
		out.References++
	}
	out.Prefix, out.Rouge1, out.Rouge2, out.RougeL = v.draw.mean(prefix), v.draw.mean(one), v.draw.mean(two), v.draw.mean(long)
	if out.References > 0 {
		for k, to := range [][2]**Estimate{{&out.Reference1, &out.Full1}, {&out.Reference2, &out.Full2}, {&out.ReferenceL, &out.FullL}} {
			a, b := v.draw.mean(reference[k]), v.draw.mean(referenceFull[k])
			*to[0], *to[1] = &a, &b
		}
	}
	return out
}
