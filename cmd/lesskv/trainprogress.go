//go:build cgo

package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/progress"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

// trainProgress shows events, and keeps what the run takes.
type trainProgress struct {
	meter *progress.Meter
	began time.Time

	mu     sync.Mutex
	taken  time.Duration // by recording
	since  time.Time     // when the recording of this pass began; zero when it is over
	layers int           // to be fitted
	done   map[int]int   // steps of each layer
}

func (p *trainProgress) event(e train.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case e.Stage == train.Recording && p.since.IsZero():
		p.since = time.Now()
	case e.Stage == train.Replaying && !p.since.IsZero():
		p.taken += time.Since(p.since)
		p.since = time.Time{}
	}
	switch e.Stage {
	case train.Planned:
		p.layers = e.Total
		clear(p.done)
		p.meter.Printf("recordings of %d of %d layers at a time: %s (%s for a layer)\nin %s\n", e.Done, e.Total, memory.Size(e.Bytes*int64(e.Done)), memory.Size(e.Bytes), e.Folder)
	case train.Recording:
		p.meter.Show(progress.Status{Stage: "recording", Done: int64(e.Done), Total: int64(e.Total), Unit: "windows"})
	case train.Fitting:
		p.done[e.Layer] = e.Done
		total := int64(e.Total) * int64(p.layers)
		p.meter.Show(progress.Status{Stage: "fitting", Text: fmt.Sprintf("layer %d: %.3f", e.Layer, e.Valid),
			Line: fmt.Sprintf("layer %d: training %.3f, validation %.3f, baseline+ %.3f", e.Layer, e.Train, e.Valid, e.Plus),
			Done: min(p.steps(), total), Total: total, Unit: "steps"}) // layers that share a cache end beside those that are counted
	case train.Finished:
		p.done[e.Layer] = e.Total
		if e.Sparse != "" {
			p.meter.Printf("layer %d: warning: it gets no phi and psi and runs sparse only: %s\n", e.Layer, e.Sparse)
			break
		}
		p.meter.Printf("layer %d: validation %.3f of sparse-only (baseline+ %.3f), best step %d of %d\n", e.Layer, e.Valid, e.Plus, e.Done, e.Total)
	}
}

// steps returns how many steps of all layers are done.
func (p *trainProgress) steps() (n int64) {
	for _, done := range p.done {
		n += int64(done)
	}
	return n
}

// spent prints what the run took: time, and the most memory of this process and the one that runs the model.
func (p *trainProgress) spent(w io.Writer, worker int64, model string) error {
	stat, err := os.Stat(model)
	if err != nil {
		return err
	}
	all := time.Since(p.began).Round(time.Second)
	line := fmt.Sprintf("%v, of which %v were recording", all, p.taken.Round(time.Second))
	if own := limits.Peak(); own > 0 && worker > 0 {
		line += fmt.Sprintf("\nat most %s of memory beside the model's %s", memory.Size(max(0, own+worker-stat.Size())), memory.Size(stat.Size()))
	}
	_, err = fmt.Fprintln(w, line)
	return err
}
