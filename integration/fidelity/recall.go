package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/integration/verify"
)

// recallPage is the page's section on recall.
func (r *Report) recallPage(say func(format string, args ...any)) {
	say(`
## Recall

`+"[`gopher-recall-5m`](../integration/testdata/recall/README.md)"+` reads a number and is asked for it: a passkey among sentences that say nothing, a number under a name in
held-out Go text, or one of four such numbers. Budgets are a share of the bytes of the full f16 cache, with everything counted. They were tuned on Go text without such tasks, or on
the same text with look-ups: in each window six numbers under other names, in the words of the tasks, then questions with their answers. Where the full cache answers less than half, nothing else was asked.
All right answers count, also to questions that the full cache gets wrong, so a share can be above 100 %%. The share of the bytes is that of the cache of 2,048 tokens, which leaves a short
text more slots a token than a long one: each length is judged alone. Targets: 95 %% of what the full cache answers at 1/20, 70 %% at 1/50.

| bytes | slots | budgets |%s | at depth 0 | 1/4 | 1/2 | 3/4 | 1 |
|---|---|---|%s---|---|---|---|---|---|`, r.lengthNames(), strings.Repeat("---|", len(r.lengths())))
	full := r.full()
	say("| 1 | f16 | full cache |%s |%s", full.byLength(), depths(full.depth))
	for _, s := range r.recallSums() {
		say("| %s | %s | %s |%s %s |%s", s.share, s.types, s.budgets, s.byLength(), s.verdict(), depths(s.depth))
	}
	say(`
A q8_0 slot takes 144 bytes here and a q4_0 slot 80, so q4_0 has nearly twice the slots, and a number that is to be found must be in one. If recall counts, tune and run with ` + "`--type q4_0`" + `: ` + "`tune`" + ` keeps the type that it is given, and ` + "`--find-types`" + ` chooses by KL alone.`)
	say("\n%s", r.belowEqual())
	say(`
<details><summary>By task</summary>

| bytes | slots | budgets | task | tokens | full cache | answered | | at depth 0 | 1/4 | 1/2 | 3/4 | 1 |
|---|---|---|---|---|---|---|---|---|---|---|---|---|`)
	asked := map[string]bool{}
	for _, x := range r.Recall {
		if x.Right < 0 {
			continue
		}
		if task := x.task(); len(x.FullByDepth) > 0 && !asked[task] { // the full cache is asked once
			asked[task] = true
			say("| 1 | f16 | full cache | %s | %d | %d of %d | %d | 100 %% |%s", x.Kind, x.Tokens, x.Full, x.Tasks, x.Full, depths(x.FullByDepth))
		}
		line := fmt.Sprintf("| %s | %s | %s | %s | %d | %d of %d | %d | %.0f %% |", x.Share, x.Types, x.budgets(), x.Kind, x.Tokens, x.Full, x.Tasks, x.Right, 100*float64(x.Right)/float64(x.Full))
		say("%s%s", line, depths(x.Depth))
	}
	say("\n</details>")
}

// belowEqual lists the cells in which what was tuned answers less than equal budgets do, beside what the full cache answers there.
func (r *Report) belowEqual() string {
	plain := map[string][]verify.Depth{}
	for _, x := range r.Recall {
		if x.Right >= 0 && x.budgets() == equal {
			plain[x.Share+x.Types+x.task()] = x.Depth
		}
	}
	var below strings.Builder
	cells, n, more := 0, 0, 0 // more: in how many of them the full cache answers more
	for _, x := range r.Recall {
		if !x.Tuned || x.Right < 0 {
			continue
		}
		for i, d := range plain[x.Share+x.Types+x.task()] {
			cells++
			if got, full := x.Depth[i].Right, x.FullByDepth[i].Right; got < d.Right {
				if n++; full > got {
					more++
				}
				fmt.Fprintf(&below, "| %s | %s | %s | %s | %d | %g | %d of %d | %d | %d |\n", x.Share, x.Types, x.budgets(), x.Kind, x.Tokens, d.Depth, got, d.Tasks, d.Right, full)
			}
		}
	}
	if n == 0 {
		return fmt.Sprintf("In none of %d cells (a task, a length and a depth) does a tuned allocation answer fewer questions than equal budgets.", cells)
	}
	count := "none"
	if more > 0 {
		count = fmt.Sprint(more)
	}
	return fmt.Sprintf(`Another target was that a tuned allocation never answers fewer questions than equal budgets. It was missed: in %d of %d cells (a task, a length and a depth; 4 questions each) the tuned allocation answers fewer. The full cache answers more than it in %s of these %d:

| bytes | slots | budgets | task | tokens | depth | answered | equal budgets | full cache |
|---|---|---|---|---|---|---|---|---|
%s`, n, cells, count, n, strings.TrimSuffix(below.String(), "\n"))
}

// task names a kind of task and its length.
func (x *Recall) task() string { return fmt.Sprintf("%s of %d", x.Kind, x.Tokens) }

// full sums what the full cache answers, each task once, by length. Shares of it are 1.
func (r *Report) full() recallSum {
	all := recallSum{}
	for _, n := range r.lengths() {
		l, asked := lengthSum{tokens: n}, map[string]bool{}
		for _, x := range r.Recall {
			if x.Right >= 0 && x.Tokens == n && !asked[x.Kind] {
				asked[x.Kind] = true
				l.full, l.right, l.depth = l.full+x.Full, l.right+x.Full, sum(l.depth, x.FullByDepth)
			}
		}
		all.lengths, all.depth = append(all.lengths, l), sum(all.depth, l.depth)
	}
	return all
}

// sum adds the counts of more to those of all, depth by depth.
func sum(all, more []verify.Depth) []verify.Depth {
	if all == nil {
		all = make([]verify.Depth, len(more))
	}
	for i, d := range more {
		all[i].Depth = d.Depth
		all[i].Tasks += d.Tasks
		all[i].Right += d.Right
	}
	return all
}

// depths are the last cells of a row of recall.
func depths(all []verify.Depth) (cells string) {
	for _, d := range all {
		cells += fmt.Sprintf(" %d of %d |", d.Right, d.Tasks)
	}
	return cells
}

// budgets says how a row's slots are spread.
func (x *Recall) budgets() string {
	switch {
	case x.LookUps:
		return "tuned with look-ups"
	case x.Tuned:
		return "tuned"
	case x.Policy != policy:
		return equal + ", " + x.Policy
	}
	return equal
}

const equal = "equal" // budgets, with the policy that is tuned for

// recallSum is all tasks of a share, type and kind of budget together, and by their length.
type recallSum struct {
	share, types, budgets string
	lengths               []lengthSum
	target                float64
	depth                 []verify.Depth
}

// lengthSum is how many tasks of so many tokens are answered, and how many the full cache answers.
type lengthSum struct {
	tokens, right, full int
	depth               []verify.Depth
}

func (s *lengthSum) share() float64 { return float64(s.right) / float64(s.full) }

func (s *recallSum) byLength() (cells string) {
	for _, l := range s.lengths {
		cells += fmt.Sprintf(" %d, %.0f %% |", l.right, 100*l.share())
	}
	return cells
}

// verdict names the lengths at which the target is missed. Equal budgets have none.
func (s *recallSum) verdict() string {
	if strings.HasPrefix(s.budgets, equal) {
		return ""
	}
	var missed []string
	for _, l := range s.lengths {
		if l.share() < s.target {
			missed = append(missed, fmt.Sprint(l.tokens))
		}
	}
	if len(missed) > 0 {
		return "missed at " + strings.Join(missed, ", ")
	}
	return "reached"
}

func (r *Report) recallSums() (all []recallSum) {
	at := map[string]int{}
	for _, x := range r.Recall {
		if x.Right < 0 {
			continue
		}
		key := x.Share + x.Types + x.budgets()
		i, ok := at[key]
		if !ok {
			i = len(all)
			at[key] = i
			s := recallSum{share: x.Share, types: x.Types, budgets: x.budgets(), target: .95}
			if x.Share == "1/50" {
				s.target = .7
			}
			for _, n := range r.lengths() {
				s.lengths = append(s.lengths, lengthSum{tokens: n})
			}
			all = append(all, s)
		}
		l := &all[i].lengths[slices.Index(r.lengths(), x.Tokens)]
		l.full += x.Full
		l.right += x.Right
		l.depth = sum(l.depth, x.Depth)
		all[i].depth = sum(all[i].depth, x.Depth)
	}
	return all
}

// lengths are those of the tasks, in tokens.
func (r *Report) lengths() (all []int) {
	for _, x := range r.Recall {
		if x.Right >= 0 && !slices.Contains(all, x.Tokens) {
			all = append(all, x.Tokens)
		}
	}
	slices.Sort(all)
	return all
}

func (r *Report) lengthNames() (cells string) {
	for _, n := range r.lengths() {
		cells += fmt.Sprintf(" %d tokens |", n)
	}
	return cells
}
