package main

import (
	"fmt"
	"strings"

	"github.com/lesskv/lesskv/integration/verify"
)

// recallPage is the page's section on recall.
func (r *Report) recallPage(say func(format string, args ...any)) {
	say(`
## Recall

` + "[`gopher-recall-5m`](../integration/testdata/recall/README.md)" + ` reads a number and is asked for it: a pass key among sentences that say nothing, a number under a name in
held-out Go text, or one of four such numbers. Budgets are a share of the bytes of the full f16 cache, with everything counted. They were tuned on Go text without such tasks, or on
the same text with look-ups: in each window six numbers under other names, in the words of the tasks, then questions with their answers. Where the full cache answers less than half, nothing else was asked.
"Answered" counts all right answers, also to questions that the full cache gets wrong. Targets: 95 %% of what the full cache answers at 1/20, 70 %% at 1/50.

| bytes | slots | budgets | answered | full cache | | | at depth 0 | 1/4 | 1/2 | 3/4 | 1 |
|---|---|---|---|---|---|---|---|---|---|---|---|`)
	if full := r.fullByDepth(); len(full) > 0 {
		say("| 1 | f16 | full cache | %d | %d | | |%s", right(full), right(full), depths(full))
	}
	for _, s := range r.recallSums() {
		share, judged := float64(s.right)/float64(s.full), ""
		if !strings.HasPrefix(s.budgets, equal) {
			judged = verdict(-share, -s.target) // more is better
		}
		say("| %s | %s | %s | %d | %d | %.0f %% | %s |%s", s.share, s.types, s.budgets, s.right, s.full, 100*share, judged, depths(s.depth))
	}
	say("\n%s", r.belowEqual())
	say(`
By task:

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
		return fmt.Sprintf("In none of the %d cells of a task, a length and a depth does a tuned allocation answer less than equal budgets.", cells)
	}
	count := "none"
	if more > 0 {
		count = fmt.Sprint(more)
	}
	return fmt.Sprintf(`In %d of the %d cells of a task, a length and a depth a tuned allocation answers less than equal budgets. The full cache answers more than the tuned allocation in %s of these %d:

| bytes | slots | budgets | task | tokens | depth | answered | equal budgets | full cache |
|---|---|---|---|---|---|---|---|---|
%s`, n, cells, count, n, strings.TrimSuffix(below.String(), "\n"))
}

// task names a kind of task and its length.
func (x *Recall) task() string { return fmt.Sprintf("%s of %d", x.Kind, x.Tokens) }

// fullByDepth sums what the full cache answers, each task once.
func (r *Report) fullByDepth() (all []verify.Depth) {
	asked := map[string]bool{}
	for _, x := range r.Recall {
		if x.Right >= 0 && !asked[x.task()] {
			asked[x.task()] = true
			all = sum(all, x.FullByDepth)
		}
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

func right(all []verify.Depth) (n int) {
	for _, d := range all {
		n += d.Right
	}
	return n
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

// recallSum is all tasks of a share, type and kind of budget together.
type recallSum struct {
	share, types, budgets string
	full, right           int
	target                float64
	depth                 []verify.Depth
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
			all = append(all, s)
		}
		all[i].full += x.Full
		all[i].right += x.Right
		all[i].depth = sum(all[i].depth, x.Depth)
	}
	return all
}
