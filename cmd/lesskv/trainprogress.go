//go:build cgo

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/weights/train"
)

// progress shows events: a bar on a terminal, a line for each layer and now and then elsewhere.
type progress struct {
	w     io.Writer
	quiet bool
	began time.Time

	mu     sync.Mutex
	taken  time.Duration // by recording
	since  time.Time     // when the recording of this pass began; zero when it is over
	layers int           // to be fitted
	bar    *progressbar.ProgressBar
	stage  train.Stage
	done   map[int]int // steps of each layer
	lately time.Time
}

func (p *progress) event(e train.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	terminal := onTerminal(p.w)
	switch {
	case e.Stage == train.Recording && p.since.IsZero():
		p.since = time.Now()
	case e.Stage == train.Replaying && !p.since.IsZero():
		p.taken += time.Since(p.since)
		p.since = time.Time{}
	}
	switch {
	case e.Stage == train.Planned:
		p.layers = e.Total
		fmt.Fprintf(p.w, "recordings of %d of %d layers at a time: %s (%s for a layer)\nin %s\n", e.Done, e.Total, mib(uint64(e.Bytes)*uint64(e.Done)), mib(uint64(e.Bytes)), e.Folder)
	case e.Stage == train.Finished:
		if terminal && p.bar != nil {
			p.bar.Clear()
		}
		if e.Sparse != "" {
			fmt.Fprintf(p.w, "layer %d: warning: it gets no phi and psi and runs sparse only: %s\n", e.Layer, e.Sparse)
			p.add(e.Layer, e.Total)
			break
		}
		fmt.Fprintf(p.w, "layer %d: validation %.3f of sparse-only (baseline+ %.3f), best step %d of %d\n", e.Layer, e.Valid, e.Plus, e.Done, e.Total)
		p.add(e.Layer, e.Total)
	case p.quiet || e.Stage == train.Replaying:
	case e.Stage == train.Recording:
		p.show(terminal, e.Stage, e.Total, "recording")
		if p.bar != nil {
			p.bar.Set(e.Done)
		} else if time.Since(p.lately) > 10*time.Second {
			p.lately = time.Now()
			fmt.Fprintf(p.w, "recorded %d of %d windows\n", e.Done, e.Total)
		}
	case e.Stage == train.Fitting:
		p.show(terminal, e.Stage, e.Total*p.layers, "fitting")
		if p.bar != nil {
			p.bar.Describe(fmt.Sprintf("layer %d: %.3f", e.Layer, e.Valid))
			p.add(e.Layer, e.Done)
		} else if time.Since(p.lately) > 10*time.Second {
			p.lately = time.Now()
			fmt.Fprintf(p.w, "layer %d: training %.3f, validation %.3f, baseline+ %.3f, step %d of %d\n", e.Layer, e.Train, e.Valid, e.Plus, e.Done, e.Total)
		}
	}
}

// show starts a new bar where a stage begins.
func (p *progress) show(terminal bool, stage train.Stage, total int, what string) {
	if !terminal || p.bar != nil && p.stage == stage {
		return
	}
	p.end()
	p.stage = stage
	p.bar = newBar(p.w, total, what)
	if stage == train.Fitting {
		for _, n := range p.done { // of the passes before
			p.bar.Add(n)
		}
	}
}

func (p *progress) add(layer, done int) {
	if p.bar != nil {
		p.bar.Add(done - p.done[layer])
	}
	p.done[layer] = done
}

// spent prints what the run took: time, and the most memory of this process and the one that runs the model.
func (p *progress) spent(w io.Writer, worker int64, model string) error {
	stat, err := os.Stat(model)
	if err != nil {
		return err
	}
	all := time.Since(p.began).Round(time.Second)
	line := fmt.Sprintf("%v, of which %v were recording", all, p.taken.Round(time.Second))
	if own := peakMemory(); own > 0 && worker > 0 {
		line += fmt.Sprintf("\nat most %s of memory beside the model's %s", mib(uint64(max(0, own+worker-stat.Size()))), mib(uint64(stat.Size())))
	}
	_, err = fmt.Fprintln(w, line)
	return err
}

// peakMemory returns the most bytes that this process has occupied; 0 if the system does not say.
func peakMemory() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(u.Maxrss) // in bytes there, in KiB elsewhere
	}
	return int64(u.Maxrss) << 10
}

func (p *progress) end() {
	if p.bar != nil {
		p.bar.Clear()
		p.bar = nil
	}
}
