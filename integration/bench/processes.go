package bench

import (
	"fmt"

	"github.com/lesskv/lesskv/integration/worker"
)

// processes opens each method for each context, and says what the process takes behind one micro-batch and a few tokens. The model's file is
// read, not mapped: what ggml repacks the unmodified runtime has twice otherwise, once in pages that the system can take back.
func (b *bench) processes() error {
	for i, c := range b.o.Contexts {
		for j, m := range b.o.Methods {
			b.o.Progress(float64(i*len(b.o.Methods)+j), float64(len(b.o.Contexts)*len(b.o.Methods)), fmt.Sprintf("%s for %d tokens", m.Name, c))
			peak, err := b.process(m, c)
			if err != nil {
				return fmt.Errorf("bench: %s for %d tokens: %w", m.Name, c, err)
			}
			b.result.Processes = append(b.result.Processes, Process{m.Name, c, peak})
		}
	}
	return nil
}

func (b *bench) process(m Method, context int) (peak int64, err error) {
	var less *worker.LESS
	if m.Tree == worker.Patched {
		less = b.less(m)
	}
	w, err := b.start(m, context, less, b.o.RPC)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	n := min(b.o.Ubatch, context/2)
	if _, err := w.Decode(0, 0, b.tokens(n), worker.Last); err != nil {
		return 0, err
	}
	if _, _, err := w.Greedy(0, n, b.tokens(1)[0], minTokens, false); err != nil {
		return 0, err
	}
	use, err := w.Memory()
	return use.Peak, err
}

// growth feeds a prompt of o.Growth tokens and says how much the peak grew from 2,048 on.
func (b *bench) growth() error {
	m := Method{Name: "less", Tree: worker.Patched, LESS: true}
	less := b.less(m)
	var err error
	if less.Budget, err = b.slots(32768); err != nil {
		return err
	}
	w, err := b.start(m, b.o.Growth, less, b.o.RPC)
	if err != nil {
		return err
	}
	defer w.Close()
	g := &Growth{From: min(2048, b.o.Growth), To: b.o.Growth, Budget: less.Budget}
	if len(b.o.Contexts) == 0 {
		b.result.Budget = less.Budget
	}
	for pos := 0; pos < b.o.Growth; {
		n := min(b.o.Ubatch, b.o.Growth-pos)
		b.o.Progress(float64(pos), float64(b.o.Growth), "feeding")
		if _, err := w.Decode(0, pos, b.tokens(n), worker.Last); err != nil {
			return err
		}
		pos += n
		m, err := w.Memory()
		if err != nil {
			return err
		}
		g.After = m.Peak
		if pos <= g.From { // a peak of before would hide what grows below it
			if err := w.ResetPeak(); err != nil {
				return err
			}
			if m, err = w.Memory(); err != nil {
				return err
			}
			g.Before = m.Peak
		}
	}
	b.o.Progress(float64(b.o.Growth), float64(b.o.Growth), "")
	b.result.Growth = g
	return nil
}
