// Package progress shows how far a run of many steps is: a bar on a terminal, a line now and then elsewhere.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Every is the time between two lines where the output is no terminal.
const Every = 10 * time.Second

// A Meter counts steps. It is safe for concurrent use.
type Meter struct {
	mu    sync.Mutex
	w     io.Writer
	title string
	done  int
	total int
	start time.Time
	next  time.Time
	bar   *progressbar.ProgressBar // nil where w is no terminal
}

// New starts a meter of total steps that writes to w.
func New(w io.Writer, title string, total int) *Meter {
	now := time.Now()
	m := &Meter{w: w, title: title, total: total, start: now, next: now.Add(Every)}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		m.bar = progressbar.NewOptions(total,
			progressbar.OptionSetWriter(w),
			progressbar.OptionSetDescription(title),
			progressbar.OptionShowCount(),
			progressbar.OptionSetWidth(30),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetRenderBlankState(true),
			progressbar.OptionClearOnFinish(),
		)
	}
	return m
}

// Step counts one step.
func (m *Meter) Step() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done++
	if m.bar != nil {
		m.bar.Add(1)
		return
	}
	if now := time.Now(); !now.Before(m.next) {
		m.next = now.Add(Every)
		fmt.Fprintf(m.w, "%s %d/%d (%s)\n", m.title, m.done, m.total, now.Sub(m.start).Round(time.Second))
	}
}

// Finish takes the bar away. More steps must not follow.
func (m *Meter) Finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bar != nil {
		m.bar.Clear()
	}
}
