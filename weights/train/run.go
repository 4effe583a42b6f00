package train

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/lock"
	"github.com/lesskv/lesskv/weights/memory"
	"github.com/lesskv/lesskv/weights/outfile"
)

// A Report is how a run went.
type Report struct {
	Layers  []LayerReport // that were fitted, now or in the runs before
	Exact   []int         // layers with a sliding window, their own or the one that they share, which need no phi and psi
	Shared  []int         // layers that share the cache of one that is not of this run: it trains them too
	Adapter *weights.Adapter
}

// recordingFormat changes with what recordings, and the other files of a work folder, hold.
var recordingFormat = 2

// recording is what recordings depend on.
type recording struct {
	Format  int
	Model   string // fingerprint
	Source  string `json:",omitempty"`
	Text    string // SHA-256 of the windows' tokens
	Context int
}

// recordings are the names of folders in a folder of recordings.
var recordings = regexp.MustCompile(`^[0-9a-f]{16}$`)

// folder returns the name of the folder that has such recordings among others.
func (r recording) folder() string {
	sum := sha256.Sum256(describe(r))
	return hex.EncodeToString(sum[:8])
}

func describe(v any) []byte {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(err) // numbers and strings
	}
	return data
}

// FitMethod changes whenever the same recordings and options come to another phi or psi: layers that were fitted both ways don't mix.
const FitMethod = 2 // versions before had none

// plan is what a work folder's content depends on.
type plan struct {
	recording
	Fit        int // FitMethod
	Policy     string
	Budgets    []int
	Allocation []float32 `json:",omitempty"`
	Heavy      int
	Pinned     int
	Ubatch     int
	Rank       int
	Hidden     int
	Ranks      map[int]int `json:",omitempty"`
	Hiddens    map[int]int `json:",omitempty"`
	Steps      int
	Rate       float64
	Seed       uint64
}

func (o *Options) plan(w Windows) plan {
	h := sha256.New()
	for _, part := range [][][]int32{w.Train, w.Valid} {
		fmt.Fprintln(h, len(part))
		for _, tokens := range part {
			h.Write(raw(tokens))
		}
	}
	r := recording{recordingFormat, o.Model.Fingerprint, o.Source, hex.EncodeToString(h.Sum(nil)), o.Context}
	return plan{r, FitMethod, o.Policy, o.Budgets, o.Allocation, o.Heavy, o.Pinned, o.Ubatch, o.Rank, o.Hidden, o.Ranks, o.Hiddens, o.Steps, o.Rate, o.Seed}
}

// describe says how an adapter is made: what it would take to make it again.
func (o *Options) describe(p plan, train, valid int) string {
	data, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return weights.Describe(o.Layers, fmt.Sprintf("%d windows for training and %d for validation, with %s", train, valid, data))
}

// Run trains an adapter and writes it to o.Output. When it was interrupted, the same call goes on. Errors wrap one of this
// package's faults, the runtime's or the context's; what is finished stays in the work folder.
func Run(ctx context.Context, o Options, r Runtime, w Windows) (*Report, error) {
	if len(w.Train) == 0 || len(w.Valid) == 0 {
		return nil, fmt.Errorf("train: %d windows for training and %d for validation: want one of each at least: %w", len(w.Train), len(w.Valid), ErrText)
	}
	o.Context = len(w.Train[0])
	if err := o.fill(); err != nil {
		return nil, err
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	p := o.plan(w)
	s := &store{dir: o.Output + ".work", windows: len(w.Train) + len(w.Valid), o: &o}
	s.recordings = s.dir
	if o.Recordings != "" {
		s.recordings = filepath.Join(o.Recordings, p.recording.folder())
	}
	alone, err := enter(s.dir, p)
	if err != nil {
		return nil, err
	}
	defer alone.Release()

	all, err := r.Layers()
	if err != nil {
		return nil, err
	}
	if err := o.allocate(all); err != nil {
		return nil, err
	}
	report := &Report{}
	in := func(layer int) bool { return slices.Contains(o.Layers, layer) }
	s.sharers = map[int][]Layer{}
	var todo, pending []Layer
	for _, l := range all {
		for layer := range o.Model.Layers {
			switch owner := o.Model.Owner(layer); {
			case owner != l.Index || layer == owner:
			case l.Window && in(layer):
				report.Exact = append(report.Exact, layer)
			case !l.Window && in(owner):
				s.sharers[owner] = append(s.sharers[owner], Layer{Index: layer, Scale: l.Scale, SoftCap: l.SoftCap})
			case !l.Window && in(layer):
				report.Shared = append(report.Shared, layer)
			}
		}
		switch {
		case !in(l.Index):
		case l.Window:
			report.Exact = append(report.Exact, l.Index)
		default:
			todo = append(todo, l)
			if !s.finished(s.withSharers(l)) {
				pending = append(pending, l)
			}
		}
	}
	slices.Sort(report.Exact)
	if len(todo) == 0 {
		return nil, fmt.Errorf("train: layers %v have nothing to train (sliding windows are exact): %w", o.Layers, ErrOption)
	}
	if err := s.passes(ctx, r, pending, w, p.recording); err != nil {
		return nil, err
	}

	report.Adapter = o.adapter()
	report.Adapter.Description = o.describe(p, len(w.Train), len(w.Valid))
	todo = s.withSharers(todo...)
	slices.SortFunc(todo, func(a, b Layer) int { return a.Index - b.Index })
	for _, l := range todo {
		k, lr, err := s.load(l.Index)
		if err != nil {
			return nil, err
		}
		report.Adapter.Kernels[l.Index] = k
		report.Layers = append(report.Layers, lr)
		report.Adapter.Description += fmt.Sprintf("\nlayer %d: validation error %.3f of sparse only's", lr.Layer, lr.Valid)
	}
	if err := report.Adapter.Convert(o.Type); err != nil {
		return nil, err
	}
	if o.Trained != nil {
		o.Trained(report)
	}
	if err := report.Adapter.Write(o.Output); err != nil {
		return nil, diskError(err)
	}
	if o.KeepWork {
		return report, nil
	}
	return report, RemoveWork(s.dir)
}

// ours are the names of the files in a folder of runs, exactly: what else lies there is somebody's.
var ours = regexp.MustCompile(`^(lock|(plan\.json|layer-\d{3,}\.(gguf|json))(\.part\.tmp)?|layer-\d{3,}\.(recording|replay-\d+))$`)

// RemoveWork deletes what a run has left in its work folder, and the folder if nothing else is in it.
func RemoveWork(dir string) error { return outfile.RemoveFolder(dir, ours) }

// RemoveRecordings deletes what runs have left in a folder of recordings (Options.Recordings), and the folder if nothing else is in it.
func RemoveRecordings(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() && recordings.MatchString(e.Name()) {
			err = errors.Join(err, outfile.RemoveFolder(filepath.Join(dir, e.Name()), ours))
		}
	}
	if left, _ := os.ReadDir(dir); err != nil || len(left) > 0 {
		return err
	}
	return os.Remove(dir)
}

// enter makes a folder or goes on in it, alone. p is what its content depends on.
func enter(dir string, p any) (*lock.Lock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, diskError(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries { // before hours of work
		if !outfile.Is(e, ours) {
			return nil, fmt.Errorf("train: %s is no run's: move it out of the work folder, or choose another output: %w", filepath.Join(dir, e.Name()), ErrOther)
		}
	}
	l, err := lock.Try(filepath.Join(dir, "lock"))
	if errors.Is(err, lock.ErrBusy) {
		return nil, fmt.Errorf("train: %s is in use by a run that goes on: wait for it, or choose another: %w", dir, ErrOther)
	}
	if err != nil {
		return nil, diskError(fmt.Errorf("train: %w", err))
	}
	path := filepath.Join(dir, "plan.json")
	want := describe(p)
	have, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = writeFile(path, want)
	case err == nil && string(have) != string(want):
		err = fmt.Errorf("train: %s was begun with\n%s\nand this run wants\n%s\nGive the same options to go on, choose another output, or remove the folder: %w", dir, have, want, ErrOther)
	}
	if err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}

// passes records and fits the layers, as many at a time as the disk has room for.
func (s *store) passes(ctx context.Context, r Runtime, layers []Layer, w Windows, p recording) error {
	if len(layers) == 0 {
		return nil
	}
	most := s.o.largest()
	members := s.members()
	each := members * most.layerBytes(s.windows)
	space, err := s.diskSpace(layers)
	if err != nil {
		return err
	}
	n := int(min(space/each, int64(len(layers))))
	switch {
	case n == 0:
		return fmt.Errorf("train: %d windows of %d tokens take %s for a layer, %s has room for %s: give less text, or another place: %w",
			s.windows, s.o.Context, memory.Size(each), s.recordings, memory.Size(space), ErrDisk)
	case n < len(layers) && s.shared():
		return fmt.Errorf("train: %d layers of %s are to stay in %s, which has room for %d: give fewer layers at a time, less text, or another place: %w",
			len(layers), memory.Size(each), s.recordings, n, ErrDisk)
	}
	n = s.o.atOnce(n, members*most.windowMemory())
	s.o.Progress(Event{Stage: Planned, Layer: layers[0].Index, Done: n, Total: len(layers), Bytes: each, Folder: s.recordings})
	windows := append(append([][]int32{}, w.Train...), w.Valid...)
	for ; len(layers) > 0; layers = layers[min(n, len(layers)):] {
		pass := layers[:min(n, len(layers))]
		if err := s.recordWindows(ctx, r, s.withSharers(pass...), windows, p); err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(s.o.atOnce(s.o.Threads, most.fitMemory()+(members-1)*most.windowMemory()))
		for _, l := range pass {
			g.Go(func() error {
				if err := ctx.Err(); err != nil {
					return err
				}
				all, err := s.fit(ctx, r, l, len(w.Train), len(w.Valid))
				if err != nil {
					return err
				}
				for _, f := range all {
					report := f.report
					if err := s.save(f.kernels, report); err != nil {
						return err
					}
					s.o.Progress(Event{Stage: Finished, Layer: report.Layer, Done: report.Steps, Total: s.o.Steps, Train: report.Train, Valid: report.Valid, Plus: report.Plus, Sparse: report.Sparse})
				}
				for _, f := range all {
					err = errors.Join(err, s.remove(f.report.Layer))
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// diskSpace returns the bytes that recordings and replays of layers may take, what is there already included.
func (s *store) diskSpace(layers []Layer) (int64, error) {
	if s.o.Disk > 0 {
		return s.o.Disk, nil
	}
	if err := os.MkdirAll(s.recordings, 0o755); err != nil {
		return 0, diskError(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.recordings, &fs); err != nil {
		return 0, fmt.Errorf("train: %s: %w", s.recordings, err)
	}
	space := int64(fs.Bavail) * int64(fs.Bsize) / 10 * 9
	for _, l := range s.withSharers(layers...) {
		space += int64(s.recorded(l.Index)) * s.o.of(l.Index).recordSize()
	}
	return space, nil
}

// A finished layer is an adapter that has it alone, and its report.

func (s *store) finished(layers []Layer) bool {
	for _, l := range layers {
		if _, _, err := s.load(l.Index); err != nil { // one that is damaged is fitted anew
			return false
		}
	}
	return true
}

func (s *store) save(k weights.Kernels, report LayerReport) error {
	a := s.o.adapter()
	a.Kernels[report.Layer] = k
	if err := a.Convert(gguf.F32); err != nil {
		return err
	}
	if err := a.Write(s.path(report.Layer, "gguf")); err != nil {
		return diskError(err)
	}
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("train: the report of layer %d: %w", report.Layer, err)
	}
	return writeFile(s.path(report.Layer, "json"), data)
}

func (s *store) load(layer int) (k weights.Kernels, report LayerReport, err error) {
	a, err := weights.Read(s.path(layer, "gguf"))
	if err != nil {
		return k, report, err
	}
	data, err := os.ReadFile(s.path(layer, "json"))
	if err != nil {
		return k, report, err
	}
	if err := json.Unmarshal(data, &report); err != nil {
		return k, report, fmt.Errorf("train: %s: %w", s.path(layer, "json"), err)
	}
	return a.Kernels[layer], report, nil
}
