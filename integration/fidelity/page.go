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
	say(`# How close it stays

This page shows how close the text stays to that of the full cache with what [`+"`lesskv tune --train`"+`](tuning.md) finds from text, at four byte counts: budgets by head, in slots of fewer bits, and phi and psi in the layers where they pay. The model is `+"`%s`"+`, the small
model of this repository; it reads %d held-out windows of 2,048 tokens with policy peak. Everything is compared with the unmodified runtime and its f16 cache of 6,144 KiB. Bytes are those of one
sequence with everything counted: slots with their scores and positions, state, phi and psi. KL is the divergence from the full cache's predictions to the method's, in nats, with intervals of
95 %%, over the positions behind the first eviction of equal budgets. No allocation, phi or psi was fitted to these windows. How many windows are tuned on, the rounds and the
type of the slots were chosen by hand, after earlier results on these windows, so the numbers are a little optimistic. One command writes this page, the picture and [fidelity.json](fidelity.json),
which has all of its numbers, in two hours on two cores and with 17 GB in its work folder:

    go run ./integration/fidelity

After an interruption it goes on where it stopped; `+"`-page`"+` only writes the page. For another model use `+"`lesskv tune`"+` and [`+"`lesskv verify --bytes`"+`](verify.md).

![KL against bytes, and recall by depth](fidelity.png)

[research.md](research.md) has what else was tried.

## Four byte counts

The second column has the KL of f16 slots, equal budgets, and phi and psi; at 1,728 KiB it is that of the unmodified runtime's q4_0 cache.

| KiB | at first | target | KL | | slots | budgets by head alone | equal budgets, the same slots |
|---|---|---|---|---|---|---|---|`, r.Model, r.Windows)
	for _, s := range r.Sizes {
		x := s.Rows[0]
		say("| %d | %.3f | %.3f | **%.4f** [%.4f, %.4f] | %s | %s | %.4f | %.4f |", s.KiB, s.Before, s.Target, x.KL.Value, x.KL.Low, x.KL.High, verdict(x.KL.Value, s.Target), x.Name(), s.alone().KL.Value, x.Equal.Value)
	}
	say(`
The next table says how each allocation was found: the windows of the training text that it was tuned on, the rounds of ` + "`tune`" + `, and the KL on these windows and on a window of the same text that was not tuned on.
Windows, rounds and the type of the slots are the command's flags.

| KiB | slots | a head on average | bytes | most likely token agrees | windows | rounds | KL there | not tuned on |
|---|---|---|---|---|---|---|---|---|`)
	for _, s := range r.Sizes {
		for _, x := range s.Rows {
			say("| %d | %s | %d | %d | %.3f | %d | %d | %.4f | %.4f* |", s.KiB, x.Name(), x.Slots, x.Bytes, x.Top1.Value, x.Windows, max(x.Rounds, 0), x.TunedOn, x.NotTuned)
		}
	}
	say(`
\* Took part in choices: ` + "`tune`" + ` keeps what has the lower number, the allocation or equal budgets, and then the one with phi and psi or the one without. The lowest of several numbers is lower than what to
expect on other text.

The next table has the error that phi and psi leave in each layer's output, as a share of the error without them, on the validation windows of the training text; and the bytes of phi, psi and state:

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

%d KiB of %s slots: equal budgets %s; what each layer has of the allocation without phi and psi, spread over its heads equally, %s; by head %s. What tuning by layer itself comes to is in [research.md](research.md#budgets-by-layer).`, l.KiB, l.Types, interval(l.Equal), interval(l.Layer), interval(l.Head))
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

The text is [pages of this repository](../integration/testdata/checkout/prose.txt), of a kind that the model was not trained on. The allocations were tuned on Go.

| KiB | KL | equal budgets |
|---|---|---|`)
		for _, p := range r.Prose {
			say("| %d | %s | %s |", p.KiB, interval(p.KL), interval(p.Equal))
		}
	}
	if len(r.Recall) > 0 {
		r.recallPage(say)
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
