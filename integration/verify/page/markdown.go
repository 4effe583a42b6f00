package page

import (
	"bytes"
	"fmt"

	"github.com/lesskv/lesskv/integration/verify"
)

// Markdown returns a table for a README: a line for each method at each budget, KL at every micro-batch beside each other, and
// what the report says in words.
func Markdown(r *verify.Report) ([]byte, error) {
	var b bytes.Buffer
	var contexts []int
	ubatches := map[int][]int{}
	for _, s := range settings(r) {
		if ubatches[s.context] == nil {
			contexts = append(contexts, s.context)
		}
		ubatches[s.context] = append(ubatches[s.context], s.ubatch)
	}
	for _, context := range contexts {
		all := ubatches[context]
		first := all[0]
		fmt.Fprintf(&b, "%s, context %d, %d windows.%s Perplexity and top-1 at micro-batches of %d.\n\n", r.Model.File, context, r.Text.Windows, onDevices(r), first)
		fmt.Fprint(&b, "| budget | method | slots | KiB | perplexity (full) | top-1 |")
		for _, u := range all {
			fmt.Fprintf(&b, " KL, micro-batches of %d |", u)
		}
		fmt.Fprint(&b, "\n|---|---|---|---|---|---|")
		for range all {
			fmt.Fprint(&b, "---|")
		}
		fmt.Fprintln(&b)
		for _, row := range r.Measured() {
			if row.Context != context || row.Ubatch != first || row.Method == verify.Full {
				continue
			}
			method := row.Name()
			if row.Adapter != "" && row.Method == verify.LESS {
				method += ", `" + row.Adapter + "`"
			}
			fmt.Fprintf(&b, "| %d (%.0f %%) | %s | %d | %.0f |", row.Budget, 100*float64(row.Budget)/float64(context), method, row.Slots, float64(row.Bytes.Total)/1024)
			if row.Fault != "" {
				fmt.Fprintf(&b, " %s | |", row.Fault)
			} else {
				fmt.Fprintf(&b, " %.2f (%.2f) | %.3f |", row.Perplexity.Value, row.FullPerplexity.Value, row.Top1.Value)
			}
			for _, u := range all {
				x := r.Row(context, u, row.Budget, row.Policy, row.Method)
				if x == nil || x.Fault != "" {
					fmt.Fprint(&b, " |")
					continue
				}
				fmt.Fprintf(&b, " %s |", interval(x.KL, 4))
			}
			fmt.Fprintln(&b)
		}
		fmt.Fprintln(&b)
	}
	if len(r.Peaks) > 0 {
		fmt.Fprintf(&b, "| n_ctx | unmodified, peak MiB | LESS with %d slots, peak MiB |\n|---|---|---|\n", r.Peaks[0].Slots)
		for _, p := range r.Peaks {
			fmt.Fprintf(&b, "| %d | %.1f | %.1f |\n", p.Context, float64(p.Unmodified)/(1<<20), float64(p.LESS)/(1<<20))
		}
		fmt.Fprintln(&b)
	}
	for _, f := range r.Findings {
		fmt.Fprintln(&b, "-", f)
	}
	if line := r.Build.Line(); line != "" {
		fmt.Fprintf(&b, "\n%s\n", line)
	}
	return b.Bytes(), nil
}

// onDevices says where the layers were, if not all in main memory.
func onDevices(r *verify.Report) string {
	if r.GPU == 0 {
		return ""
	}
	return fmt.Sprintf(" Every runtime had %d layers on devices.", r.GPU)
}
