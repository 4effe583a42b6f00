// Package heldout runs gopher-5m over the held-out windows of testdata, in either tree: what figures and sweep measure.
package heldout

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
)

const (
	Windows = 6
	Tokens  = 2048 // of a window
	Ubatch  = 32   // what the adapters were trained with
)

// A Runner has the model and the windows.
type Runner struct {
	Windows [][]int32

	ctx   context.Context
	model string
}

// New puts the model into dir and reads the first n windows, 1 to 6.
func New(ctx context.Context, dir string, n int) (*Runner, error) {
	if n < 1 || n > Windows {
		return nil, fmt.Errorf("%d windows: there are 1 to %d", n, Windows)
	}
	model, err := testdata.PathIn(dir, testdata.Model)
	if err != nil {
		return nil, err
	}
	b, err := testdata.Read(testdata.Windows)
	if err != nil {
		return nil, err
	}
	r := &Runner{Windows: make([][]int32, n), ctx: ctx, model: model}
	for i := range r.Windows {
		for j := range Tokens {
			r.Windows[i] = append(r.Windows[i], int32(binary.LittleEndian.Uint16(b[2*(i*Tokens+j):])))
		}
	}
	return r, nil
}

// Open starts a worker of a tree and opens the model, for one thread: with more, layers this small mostly wait for each other.
func (r *Runner) Open(tree worker.Tree, c worker.Config) (*worker.Worker, error) {
	path, err := worker.Path(tree)
	if err != nil {
		return nil, err
	}
	w, err := worker.Start(r.ctx, path)
	if err != nil {
		return nil, err
	}
	c.Model, c.Threads = r.model, 1
	if _, err := w.Open(c); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Logits decodes every window as a sequence of its own, and returns [window][token][vocab] and what the cache holds then.
func (r *Runner) Logits(tree worker.Tree, c worker.Config) ([][]float32, worker.LESSInfo, error) {
	c.Context, c.Batch, c.Ubatch = Tokens, Tokens, Ubatch
	var info worker.LESSInfo
	w, err := r.Open(tree, c)
	if err != nil {
		return nil, info, err
	}
	defer w.Close()
	all := make([][]float32, len(r.Windows))
	for i, tokens := range r.Windows {
		if err := w.Clear(); err != nil {
			return nil, info, err
		}
		out, err := w.Decode(0, 0, tokens, worker.All)
		if err != nil {
			return nil, info, err
		}
		all[i] = out.Values
	}
	if c.LESS != nil {
		info, err = w.LESS()
	}
	return all, info, err
}
