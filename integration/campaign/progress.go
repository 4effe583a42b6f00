package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/lesskv/lesskv/weights/outfile"
)

// progress is what each target has had, in a file.
type progress struct {
	path    string
	Targets map[string]*had `json:"targets"`
}

type had struct {
	Seconds    float64 `json:"seconds"`
	Executions int64   `json:"executions"`
	Findings   int     `json:"findings"`
}

func readProgress(path string) (*progress, error) {
	p := &progress{path: path}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, p)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; take it away to begin anew", path, err)
	}
	if p.Targets == nil {
		p.Targets = map[string]*had{}
	}
	for _, t := range targets() {
		if p.Targets[t.name] == nil {
			p.Targets[t.name] = &had{}
		}
	}
	return p, nil
}

// save replaces the file whole.
func (p *progress) save() error {
	data, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return err
	}
	return outfile.WriteBytes(p.path, data)
}

// table prints what the targets have had, in Markdown.
func (p *progress) table(w io.Writer) {
	fmt.Fprint(w, "| target | reads | minutes | executions | findings |\n|---|---|---|---|---|\n")
	var all had
	for _, t := range targets() {
		h := p.Targets[t.name]
		where := t.pkg + " " + t.fuzz
		if t.harness != "" {
			where = "harness/" + t.harness
		}
		fmt.Fprintf(w, "| %s (`%s`) | %s | %.1f | %s | %d |\n", t.name, where, t.reads, h.Seconds/60, grouped(h.Executions), h.Findings)
		all.Seconds += h.Seconds
		all.Executions += h.Executions
		all.Findings += h.Findings
	}
	fmt.Fprintf(w, "| all | | %.1f | %s | %d |\n", all.Seconds/60, grouped(all.Executions), all.Findings)
}

// grouped writes 1234567 as 1,234,567.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// next returns the target that has had least and less than total, of those that are left; nil if none is.
func (p *progress) next(left []target, total time.Duration) *target {
	var next *target
	for i, t := range left {
		s := p.Targets[t.name].Seconds
		if s+1 < total.Seconds() && (next == nil || s < p.Targets[next.name].Seconds) {
			next = &left[i]
		}
	}
	return next
}
