package page

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/lesskv/lesskv/integration/verify"
)

// Best prints what is best under so many bytes, and what else was tried, the nearest to the full cache first.
func Best(w io.Writer, r *verify.Report) error {
	for _, b := range r.Best {
		fmt.Fprintf(w, "\nunder %.0f KiB of one sequence, everything counted, context %d, micro-batches of %d, positions from %d on\n", float64(b.Within)/1024, b.Context, b.Ubatch, b.From)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "\tpolicy\ttypes\tslots a head\tKiB\tKL, nats\ttop-1\tadapter")
		for i, x := range b.Rows {
			mark := ""
			if i == 0 {
				mark = "best:"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%.0f\t%s\t%.3f\t%s\n", mark, x.Policy, x.Types, x.Slots, float64(x.Bytes)/1024, interval(x.KL, 4), x.Top1.Value, x.Adapter)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	return rest(w, r)
}
