package train

import (
	"context"
	"os"

	"github.com/lesskv/lesskv/cgo/kernels"
)

// A family is a layer and those that share its cache, which decide together what stays in it. It has memory for a window of each.
type family []member

type member struct {
	o         *Options // of this layer
	layer     Layer
	recording *os.File
	sinks     []float32
	w         *kernels.TrainWindow
}

// family opens the recordings of a layer and of its sharers.
func (s *store) family(r Runtime, l Layer) (_ family, err error) {
	var f family
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	for _, l := range s.withSharers(l) {
		m := member{o: s.o.of(l.Index), layer: l}
		if m.sinks, err = Sinks(r, m.o.Model, l.Index); err != nil {
			return nil, err
		}
		if m.recording, err = os.Open(s.recording(l.Index)); err != nil {
			return nil, err
		}
		m.w = m.o.window()
		f = append(f, m)
	}
	return f, nil
}

func (f family) close() {
	for _, m := range f {
		m.recording.Close()
	}
}

// replay reads a window and replays the policy over it, on what the first one's cache is.
func (f family) replay(window int, on kernels.Layer) error {
	var sharers []kernels.TrainSharer
	for i, m := range f {
		if err := m.o.readRecord(m.recording, window, m.w); err != nil {
			return err
		}
		if i > 0 {
			sharers = append(sharers, kernels.TrainSharer{Heads: m.o.Model.Heads, Window: m.w, Sinks: m.sinks})
		}
	}
	return f[0].w.Replay(on, f[0].layer.SoftCap, f[0].sinks, sharers...)
}

// replayAll replays the policy over every window of a family, once for each budget. Replays are made again by a run that
// was interrupted: they take less time than looking whether they are whole.
func (s *store) replayAll(ctx context.Context, f family) (err error) {
	total := s.windows * len(s.o.Budgets)
	for b, budget := range s.o.Budgets {
		var files []*os.File
		for _, m := range f {
			out, err := os.Create(s.replay(m.layer.Index, budget))
			if err != nil {
				return err
			}
			defer closeWritten(out, &err)
			files = append(files, out)
		}
		for i := range s.windows {
			if err := ctx.Err(); err != nil {
				return err
			}
			s.o.Progress(Event{Stage: Replaying, Layer: f[0].layer.Index, Done: b*s.windows + i, Total: total})
			if err := f.replay(i, f[0].o.layer(budget)); err != nil {
				return err
			}
			for j, m := range f {
				if err := writeAt(files[j], int64(i)*m.o.replaySize(), replayParts(m.w)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
