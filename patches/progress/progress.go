// Package progress shows how far a long run is: a bar with the time left on a terminal, a line now and then elsewhere.
package progress

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// The time between two lines of a stage, and between two pictures of a bar.
const (
	everyLine = 10 * time.Second
	everyBar  = 100 * time.Millisecond
)

// A Status is how far a run is.
type Status struct {
	Stage string // what runs: one that begins is said at once
	Text  string // what the bar says; "": the stage
	Line  string // the same with what only a line has room for; "": the text
	Done  int64
	Total int64  // 0: not known
	Unit  string // what is counted, such as windows; "": the numbers say nothing but the share

	// Where what is counted takes more time or less: how much work is done, and an estimate of all of it, in any unit. 0: as much as Done
	// and Total say.
	Work, AllWork int64
}

// work returns how much is done and how much there is, in what takes equally long.
func (s Status) work() (done, total int64) {
	if s.AllWork > 0 {
		return s.Work, s.AllWork
	}
	return s.Done, s.Total
}

// A Meter shows one status after the other. It is safe for concurrent use.
type Meter struct {
	w        io.Writer
	quiet    bool
	terminal bool

	mu    sync.Mutex
	last  Status
	began time.Time // of what the last status counts; zero before the first
	from  int64     // of the work, done then by a run before
	next  time.Time // when to write again
	bar   *progressbar.ProgressBar
}

// New returns a meter that writes to w. A quiet one writes nothing but what Printf is given.
func New(w io.Writer, quiet bool) *Meter {
	return &Meter{w: w, quiet: quiet, terminal: OnTerminal(w)}
}

// OnTerminal tells whether somebody looks at what is written.
func OnTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Show shows a status. Another stage, another total or less that is done than before begins a new bar.
func (m *Meter) Show(s Status) {
	if m.quiet {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	stage := m.began.IsZero() || s.Stage != m.last.Stage
	if stage || s.Total != m.last.Total || s.Done < m.last.Done {
		m.began = now
		m.from, _ = s.work()
		m.clear()
	}
	m.last = s
	switch {
	case !stage && now.Before(m.next):
	case m.terminal:
		m.next = now.Add(everyBar)
		m.draw()
	default:
		m.next = now.Add(everyLine)
		fmt.Fprintln(m.w, m.line(now))
	}
}

// draw shows the last status as a bar, or as a spinner where the total is not known.
func (m *Meter) draw() {
	s := m.last
	done, total := s.work()
	if m.bar == nil {
		options := []progressbar.Option{progressbar.OptionSetWriter(m.w), progressbar.OptionFullWidth(),
			progressbar.OptionSetSpinnerChangeInterval(0)} // a spinner that turns by itself would go on beside the bar that follows it
		if s.Unit != "" && s.AllWork == 0 {
			options = append(options, progressbar.OptionShowCount())
		}
		if total == 0 {
			total = -1
		}
		m.bar = progressbar.NewOptions64(total, options...)
	}
	text := cmp.Or(s.Text, s.Stage)
	if s.Unit != "" && s.AllWork > 0 {
		text += fmt.Sprintf(" (%d/%d)", s.Done, s.Total)
	}
	m.bar.Describe(text)
	if s.AllWork > 0 { // which may be an estimate
		m.bar.ChangeMax64(total)
	}
	m.bar.Set64(done)
}

// line writes the last status in words.
func (m *Meter) line(now time.Time) string {
	s := m.last
	line := cmp.Or(s.Line, s.Text, s.Stage)
	switch {
	case s.Total == 0:
	case s.Unit != "":
		line += fmt.Sprintf(": %d of %d %s", s.Done, s.Total, s.Unit)
	default:
		line += fmt.Sprintf(", %d %%", 100*s.Done/s.Total)
	}
	if done, total := s.work(); done > m.from && done < total {
		left := float64(now.Sub(m.began)) * float64(total-done) / float64(done-m.from)
		line += fmt.Sprintf(", %v left", time.Duration(left).Round(time.Second))
	}
	return line
}

// Printf writes a line that stays, above the bar.
func (m *Meter) Printf(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bar != nil {
		m.bar.Clear()
	}
	fmt.Fprintf(m.w, format, args...)
}

// End takes the bar away.
func (m *Meter) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
}

func (m *Meter) clear() {
	if m.bar != nil {
		m.bar.Clear()
		m.bar = nil
	}
}
