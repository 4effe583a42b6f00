package page

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/integration/wordwrap"
)

// A group is the rows of one context, micro-batch and budget, which count the same positions.
type group struct {
	Context, Ubatch, Budget, From, Positions, Blocks int
	FullPerplexity                                   verify.Estimate
	Rows                                             []*verify.Row
}

// Title says what the rows have in common.
func (g *group) Title() string {
	return fmt.Sprintf("budget %d (%.1f %%) of %d, micro-batches of %d: %d positions from %d on", g.Budget, 100*float64(g.Budget)/float64(g.Context), g.Context, g.Ubatch, g.Positions, g.From)
}

func groups(r *verify.Report) []*group {
	var all []*group
	for _, row := range r.Measured() {
		var g *group
		if n := len(all); n > 0 {
			g = all[n-1]
		}
		if g == nil || g.Context != row.Context || g.Ubatch != row.Ubatch || g.Budget != row.Budget {
			g = &group{Context: row.Context, Ubatch: row.Ubatch, Budget: row.Budget, From: row.From, Positions: row.Positions, Blocks: row.Blocks, FullPerplexity: row.FullPerplexity}
			all = append(all, g)
		}
		g.Rows = append(g.Rows, row)
	}
	return all
}

func interval(e verify.Estimate, digits int) string {
	if e.Low == e.High {
		return strconv.FormatFloat(e.Value, 'f', digits, 64)
	}
	return fmt.Sprintf("%.*f [%.*f, %.*f]", digits, e.Value, digits, e.Low, digits, e.High)
}

func share(e *verify.Estimate) string {
	if e == nil {
		return ""
	}
	return fmt.Sprintf("%.0f %% [%.0f, %.0f]", 100*e.Value, 100*e.Low, 100*e.High)
}

// columns is how wide a terminal is taken to be.
const columns = 80

// Table prints the report for a terminal: ± is the standard error, [ ] the interval of 95 %, closed the share of the gap in KL between
// sparse and full.
func Table(w io.Writer, r *verify.Report) error {
	for _, g := range groups(r) {
		fmt.Fprintf(w, "\n%s\n", g.Title())
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "method\tslots\tKiB\tKL, nats\tp99\ttop-1\tclosed")
		for _, row := range g.Rows {
			if row.Fault != "" {
				fmt.Fprintf(tw, "%s\t%d\t%s\n", row.Name(), row.Slots, row.Fault)
				continue
			}
			closed := ""
			if row.ClosedKL != nil {
				closed = fmt.Sprintf("%.0f %%", 100*row.ClosedKL.Value)
			}
			fmt.Fprintf(tw, "%s\t%d\t%.0f\t%s\t%.3f\t%.3f\t%s\n", row.Name(), row.Slots, float64(row.Bytes.Total)/1024, interval(row.KL, 4), row.KLP99.Value, row.Top1.Value, closed)
		}
		fmt.Fprintln(tw, "\n\tperplexity\tincrease\tlargest KL\tprefix\tROUGE-L")
		for _, row := range g.Rows {
			if row.Fault != "" {
				continue
			}
			prefix, rouge := "", ""
			if gen := row.Generation; gen != nil {
				prefix, rouge = fmt.Sprintf("%.1f/%d", gen.Prefix.Value, gen.Tokens), fmt.Sprintf("%.2f", gen.RougeL.Value)
			}
			fmt.Fprintf(tw, "%s\t%.2f ± %.2f\t%+.3f ± %.3f\t%.2f\t%s\t%s\n", row.Name(), row.Perplexity.Value, row.Perplexity.SE, row.Increase.Value, row.Increase.SE, row.KLMax, prefix, rouge)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		for _, row := range g.Rows {
			if row.Adapter != "" && row.Method == verify.LESS {
				said := append([]string{row.Adapter}, row.AdapterNotes...)
				for _, other := range []string{verify.Plus, verify.PlusPlus} {
					if d, ok := row.Against[other]; ok {
						said = append(said, fmt.Sprintf("KL less that of %s %s", other, signed(d.KL)))
					}
				}
				fmt.Fprintln(w, wordwrap.Hanging(row.Name()+": ", strings.Join(said, "; "), columns))
			}
		}
	}
	return rest(w, r)
}

// rest prints what is no row.
func rest(w io.Writer, r *verify.Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Recall) > 0 {
		fmt.Fprintln(tw, "\nrecall\ttokens\tmicro-batch\tfull cache\tothers")
		for _, k := range r.Recall {
			others := ""
			if k.Weak {
				others = "the full cache fails too: no method was asked"
			}
			for _, m := range k.Methods {
				if m.Method == verify.LESS || m.Method == verify.Sparse || m.Method == verify.Q4 {
					others += fmt.Sprintf("%s %s %d: %d  ", m.Policy, m.Method, m.Budget, m.Right)
				}
			}
			fmt.Fprintf(tw, "%s\t%d\t%d\t%d of %d\t%s\n", k.Kind, k.Length, k.Ubatch, k.Full, k.Tasks, others)
		}
	}
	if len(r.Reading) > 0 {
		fmt.Fprintln(tw, "\nreading along\tbudget\ttokens\tcache KiB, start\tend\tfull f16 cache\tprocess grew, KiB\tperplexity, first part\tlast")
		for _, x := range r.Reading {
			perplexity := x.Fault
			if len(x.Parts) > 0 {
				perplexity = fmt.Sprintf("%.2f\t%.2f", x.Parts[0].Perplexity, x.Parts[len(x.Parts)-1].Perplexity)
			}
			fmt.Fprintf(tw, "%s %s\t%d\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%s\n", x.Policy, x.Method, x.Budget, x.Tokens, float64(x.Start.Total)/1024, float64(x.End.Total)/1024,
				float64(x.Full)/1024, float64(x.Grown)/1024, perplexity)
		}
	}
	if len(r.Peaks) > 0 {
		fmt.Fprintf(tw, "\npeak memory, n_ctx\tunmodified, MiB\tLESS with %d slots, MiB\n", r.Peaks[0].Slots)
		for _, p := range r.Peaks {
			fmt.Fprintf(tw, "%d\t%.1f\t%.1f\n", p.Context, float64(p.Unmodified)/(1<<20), float64(p.LESS)/(1<<20))
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, f := range r.Findings {
		fmt.Fprintln(w, wordwrap.Hanging("", f, columns))
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, wordwrap.Hanging("note: ", n, columns))
	}
	if line := r.Build.Line(); line != "" {
		fmt.Fprintln(w, wordwrap.Hanging("", line, columns))
	}
	for _, c := range r.Checks {
		word := "holds:  "
		if !c.OK {
			word = "FAILED: "
		}
		if _, err := fmt.Fprintln(w, wordwrap.Hanging(word, c.String(), columns)); err != nil {
			return err
		}
	}
	return nil
}

func signed(e verify.Estimate) string {
	if e.Low == e.High {
		return fmt.Sprintf("%+.4f", e.Value)
	}
	return fmt.Sprintf("%+.4f [%+.4f, %+.4f]", e.Value, e.Low, e.High)
}

// CSV returns a line for each row, with every number as it is in the JSON.
func CSV(r *verify.Report) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	header := []string{"context", "ubatch", "budget", "policy", "method", "slots", "adapter", "bytes_slots", "bytes_state", "bytes_kernels", "bytes", "from", "positions"}
	estimates := []string{"full_perplexity", "perplexity", "perplexity_increase", "kl", "kl_p99", "top1", "closed_kl", "closed_perplexity", "kl_minus_sparse", "kl_minus_baseline+", "kl_minus_baseline++",
		"prefix", "rouge1", "rouge2", "rougeL"}
	for _, e := range estimates {
		header = append(header, e, e+"_se", e+"_low", e+"_high")
	}
	w.Write(append(header, "kl_max", "common_from", "common_kl", "common_kl_low", "common_kl_high", "fault"))
	number := func(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }
	for _, row := range r.Rows {
		line := []string{strconv.Itoa(row.Context), strconv.Itoa(row.Ubatch), strconv.Itoa(row.Budget), row.Policy, row.Method, strconv.Itoa(row.Slots), row.Adapter}
		for _, n := range []int64{row.Bytes.Slots, row.Bytes.State, row.Bytes.Kernels, row.Bytes.Total, int64(row.From), int64(row.Positions)} {
			line = append(line, strconv.FormatInt(n, 10))
		}
		against := func(method string) *verify.Estimate {
			d, ok := row.Against[method]
			if !ok {
				return nil
			}
			return &d.KL
		}
		all := []*verify.Estimate{&row.FullPerplexity, &row.Perplexity, &row.Increase, &row.KL, &row.KLP99, &row.Top1, row.ClosedKL, row.ClosedPPL,
			against(verify.Sparse), against(verify.Plus), against(verify.PlusPlus)}
		if row.Fault != "" {
			all = make([]*verify.Estimate, len(all))
		}
		if g := row.Generation; g != nil {
			all = append(all, &g.Prefix, &g.Rouge1, &g.Rouge2, &g.RougeL)
		} else {
			all = append(all, nil, nil, nil, nil)
		}
		for _, e := range all {
			if e == nil {
				line = append(line, "", "", "", "")
			} else {
				line = append(line, number(e.Value), number(e.SE), number(e.Low), number(e.High))
			}
		}
		line = append(line, number(row.KLMax), strconv.Itoa(row.CommonFrom))
		if c := row.Common; c != nil {
			line = append(line, number(c.KL.Value), number(c.KL.Low), number(c.KL.High))
		} else {
			line = append(line, "", "", "")
		}
		w.Write(append(line, row.Fault))
	}
	w.Flush()
	return b.Bytes(), w.Error()
}
