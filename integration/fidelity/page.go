package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/lesskv/lesskv/integration/verify"
)

// page is docs/fidelity.md: every number in it is one of the report's.
func (r *Report) page() []byte {
	var b bytes.Buffer
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say(`# How near it stays

This page shows how near the text stays with what [`+"`lesskv tune --train`"+`](tuning.md) finds from text, at four byte counts: budgets by head, in slots of fewer bits, and phi and psi in the layers where they pay. The model is `+"`%s`"+`, the small
model of this repository; it reads %d held-out windows of 2,048 tokens with policy peak. Everything is compared with the unmodified runtime and its f16 cache of 6,144 KiB. Bytes are those of one
sequence with everything counted: slots with their scores and positions, state, phi and psi. KL is the divergence from the full cache's predictions to the method's, in nats, with intervals of
95 %%, over the positions behind the first eviction of equal budgets. Nothing was tuned or trained on what is measured here. One command writes this page and [fidelity.json](fidelity.json),
which has all of its numbers, in about an hour on two cores:

    go run ./integration/fidelity

After an interruption it goes on where it stopped; `+"`-page`"+` only writes the page. For another model use `+"`lesskv tune`"+` and [`+"`lesskv verify --bytes`"+`](verify.md).

[research.md](research.md) has what else was tried.

## Four byte counts

| KiB | best before | target | reached | | by | budgets by head alone | equal budgets, the same slots |
|---|---|---|---|---|---|---|---|`, r.Model, r.Windows)
	for _, s := range r.Sizes {
		x := s.Rows[0]
		say("| %d | %.3f | %.3f | **%.4f** [%.4f, %.4f] | %s | %s | %.4f | %.4f |", s.KiB, s.Before, s.Target, x.KL.Value, x.KL.Low, x.KL.High, verdict(x.KL.Value, s.Target), x.Name(), s.alone().KL.Value, x.Equal.Value)
	}
	say(`
The next table says how each allocation was found: the windows of the training text that it was tuned on, the rounds of ` + "`tune`" + `, and the KL on these windows and on a window of the same text that was not tuned on.

| KiB | slots | a head on average | bytes | most likely token agrees | windows | rounds | KL there | not tuned on |
|---|---|---|---|---|---|---|---|---|`)
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			say("| %d | %s | %d | %d | %.3f | %d | %d | %.4f | %.4f |", s.KiB, x.Name(), x.Slots, x.Bytes, x.Top1.Value, x.Windows, max(x.Rounds, 0), x.TunedOn, x.NotTuned)
		}
	}
	say(`
With phi and psi these layers' outputs have so much of sparse only's error, on the validation windows of the training text, and these take so many bytes of the total, the state included:

| KiB | layer | error | bytes |
|---|---|---|---|`)
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			for _, l := range x.Phi {
				say("| %d | %d | %.3f | %d |", s.KiB, l.Layer, l.Error, l.Bytes)
			}
		}
	}
	say(`
The slots of each head, by layer (head 0 / head 1):

| KiB | by | layer 0 | 1 | 2 | 3 | 4 | 5 |
|---|---|---|---|---|---|---|---|`)
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			line := fmt.Sprintf("| %d | %s |", s.KiB, x.Name())
			for j := 0; j+1 < len(x.Heads); j += 2 {
				line += fmt.Sprintf(" %d / %d |", x.Heads[j], x.Heads[j+1])
			}
			say("%s", line)
		}
	}
	if l := r.Left; len(l.Heads) > 0 {
		say(`
## What is left, by head

This is at %d KiB. The types of the slots alone, with nothing evicted, have a KL of %.4f; with the allocation it is %.4f. If a head alone had slots for the whole context, the KL
would be lower by:

| layer | head | slots | KL |
|---|---|---|---|`, l.KiB, l.Types, l.KL)
		for _, h := range l.Heads {
			say("| %d | %d | %d | %.4f |", h.Layer, h.Head, h.Slots, h.Gain)
		}
	}
	if l := r.Layers; l.KiB > 0 {
		say(`
## By layer or by head

%d KiB of %s slots: equal budgets %s; what each layer has of the allocation without phi and psi, spread over its heads equally, %s; by head %s.`, l.KiB, l.Types, interval(l.Equal), interval(l.Layer), interval(l.Head))
	}
	if len(r.Ubatch) > 0 {
		say(`
## Other micro-batches

These are the allocations above, which were tuned at micro-batches of 32. KL is over the positions behind the first eviction, which differ by micro-batch.

| KiB | micro-batches of | KL | equal budgets |
|---|---|---|---|`)
		for _, u := range r.Ubatch {
			say("| %d | %d | %s | %s |", u.KiB, u.Ubatch, interval(u.KL), interval(u.Equal))
		}
	}
	if len(r.Prose) > 0 {
		say(`
## A text that is not Go

The text is pages of this repository, of a kind that the model was not trained on. The allocations were tuned on Go.

| KiB | KL | equal budgets |
|---|---|---|`)
		for _, p := range r.Prose {
			say("| %d | %s | %s |", p.KiB, interval(p.KL), interval(p.Equal))
		}
	}
	if len(r.Recall) > 0 {
		say(`
## Recall

` + "[`gopher-recall-5m`](../integration/testdata/recall/README.md)" + ` reads a number and is asked for it: a pass key among sentences that say nothing, a number under a name in
held-out Go text, or one of four such numbers. Budgets are a share of the bytes of the full f16 cache, with everything counted. They were tuned on Go text without such tasks, or on
the same text with look-ups: in each window six numbers under other names, then questions with their answers. Where the full cache answers less than half, nothing else was asked.
Targets: 95 %% of what the full cache answers at 1/20, 70 %% at 1/50.

| bytes | slots | budgets | task | tokens | full cache | answered | | at depth 0 | 1/4 | 1/2 | 3/4 | 1 |
|---|---|---|---|---|---|---|---|---|---|---|---|---|`)
		asked := map[string]bool{}
		for _, x := range r.Recall {
			if x.Right < 0 {
				continue
			}
			if task := fmt.Sprintf("%s | %d", x.Kind, x.Tokens); len(x.FullByDepth) > 0 && !asked[task] { // the full cache is asked once
				asked[task] = true
				say("| 1 | f16 | full cache | %s | %d of %d | %d | 100 %% |%s", task, x.Full, x.Tasks, x.Full, depths(x.FullByDepth))
			}
			line := fmt.Sprintf("| %s | %s | %s | %s | %d | %d of %d | %d | %.0f %% |", x.Share, x.Types, x.budgets(), x.Kind, x.Tokens, x.Full, x.Tasks, x.Right, 100*float64(x.Right)/float64(x.Full))
			say("%s%s", line, depths(x.Depth))
		}
		for _, s := range r.recallSums() {
			say("\n%s, %s, %s: %d of the %d that the full cache answers, %.0f %%: %s.", s.share, s.types, s.budgets, s.right, s.full, 100*float64(s.right)/float64(s.full), verdict(s.target, float64(s.right)/float64(s.full)))
		}
	}
	var missing []string
	for name, measured := range map[string]bool{
		"what is left by head": len(r.Left.Heads) > 0, "budgets by layer": r.Layers.KiB > 0, "other micro-batches": len(r.Ubatch) > 0, "a text that is not Go": len(r.Prose) > 0,
		"recall": len(r.Recall) > 0, "recall after tuning on text with look-ups": slices.ContainsFunc(r.Recall, func(x Recall) bool { return x.LookUps }),
	} {
		if !measured {
			missing = append(missing, name)
		}
	}
	if slices.Sort(missing); len(missing) > 0 {
		say("\n## Not measured yet\n\nThe command was ended before it measured these, and goes on there: %s.", strings.Join(missing, ", "))
	}
	if line := r.Build.Line(); line != "" {
		say("\n%s", line)
	}
	return b.Bytes()
}

// alone is the row without phi and psi.
func (s *Size) alone() (x Row) {
	for _, x = range s.Rows {
		if len(x.Phi) == 0 {
			break
		}
	}
	return x
}

func verdict(found, target float64) string {
	if found <= target {
		return "reached"
	}
	return "missed"
}

func interval(e verify.Estimate) string {
	return fmt.Sprintf("%.4f [%.4f, %.4f]", e.Value, e.Low, e.High)
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
	}
	return "equal"
}

// recallSum is all tasks of a share, type and kind of budget together.
type recallSum struct {
	share, types, budgets string
	full, right           int
	target                float64
}

func (r *Report) recallSums() (all []recallSum) {
	at := map[string]int{}
	for _, x := range r.Recall {
		if x.Right < 0 || !x.Tuned {
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
	}
	return all
}
