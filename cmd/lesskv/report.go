//go:build cgo

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"

	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/describe"
	"github.com/lesskv/lesskv/weights/memory"
)

// report prints how fast the last completion was and what its cache holds.
func report(w io.Writer, name string, model *llama.LLama, t lesskv.Timings) error {
	s, err := lesskv.Stats(model)
	if err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(tw, name+"\t"+format+"\n", args...) }
	fmt.Fprintln(tw)
	kind := strings.Replace(s.Model, " ?B", "", 1) // llama.cpp's name of a size that it has none for
	line("model", "%s, %s, %s, context %d", name, kind, memory.Size(s.ModelBytes), s.Context)
	line("prompt", "%d tokens, %s", t.Prompt, prompt(t))
	line("generated", "%d tokens, %s, ended by %s", t.Generated, speed(t.Generated, t.GenerateTime), ending[t.Stop])
	if !s.Enabled {
		line("cache", "%s: the full cache of %d tokens, without LESS", memory.Size(s.CacheBytes), s.Context)
		return tw.Flush()
	}
	var budgets []int // of the heads that have one
	for _, l := range s.Layers {
		budgets = append(budgets, l.Budgets...)
	}
	if len(budgets) > 0 && slices.Min(budgets) < slices.Max(budgets) {
		line("LESS", "%s, %d of %d tokens on average, from %d to %d by head (%d pinned)", s.Policy, s.Budget, s.Context, slices.Min(budgets), slices.Max(budgets), s.Pinned)
	} else {
		line("LESS", "%s, %d of %d tokens: %d heavy (%d pinned), %d recent", s.Policy, s.Budget, s.Context, s.Heavy, s.Pinned, s.Recent)
	}
	line("", "%s", phiAndPsi(s))
	if len(s.Layers) > 0 {
		first := s.Layers[0]
		for _, l := range s.Layers { // a sliding window says nothing about the budget
			if !l.SlidingWindow {
				first = l
				break
			}
		}
		what := "dropped"
		if first.Kernels {
			what = "folded"
		}
		line("tokens", "%d seen, %d kept, %d %s", first.Seen, first.Kept, first.Folded, what)
	}
	line("cache", "%s: slots %s, state %s, phi and psi %s", memory.Size(s.CacheBytes), memory.Size(s.SlotBytes), memory.Size(s.StateBytes), memory.Size(s.KernelBytes))
	line("scratch", "%s, beside the cache", memory.Size(s.ScratchBytes))
	if s.Checkpoints > 0 {
		copies := "copies"
		if s.Checkpoints == 1 {
			copies = "copy"
		}
		line("checkpoints", "%s: %d %s of the cache", memory.Size(s.CheckpointBytes), s.Checkpoints, copies)
	}
	if s.RecurrentBytes > 0 {
		line("recurrent", "%s: the states of the other layers, which have one size", memory.Size(s.RecurrentBytes))
	}
	line("full cache", "%s; this one is %.1f %% of it", memory.Size(s.FullBytes), 100*float64(s.CacheBytes)/float64(max(s.FullBytes, 1)))
	return tw.Flush()
}

// prompt says how fast a prompt was, and how far it came.
func prompt(t lesskv.Timings) string {
	text := speed(t.Evaluated, t.PromptTime)
	if t.Evaluated == 0 && t.Cached == t.Prompt && t.PromptTime > 0 {
		text = fmt.Sprintf("%.2f s, all of them from a checkpoint", t.PromptTime.Seconds())
	}
	if left := t.Prompt - t.Cached - t.Evaluated; left > 0 {
		text += fmt.Sprintf("; %d of them were not reached", left)
	}
	return text
}

// ending says in words why a generation ended.
var ending = map[string]string{
	"eog":       "the model",
	"length":    "-n",
	"word":      "a stop word",
	"callback":  "the output",
	"interrupt": "an interrupt",
	"context":   "the context",
}

func phiAndPsi(s lesskv.CacheStats) string {
	if s.Rank == 0 {
		return "sparse only"
	}
	ranks := []int{s.Rank} // before the first token there are no layers
	for _, l := range s.Layers {
		ranks = append(ranks, l.Rank)
	}
	return "phi and psi of " + describe.Ranks(ranks)
}

func speed(tokens int, d time.Duration) string {
	if tokens <= 0 || d <= 0 {
		return "at once"
	}
	return fmt.Sprintf("%.2f s, %.1f tokens/s", d.Seconds(), float64(tokens)/d.Seconds())
}
