package verify

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/memory"
)

// promptMark stands for the prompt in a template.
const promptMark = "{prompt}"

// Kinds of recall tasks, after RULER (Hsieh et al., arXiv 2404.06654) and the passkey task (Mohtashami and Jaggi, arXiv
// 2305.16300): a number is said once, far back, and then asked for.
const (
	Passkey = "passkey" // among sentences that say nothing
	Needle  = "needle"  // in the text, under one name
	Needles = "needles" // in the text, one of four, each under a name of its own
)

// RecallKinds lists them.
func RecallKinds() []string { return []string{Passkey, Needle, Needles} }

// Recall is how often a kind of task is answered, at one length.
type Recall struct {
	Context     int            `json:"context"`
	Ubatch      int            `json:"ubatch"`
	Kind        string         `json:"kind"`
	Length      int            `json:"length"` // tokens of the prompt
	Tasks       int            `json:"tasks"`
	Full        int            `json:"full"` // that the full cache answers
	FullByDepth []Depth        `json:"full_by_depth,omitempty"`
	Weak        bool           `json:"weak"` // it answers less than half: the model can't do this, and no method is asked
	Methods     []RecallMethod `json:"methods,omitempty"`
}

// RecallMethod is how often a method answers.
type RecallMethod struct {
	Method  string  `json:"method"`
	Policy  string  `json:"policy,omitempty"`
	Budget  int     `json:"budget"`
	Types   string  `json:"types,omitempty"`
	Within  int64   `json:"within,omitempty"`
	Adapter string  `json:"adapter,omitempty"`
	Right   int     `json:"right"`
	ByDepth []Depth `json:"by_depth"`
}

// A Depth is where in the prompt the number stands, from 0 to 1.
type Depth struct {
	Depth float64 `json:"depth"`
	Tasks int     `json:"tasks"`
	Right int     `json:"right"`
}

// A task is a prompt whose continuation must have the answer in it.
type task struct {
	kind   string
	length int // asked for
	depth  float64
	prompt []int32
	answer string
}

const answerTokens = 16

// What tasks are made of.
var (
	recallLengths = []float64{0.25, 0.5, 0.9} // of the context
	recallDepths  = []float64{0, 0.25, 0.5, 0.75, 1}
	recallNames   = []string{"otter", "lantern", "harbour", "violin", "meadow", "copper", "saddle", "walnut"}
)

const recallNoise = "The river runs slowly past the mill. Clouds drift over the hills. A dog sleeps by the door. Nothing else happens here.\n"

// NeedleText says a number under a name.
func NeedleText(name, number string) string {
	return fmt.Sprintf("\nThe %s key is %s. Keep it in mind: %s is the %s key.\n", name, number, number, name)
}

// Question asks for the number under a name: it ends where the answer begins.
func Question(name string) string {
	return fmt.Sprintf("\nWhat is the %s key? The %s key is", name, name)
}

// readTasks makes the recall tasks of a context. ErrMemory where all of them would not fit.
func (v *verifier) readTasks(ctx context.Context, w *worker.Worker, context int) error {
	n := len(v.plan.Recall) * len(recallLengths) * len(recallDepths) * v.plan.Tasks
	if need := int64(n) * int64(context) * 4; need > v.plan.Memory-v.info.Bytes-overhead {
		return fmt.Errorf("verify: %d recall tasks of a context of %d take %s, and the bound is %s: want fewer, or a smaller context: %w",
			n, context, memory.Size(need), memory.Size(v.plan.Memory), ErrMemory)
	}
	before, after, _ := strings.Cut(v.plan.Template, promptMark)
	var fault error
	tokens := func(text string) []int32 {
		if text == "" || fault != nil {
			return nil
		}
		t, err := w.TokenizeTemplate(text)
		if err != nil {
			fault = fmt.Errorf("verify: recall tasks: %w", err)
		}
		return t
	}
	head, tail := slices.Concat(v.start, tokens(before)), tokens(after)
	noise := tokens(recallNoise)
	draw := rand.New(rand.NewPCG(v.plan.Seed, uint64(context)))
	for _, kind := range v.plan.Recall {
		for _, share := range recallLengths {
			for i := range len(recallDepths) * v.plan.Tasks {
				if err := cmp.Or(fault, ctx.Err()); err != nil {
					return err
				}
				depth, repeat := recallDepths[i%len(recallDepths)], i/len(recallDepths)
				length := int(share*float64(context)) - answerTokens
				names := []string{recallNames[draw.IntN(len(recallNames))]}
				if kind == Needles {
					names = nil
					for _, i := range draw.Perm(len(recallNames))[:4] {
						names = append(names, recallNames[i])
					}
				}
				t := task{kind: kind, length: length, depth: depth}
				var needles [][]int32
				for i, name := range names {
					number := fmt.Sprint(10000 + draw.IntN(90000))
					if i == 0 {
						t.answer = number
					}
					if kind == Passkey {
						name = "pass"
					}
					needles = append(needles, tokens(NeedleText(name, number)))
				}
				name := names[0]
				if kind == Passkey {
					name = "pass"
				}
				question := tokens(Question(name))
				room := length - len(head) - len(tail) - len(question)
				for _, n := range needles {
					room -= len(n)
				}
				if room < 0 || len(needles[0]) == 0 || len(question) == 0 || kind == Passkey && len(noise) == 0 {
					continue
				}
				var hay []int32
				if kind == Passkey {
					for len(hay) < room {
						hay = append(hay, noise...)
					}
				} else if len(v.text) < room {
					continue
				} else { // another part of the text for each repetition
					hay = v.text[repeat*room%(len(v.text)-room+1):]
				}
				hay = hay[:room]
				// The one that is asked for at its depth, the others evenly.
				t.prompt = slices.Clone(head)
				places := []int{int(depth * float64(room))}
				for i := 1; i < len(needles); i++ {
					places = append(places, i*room/len(needles))
				}
				order := make([]int, len(needles))
				for i := range order {
					order[i] = i
				}
				slices.SortStableFunc(order, func(a, b int) int { return places[a] - places[b] })
				at := 0
				for _, i := range order {
					t.prompt = append(append(t.prompt, hay[at:places[i]]...), needles[i]...)
					at = places[i]
				}
				t.prompt = slices.Concat(t.prompt, hay[at:], question, tail)
				v.tasks[context] = append(v.tasks[context], t)
			}
		}
	}
	return fault
}

// answers are what a run said to each task; "" where it was not asked.
type answers []string

func (v *verifier) recallKey(g *group, r *run) string {
	h := [][]int32{}
	for _, t := range v.tasks[g.context] {
		h = append(h, t.prompt)
	}
	return v.key("recall", g, r, hashTokens(h...))
}

func (v *verifier) recalled(g *group, r *run) bool {
	return len(v.tasks[g.context]) == 0 || !g.texts || v.store.Has(v.recallKey(g, r))
}

// recall puts every task to a run: to the full cache first, and to others those kinds and lengths that it can do.
func (v *verifier) recall(g *group, o *opened) error {
	if v.recalled(g, o.run) {
		return nil
	}
	var full answers
	if o.run != g.full && !v.store.Load(v.recallKey(g, g.full), &full) {
		return fmt.Errorf("verify: %s: the full cache's answers are gone from %s", o.describe(), v.store.Dir)
	}
	weak := v.weak(g, full)
	var all answers
	for _, t := range v.tasks[g.context] {
		if o.run != g.full && weak[recallGroup{t.kind, t.length}] {
			all = append(all, "")
			continue
		}
		out, err := v.answer(o, t.prompt, answerTokens)
		if err != nil {
			return err
		}
		all = append(all, out.Text)
	}
	return v.store.Save(v.recallKey(g, o.run), all)
}

type recallGroup struct {
	kind   string
	length int
}

// weak says which kinds and lengths the full cache answers less than half of.
func (v *verifier) weak(g *group, full answers) map[recallGroup]bool {
	tasks, right := map[recallGroup]int{}, map[recallGroup]int{}
	for i, t := range v.tasks[g.context] {
		k := recallGroup{t.kind, t.length}
		tasks[k]++
		if i < len(full) && t.right(full[i]) {
			right[k]++
		}
	}
	out := map[recallGroup]bool{}
	for k, n := range tasks {
		out[k] = 2*right[k] < n
	}
	return out
}

func (t *task) right(answer string) bool { return strings.Contains(answer, t.answer) }

// recallReport sums up a group's answers.
func (v *verifier) recallReport(g *group) []Recall {
	var full answers
	if len(v.tasks[g.context]) == 0 || !g.texts || !v.store.Load(v.recallKey(g, g.full), &full) {
		return nil
	}
	weak := v.weak(g, full)
	var out []Recall
	for _, kind := range v.plan.Recall {
		for _, share := range recallLengths {
			k := recallGroup{kind, int(share*float64(g.context)) - answerTokens}
			one := Recall{Context: g.context, Ubatch: g.ubatch, Kind: kind, Length: k.length, Weak: weak[k]}
			one.Tasks, one.Full, one.FullByDepth = v.byDepth(g, k, full)
			if one.Tasks == 0 {
				continue
			}
			for _, row := range g.rows {
				var said answers
				if one.Weak || row.Method == Full || row.Method == Reference || !v.store.Load(v.recallKey(g, row.run), &said) {
					continue
				}
				m := RecallMethod{Method: row.Method, Policy: row.Policy, Budget: row.Budget, Types: row.Types, Within: row.Within}
				if row.Within > 0 {
					m.Adapter = row.Adapter
				}
				_, m.Right, m.ByDepth = v.byDepth(g, k, said)
				one.Methods = append(one.Methods, m)
			}
			out = append(out, one)
		}
	}
	return out
}

// byDepth counts the tasks of a kind and length and the right answers to them, in all and by depth.
func (v *verifier) byDepth(g *group, k recallGroup, said answers) (tasks, right int, all []Depth) {
	for _, d := range recallDepths {
		depth := Depth{Depth: d}
		for i, t := range v.tasks[g.context] {
			if (recallGroup{t.kind, t.length}) == k && t.depth == d {
				depth.Tasks++
				if t.right(said[i]) {
					depth.Right++
				}
			}
		}
		tasks, right, all = tasks+depth.Tasks, right+depth.Right, append(all, depth)
	}
	return tasks, right, all
}
