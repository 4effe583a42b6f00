//go:build cgo

package main

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/lesskv/lesskv/integration/verify"
)

// meter shows how far a run has come: a bar with the time left on a terminal, a line now and then elsewhere.
type meter struct {
	w     io.Writer
	quiet bool

	mu     sync.Mutex
	bar    *progressbar.ProgressBar
	total  int64
	start  time.Time
	lately time.Time
}

func (m *meter) show(p verify.Progress) {
	if m.quiet {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if onTerminal(m.w) {
		if m.bar == nil || m.total != p.Total {
			m.clear()
			m.total = p.Total
			total := p.Total
			if total == 0 {
				total = -1 // not known yet, or nothing left to compute: a spinner
			}
			m.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(m.w), progressbar.OptionSetPredictTime(true),
				progressbar.OptionSetWidth(20), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth(),
				progressbar.OptionSetSpinnerChangeInterval(0)) // a spinner that turns by itself would go on beside the bar that follows it
		}
		m.bar.Describe(p.Stage)
		if p.Total > 0 {
			m.bar.Set64(min(p.Done, p.Total-1)) // it is not over before the report is there
		} else {
			m.bar.Add(0)
		}
		return
	}
	now := time.Now()
	if p.Done > 0 && m.start.IsZero() {
		m.start = now
	}
	if now.Sub(m.lately) < 10*time.Second {
		return
	}
	m.lately = now
	line := p.Stage
	if p.Total > 0 {
		line += fmt.Sprintf(", %d %%", 100*p.Done/p.Total)
	}
	if spent := now.Sub(m.start); p.Done > 0 && p.Done < p.Total && spent > 0 {
		line += ", " + strconv.Itoa(int(spent.Seconds()*float64(p.Total-p.Done)/float64(p.Done))) + " s left"
	}
	fmt.Fprintln(m.w, line)
}

func (m *meter) clear() {
	if m.bar != nil {
		m.bar.Clear()
		m.bar = nil
	}
}

func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
}
