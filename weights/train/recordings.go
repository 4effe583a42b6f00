package train

import (
	"context"
	"fmt"
	"math"
	"os"

	"github.com/lesskv/lesskv/cgo/kernels"
)

// unrecorded returns the layers of which windows are missing, and the first window that is.
func (s *store) unrecorded(layers []Layer) (missing []Layer, from int) {
	from = s.windows
	for _, l := range layers {
		if n := s.recorded(l.Index); n < s.windows {
			missing = append(missing, l)
			from = min(from, n)
		}
	}
	return missing, from
}

// recordWindows runs the model over the windows that are not yet on the disk and writes what the layers saw: memory for one window
// of each. It goes on where an earlier run stopped.
func (s *store) recordWindows(ctx context.Context, r Runtime, layers []Layer, windows [][]int32, p recording) (err error) {
	missing, from := s.unrecorded(layers)
	if len(missing) == 0 {
		return nil
	}
	if s.shared() {
		alone, err := enter(s.recordings, p)
		if err != nil {
			return err
		}
		defer alone.Release()
		missing, from = s.unrecorded(layers) // another run may have been at work
	}
	files := map[int]*os.File{}
	buffers := map[int]*kernels.TrainWindow{}
	var indices []int
	for _, l := range missing {
		f, err := os.OpenFile(s.recording(l.Index), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer closeWritten(f, &err)
		files[l.Index] = f
		buffers[l.Index] = s.o.of(l.Index).window()
		indices = append(indices, l.Index)
	}
	scale := map[int]float32{}
	for _, l := range missing {
		scale[l.Index] = l.Scale * float32(math.Sqrt(float64(s.o.Model.Layer(l.Index).KeyLength))) // qn in algorithm.md
	}
	for i := from; i < len(windows); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.o.Progress(Event{Stage: Recording, Layer: indices[0], Done: i, Total: len(windows)})
		for _, w := range buffers {
			w.Q, w.K, w.V, w.Full = w.Q[:0], w.K[:0], w.V[:0], w.Full[:0]
		}
		err := r.Record(windows[i], indices, func(a Attention) error {
			w, ok := buffers[a.Layer]
			if !ok {
				return fmt.Errorf("train: the runtime recorded layer %d, which nobody asked for: %w", a.Layer, ErrModel)
			}
			w.Q = AppendHalf(w.Q, a.Q, scale[a.Layer])
			w.K = AppendHalf(w.K, a.K, 1)
			w.V = AppendHalf(w.V, a.V, 1)
			w.Full = AppendHalf(w.Full, a.Out, 1)
			return nil
		})
		if err != nil {
			return err
		}
		for _, l := range indices {
			w, want := buffers[l], s.o.of(l).elements()
			if have := [4]int{len(w.Q), len(w.K), len(w.V), len(w.Full)}; have != want {
				return fmt.Errorf("train: layer %d recorded %v numbers of q, k, v and output, want %v: %w", l, have, want, ErrModel)
			}
			if err := s.o.of(l).writeRecord(files[l], i, w); err != nil {
				return err
			}
		}
	}
	s.o.Progress(Event{Stage: Recording, Layer: indices[0], Done: len(windows), Total: len(windows)})
	return nil
}
