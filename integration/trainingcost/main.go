// Command trainingcost measures what training takes for a model of a billion parameters: random weights in the shape of
// Llama-3.2-1B. It runs a short training of all layers and works out a whole one from what its parts took.
//
//	go run ./integration/trainingcost [-tokens 1000000] [-steps 0]
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/train"
)

const window = 2048

func main() {
	b := &bench{}
	flag.IntVar(&b.tokens, "tokens", 200_000, "tokens of the whole training")
	flag.IntVar(&b.steps, "steps", train.DefaultSteps, "steps of the whole training")
	flag.IntVar(&b.windows, "windows", 3, "windows of 2,048 tokens to record here")
	flag.IntVar(&b.short, "short", 25, "steps to take here")
	flag.IntVar(&b.threads, "threads", limits.CPUs(), "threads")
	flag.StringVar(&b.work, "work", "", "folder for the model, 1.1 GB, and the recordings (default: a temporary one)")
	write := flag.String("write", "", "write the model to this `file` and do nothing else")
	usage.Main("trainingcost", func(ctx context.Context) error {
		if *write != "" {
			return tinymodels.Llama1B().Write(*write, gguf.Q8_0, 1)
		}
		b.ctx = ctx
		return b.run()
	})
}

type bench struct {
	ctx            context.Context
	tokens, steps  int
	windows, short int
	threads        int
	work           string
}

func (b *bench) run() error {
	if b.windows < 2 || b.short < 1 || b.tokens < window {
		return fmt.Errorf("%d windows and %d steps here, %d tokens: want at least 2, 1 and %d", b.windows, b.short, b.tokens, window)
	}
	if b.work == "" {
		dir, err := os.MkdirTemp("", "lesskv-trainingcost-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		b.work = dir
	} else if err := os.MkdirAll(b.work, 0o755); err != nil {
		return err
	}
	model := filepath.Join(b.work, "llama-3.2-1b.gguf")
	if _, err := os.Stat(model); err != nil {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(b.ctx, self, "-write", model) // whose memory is not to count here
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("writing the model: %w", err)
		}
	}
	path, err := worker.Path(worker.Patched)
	if err != nil {
		return err
	}
	r, err := activations.Open(b.ctx, path, model, window, b.threads)
	if err != nil {
		return err
	}
	defer r.Close()
	o := train.Options{
		Output: filepath.Join(b.work, "llama-3.2-1b.lesskv.gguf"), Budgets: []int{102}, Ubatch: 32, Steps: b.short, Threads: b.threads, Seed: 1, Type: gguf.F16,
	}
	if o.Model, err = weights.ReadModel(model); err != nil {
		return err
	}
	var layerBytes int64
	var recording time.Duration
	var from time.Time
	var mu sync.Mutex
	o.Progress = func(e train.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case e.Stage == train.Planned:
			layerBytes = e.Bytes
		case e.Stage == train.Recording && e.Done == 0:
			from = time.Now()
		case e.Stage == train.Recording:
			recording = time.Since(from)
			fmt.Fprintf(os.Stderr, "recorded %d of %d windows\n", e.Done, e.Total)
		case e.Stage == train.Finished:
			fmt.Fprintf(os.Stderr, "layer %d is fitted\n", e.Layer)
		}
	}
	report, err := train.Run(b.ctx, o, r, b.text(o.Model.Vocab))
	if err != nil {
		return err
	}
	peak, err := r.Peak()
	if err != nil {
		return err
	}
	stat, err := os.Stat(model)
	if err != nil {
		return err
	}
	b.print(report.Layers, recording, layerBytes, peak, limits.Peak(), stat.Size())
	return nil
}

// text is windows of random tokens, the last one for validation: speed does not depend on them.
func (b *bench) text(vocab int) train.Windows {
	random := rand.New(rand.NewPCG(1, 2))
	var w train.Windows
	for i := range b.windows {
		tokens := make([]int32, window)
		for j := range tokens {
			tokens[j] = int32(random.IntN(vocab))
		}
		if i < b.windows-1 {
			w.Train = append(w.Train, tokens)
		} else {
			w.Valid = append(w.Valid, tokens)
		}
	}
	return w
}

func (b *bench) print(layers []train.LayerReport, recording time.Duration, layerBytes, worker, own, model int64) {
	var t train.Times
	for _, l := range layers {
		t.Replay += l.Times.Replay
		t.Steps += l.Times.Steps
		t.Validate += l.Times.Validate
		t.Taken += l.Times.Taken
		t.Looks += l.Times.Looks
	}
	n := float64(len(layers))
	perWindow, perReplay := recording.Seconds()/float64(b.windows), t.Replay.Seconds()/n/float64(b.windows)
	perStep, perLook := t.Steps.Seconds()/float64(t.Taken), t.Validate.Seconds()/float64(t.Looks) // one window each
	fmt.Printf("measured, %d layers, %d windows of %d tokens, %d steps a layer, %d threads with a layer each:\n", len(layers), b.windows, window, b.short, b.threads)
	fmt.Printf("  recording         %6.1f s a window, %.0f tokens a second\n", perWindow, window/perWindow)
	fmt.Printf("  replay            %6.2f s a window and layer\n", perReplay)
	fmt.Printf("  step              %6.2f s\n", perStep)
	fmt.Printf("  validation        %6.2f s a window\n", perLook)
	fmt.Printf("  memory            %s for the runtime and %s for training, of which the model is %s\n", memory.Size(worker), memory.Size(own), memory.Size(model))

	windows := b.tokens / window
	valid := windows / 10
	layer := perReplay*float64(windows) + perStep*float64(b.steps) + perLook*float64(valid*train.Looks)
	all := perWindow*float64(windows) + n*layer/float64(b.threads)
	fmt.Printf("worked out for %d tokens and %d steps, none of them saved by stopping early:\n", b.tokens, b.steps)
	fmt.Printf("  recording         %6.2f h for all layers together\n", perWindow*float64(windows)/3600)
	fmt.Printf("  one layer         %6.2f h on one thread; %s on the disk while it is trained\n", layer/3600, memory.Size(layerBytes/int64(b.windows)*int64(windows)))
	fmt.Printf("  %d layers         %6.2f h on %d threads, recording included\n", len(layers), all/3600, b.threads)
}
