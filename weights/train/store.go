package train

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/weights/outfile"
)

// store is the work folder. Recordings and replays are files of records of one size, one a window, in native byte order. A recording,
// which may outlive the run, has a sum behind each.
type store struct {
	dir        string
	recordings string // dir, or a folder that outlives the run
	windows    int
	o          *Options
	sharers    map[int][]Layer // of a layer: those that share its cache
}

// withSharers returns layers, each followed by those that share its cache.
func (s *store) withSharers(layers ...Layer) (all []Layer) {
	for _, l := range layers {
		all = append(append(all, l), s.sharers[l.Index]...)
	}
	return all
}

// members is how many layers a family has at most.
func (s *store) members() int64 {
	most := 0
	for _, l := range s.sharers {
		most = max(most, len(l))
	}
	return int64(1 + most)
}

func (s *store) path(layer int, what string) string { return layerFile(s.dir, layer, what) }

func (s *store) recording(layer int) string { return layerFile(s.recordings, layer, "recording") }

func (s *store) shared() bool { return s.recordings != s.dir }

func layerFile(dir string, layer int, what string) string {
	return filepath.Join(dir, fmt.Sprintf("layer-%03d.%s", layer, what))
}

func (s *store) replay(layer, budget int) string {
	return s.path(layer, fmt.Sprintf("replay-%d", budget))
}

// elements returns what a recorded window has of q, k, v and full.
func (o *Options) elements() [4]int {
	m := o.Model
	return [4]int{
		o.Context * m.Heads * m.KeyLength, o.Context * m.HeadsKV * m.KeyLength,
		o.Context * m.HeadsKV * m.ValueLength, o.Context * m.Heads * m.ValueLength,
	}
}

func (o *Options) recordSize() int64 {
	var n int64
	for _, e := range o.elements() {
		n += 2 * int64(e)
	}
	return n + sumSize
}

// sumSize is what the CRC-32C of a record takes, behind it.
const sumSize = crc32.Size

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(parts [][]byte) []byte {
	var sum uint32
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return binary.LittleEndian.AppendUint32(nil, sum)
}

// readRecord reads a window of a recording. One that is not what was recorded is ErrDamaged.
func (o *Options) readRecord(f *os.File, window int, w *kernels.TrainWindow) error {
	parts, have := recordParts(w), make([]byte, sumSize)
	if err := readAt(f, int64(window)*o.recordSize(), append(parts, have)); err != nil {
		return err
	}
	if !bytes.Equal(have, sum(parts)) {
		return fmt.Errorf("train: %s: window %d is not what was recorded: remove that file and run the same command again, which records its layer anew: %w", f.Name(), window, ErrDamaged)
	}
	return nil
}

// writeRecord writes one.
func (o *Options) writeRecord(f *os.File, window int, w *kernels.TrainWindow) error {
	parts := recordParts(w)
	return writeAt(f, int64(window)*o.recordSize(), append(parts, sum(parts)))
}

func (o *Options) replaySize() int64 {
	m := o.Model
	return int64(o.Context) * int64(m.Heads*m.ValueLength*2+m.Heads*4+m.HeadsKV*4)
}

// layerBytes is what one layer takes on the disk while it is trained.
func (o *Options) layerBytes(windows int) int64 {
	return int64(windows) * (o.recordSize() + int64(len(o.Budgets))*o.replaySize())
}

// recorded returns how many windows of a layer are on the disk.
func (s *store) recorded(layer int) int {
	info, err := os.Stat(s.recording(layer))
	if err != nil {
		return 0
	}
	return int(min(info.Size()/s.o.of(layer).recordSize(), int64(s.windows)))
}

// remove deletes a layer's replays, and its recording unless that is to stay. Their names are compared as they are: a folder
// may be called x[1].gguf.work, which is no pattern.
func (s *store) remove(layer int) error {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(s.path(layer, "re"))) && outfile.Is(e, ours) {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}

// window returns memory for one window.
func (o *Options) window() *kernels.TrainWindow {
	m, e := o.Model, o.elements()
	return &kernels.TrainWindow{
		Tokens: o.Context, Ubatch: o.Ubatch,
		Q: make([]uint16, e[0]), K: make([]uint16, e[1]), V: make([]uint16, e[2]), Full: make([]uint16, e[3]),
		Sparse: make([]uint16, e[3]), LSE: make([]float32, o.Context*m.Heads), Evicted: make([]int32, o.Context*m.HeadsKV),
	}
}

func raw[T uint16 | float32 | int32](s []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(s[0])))
}

func recordParts(w *kernels.TrainWindow) [][]byte {
	return [][]byte{raw(w.Q), raw(w.K), raw(w.V), raw(w.Full)}
}

func replayParts(w *kernels.TrainWindow) [][]byte {
	return [][]byte{raw(w.Sparse), raw(w.LSE), raw(w.Evicted)}
}

func readAt(f *os.File, at int64, parts [][]byte) error {
	for _, p := range parts {
		if _, err := f.ReadAt(p, at); err != nil {
			return fmt.Errorf("train: %s: %w", f.Name(), err)
		}
		at += int64(len(p))
	}
	return nil
}

// writeAt writes a record. A full disk is ErrDisk.
func writeAt(f *os.File, at int64, parts [][]byte) error {
	for _, p := range parts {
		if _, err := f.WriteAt(p, at); err != nil {
			return diskError(err)
		}
		at += int64(len(p))
	}
	return nil
}

func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("train: %w: %w: what is done is kept; make room and run the same command again", err, ErrDisk)
	}
	return err
}

// writeFile writes a small file in one piece: it is there whole or not at all.
func writeFile(path string, data []byte) error {
	return diskError(outfile.WriteBytes(path, data))
}

// AppendHalf rounds s x to f16 and puts it at the end of dst.
func AppendHalf(dst []uint16, x []float32, s float32) []uint16 {
	if s != 1 {
		scaled := make([]float32, len(x))
		for i, v := range x {
			scaled[i] = s * v
		}
		x = scaled
	}
	for b := kernels.F16.FromF32(x); len(b) > 0; b = b[2:] {
		dst = append(dst, binary.NativeEndian.Uint16(b))
	}
	return dst
}

// samples reads windows of one layer, with a replay.
type samples struct {
	o         *Options
	recording *os.File
	replays   []*os.File
	w         *kernels.TrainWindow
}

// closeWritten closes a file that was written, whose last bytes some file systems refuse only then, unless err says already that not all is
// there.
func closeWritten(f io.Closer, err *error) {
	if closed := f.Close(); *err == nil {
		*err = closed
	}
}

func (s *store) open(layer int) (_ *samples, err error) {
	o := s.o.of(layer)
	r := &samples{o: o, w: o.window()}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.recording, err = os.Open(s.recording(layer)); err != nil {
		return nil, err
	}
	for _, b := range o.Budgets {
		f, err := os.Open(s.replay(layer, b))
		if err != nil {
			return nil, err
		}
		r.replays = append(r.replays, f)
	}
	return r, nil
}

func (r *samples) close() {
	for _, f := range append([]*os.File{r.recording}, r.replays...) {
		if f != nil {
			f.Close()
		}
	}
}

// read returns a window with the replay of a budget; it is overwritten by the next.
func (r *samples) read(window, budget int) (*kernels.TrainWindow, error) {
	if err := r.o.readRecord(r.recording, window, r.w); err != nil {
		return nil, err
	}
	return r.w, readAt(r.replays[budget], int64(window)*r.o.replaySize(), replayParts(r.w))
}
