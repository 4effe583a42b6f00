package bench

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/weights/outfile"
)

// The marks that WriteTargets puts its table between.
const (
	tableBegin = "<!-- lesskv bench: the table below is written by it -->"
	tableEnd   = "<!-- lesskv bench: end -->"
)

// TargetsPage is the table of targets and, group by group, what was measured, by the results that are in dir. It measures nothing.
func TargetsPage(dir string) ([]byte, error) {
	results, err := readTargets(dir)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("| measure | target | measured: median (interval, rounds) | |\n|---|---|---|---|\n")
	for _, t := range targets() {
		value, verdict := "not measured", ""
		if r := results[t.group]; r != nil {
			if s := t.value(r); s.N > 0 {
				value = fmt.Sprintf("%.3g%s (%.3g to %.3g, %d)", s.Median, t.unit, s.Low, s.High, s.N)
				verdict = t.verdict(s)
			}
		}
		sign := "≥"
		if t.most {
			sign = "≤"
		}
		fmt.Fprintf(&b, "| %s | %s %g%s | %s | %s |\n", t.measure, sign, t.want, t.unit, value, verdict)
	}
	for _, g := range groups() {
		if r := results[g.name]; r != nil {
			fmt.Fprintf(&b, "\n### %s\n\n```\n", g.name)
			if err := r.Table(&b); err != nil {
				return nil, err
			}
			b.WriteString("```\n")
		}
	}
	return b.Bytes(), nil
}

// TargetsPictures are the names of the pictures that WriteTargets draws beside a folder of results: of all contexts (Plot), and of what an
// app sees (PlotContext).
func TargetsPictures(dir string) [2]string {
	base := strings.TrimSuffix(dir, "/")
	return [2]string{base + ".png", base + "-context.png"}
}

// WriteTargets puts TargetsPage between the marks of a file, and draws TargetsPictures.
func WriteTargets(dir, into string) error {
	results, err := readTargets(dir)
	if err != nil {
		return err
	}
	text, err := TargetsPage(dir)
	if err != nil {
		return err
	}
	var drawn []*Result
	for _, name := range []string{"llama-3.2-1b", "smollm2-135m"} {
		if r := results[name]; r != nil {
			drawn = append(drawn, r)
		}
	}
	pictures := TargetsPictures(dir)
	if len(drawn) > 0 {
		if err := Plot(pictures[0], drawn...); err != nil {
			return err
		}
	}
	if speed, memory := results["llama-3.2-1b"], results["llama-3.2-1b-processes"]; speed != nil && memory != nil {
		if err := PlotContext(pictures[1], speed, memory); err != nil {
			return err
		}
	}
	return replace(into, string(text))
}

// CheckTargets tells before anything is measured whether what is in dir can be read, and the table put into a file.
func CheckTargets(dir, into string) error {
	if _, err := readTargets(dir); err != nil {
		return err
	}
	if into == "" {
		return nil
	}
	if _, _, err := marked(into); err != nil {
		return err
	}
	if err := unix.Access(into, unix.W_OK); err != nil {
		return &fs.PathError{Op: "write", Path: into, Err: err}
	}
	return nil
}

// marked returns what is around the marks of a file.
func marked(path string) (before, after string, err error) {
	old, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	before, rest, ok := strings.Cut(string(old), tableBegin)
	_, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return "", "", fmt.Errorf("bench: %s: want the marks %q and %q: %w", path, tableBegin, tableEnd, ErrOption)
	}
	return before, after, nil
}

// replace puts text between the marks of a file.
func replace(path, text string) error {
	before, after, err := marked(path)
	if err != nil {
		return err
	}
	return outfile.WriteBytes(path, []byte(between(before, text, after)))
}

// between is a file with a text between its marks.
func between(before, text, after string) string {
	return before + tableBegin + "\n\n" + text + "\n" + tableEnd + after
}
