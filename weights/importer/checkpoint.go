package importer

import (
	"archive/zip"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/nlpodyssey/gopickle/pickle"
	"github.com/nlpodyssey/gopickle/pytorch"
	"github.com/nlpodyssey/gopickle/types"
)

// maxPickle is how large a checkpoint's pickle may be: a layer's takes a few KB, its tensors lie beside it.
const maxPickle = 256 << 10

// A checkpoint is an open .pth file. The reading of the pickle is gopickle's; what stands between it and a hostile file is
// here, because it takes the lengths in a file for true and allocates them.
type checkpoint struct {
	z       *zip.ReadCloser
	members map[string]*zip.File // by their last name
}

// open reads the table of contents and refuses what torch.save does not write: compressed members, and members that share their bytes.
func open(name string) (_ *checkpoint, err error) {
	z, err := zip.OpenReader(name)
	if err != nil {
		return nil, fmt.Errorf("%w (files of PyTorch before 1.6 are not covered): %w", err, ErrCheckpoint)
	}
	c := &checkpoint{z, map[string]*zip.File{}}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	type span struct {
		name     string
		from, to int64
	}
	var spans []span
	for _, f := range z.File {
		if f.Method != zip.Store || f.CompressedSize64 != f.UncompressedSize64 {
			return nil, fmt.Errorf("member %s is compressed, which torch.save does not do: %w", f.Name, ErrCheckpoint)
		}
		at, err := f.DataOffset()
		if err != nil {
			return nil, fmt.Errorf("member %s: %w: %w", f.Name, err, ErrCheckpoint)
		}
		spans = append(spans, span{f.Name, at, at + int64(f.UncompressedSize64)})
		c.members[path.Base(f.Name)] = f
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i, s := range spans {
		if s.to < s.from || i > 0 && s.from < spans[i-1].to {
			return nil, fmt.Errorf("member %s begins at byte %d, inside %s: %w", s.name, s.from, spans[max(0, i-1)].name, ErrCheckpoint)
		}
	}
	return c, nil
}

func (c *checkpoint) close() error { return c.z.Close() }

// read returns a member, whose length the caller has looked at.
func read(f *zip.File) ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// state returns the tensors by name: those of model_state_dict, or of the file itself. Their elements stay in the file.
func (c *checkpoint) state() (_ map[string]*pytorch.Tensor, err error) {
	defer func() {
		if p := recover(); p != nil { // the library panics on some broken files
			err = fmt.Errorf("%v: %w", p, ErrCheckpoint)
		}
	}()
	f, ok := c.members["data.pkl"]
	if !ok {
		return nil, fmt.Errorf("there is no data.pkl in the archive: %w", ErrCheckpoint)
	}
	if f.UncompressedSize64 > maxPickle {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d: %w", f.Name, f.UncompressedSize64, maxPickle, ErrCheckpoint)
	}
	data, err := read(f)
	if err == nil {
		err = vet(data)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", f.Name, err, ErrCheckpoint)
	}
	u := pickle.NewUnpickler(bytes.NewReader(data))
	u.FindClass = class
	u.PersistentLoad = c.persistent
	content, err := u.Load()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", f.Name, err, ErrCheckpoint)
	}
	items := entries(content)
	if inner, ok := items["model_state_dict"]; ok {
		items = entries(inner)
	}
	state := map[string]*pytorch.Tensor{}
	for name, v := range items {
		if t, ok := v.(*pytorch.Tensor); ok {
			state[name] = t
		}
	}
	return state, nil
}

// What follows an operation of a pickle: so many bytes, or one of these.
const (
	lines   = -1 - iota // two lines
	length1             // a length of one byte, and what it counts
	length4             // of four
)

// operations are those of protocol 2 that torch.save writes ("pickle" in CPython's pickletools).
var operations = map[byte]int{
	0x80: 1, '.': 0, // PROTO, STOP
	'(': 0, '}': 0, ']': 0, ')': 0, // MARK and the empty containers
	't': 0, 0x85: 0, 0x86: 0, 0x87: 0, // TUPLE, TUPLE1 to 3
	's': 0, 'u': 0, 'a': 0, 'e': 0, // SETITEM, SETITEMS, APPEND, APPENDS
	'q': 1, 'r': 4, 'h': 1, 'j': 4, // BINPUT, LONG_BINPUT, BINGET, LONG_BINGET
	'N': 0, 0x88: 0, 0x89: 0, 'J': 4, 'K': 1, 'M': 2, 'G': 8, 0x8a: length1, // None, booleans and numbers
	'X': length4, 'U': length1, // BINUNICODE, SHORT_BINSTRING
	'c': lines, 'R': 0, 'Q': 0, 'b': 0, // GLOBAL, REDUCE, BINPERSID, BUILD
}

// vet walks over a pickle's operations, so that no length in it leads past its end.
func vet(p []byte) error {
	all := len(p)
	for len(p) > 0 {
		at := all - len(p)
		n, ok := operations[p[0]]
		if !ok {
			return fmt.Errorf("operation %#x at byte %d, which torch.save does not write", p[0], at)
		}
		if p[0] == '.' {
			return nil
		}
		p = p[1:]
		switch {
		case n == length1 && len(p) >= 1:
			n = 1 + int(p[0])
		case n == length4 && len(p) >= 4:
			n = 4 + int(binary.LittleEndian.Uint32(p))
		case n == lines:
			n = 0
			for range 2 {
				end := bytes.IndexByte(p[n:], '\n')
				if end < 0 {
					return fmt.Errorf("operation at byte %d: a name without an end", at)
				}
				n += end + 1
			}
		}
		if n < 0 || n > len(p) {
			return fmt.Errorf("operation at byte %d: %d bytes are left, it wants %d", at, len(p), n)
		}
		p = p[n:]
	}
	return errors.New("it does not end")
}

// class returns what a name in a pickle stands for: tensors and the types of their elements. Dicts are gopickle's own business.
func class(module, name string) (any, error) {
	switch module + "." + name {
	case "torch._utils._rebuild_tensor_v2":
		return &pytorch.RebuildTensorV2{}, nil
	case "torch.FloatStorage":
		return elements{4, &pytorch.FloatStorageClass{}}, nil
	case "torch.HalfStorage":
		return elements{2, &pytorch.HalfStorageClass{}}, nil
	case "torch.BFloat16Storage":
		return elements{2, &pytorch.BFloat16StorageClass{}}, nil
	case "torch.DoubleStorage":
		return elements{8, &pytorch.DoubleStorageClass{}}, nil
	case "torch.LongStorage", "torch.IntStorage", "torch.ShortStorage", "torch.CharStorage", "torch.ByteStorage", "torch.BoolStorage":
		return elements{}, nil // an optimiser's counters
	}
	return nil, fmt.Errorf("class not found: %s %s", module, name)
}

// elements is a type of floating-point numbers; the zero one is every other.
type elements struct {
	bytes int
	class pytorch.StorageClassInterface
}

// persistent is what a pickle's tensors lie in: ("storage", type, member, device, elements).
func (c *checkpoint) persistent(id any) (any, error) {
	tuple, ok := id.(*types.Tuple)
	if !ok || tuple.Len() < 5 || tuple.Get(0) != "storage" {
		return nil, fmt.Errorf("a persistent %T, want a storage", id)
	}
	e, ok1 := tuple.Get(1).(elements)
	key, ok2 := tuple.Get(2).(string)
	size, ok3 := tuple.Get(4).(int)
	f := c.members[key]
	switch {
	case !ok1 || !ok2 || !ok3:
		return nil, errors.New("a storage without type, name or size")
	case f == nil:
		return nil, fmt.Errorf("there is no member %q in the archive", key)
	case size < 0 || e.class != nil && uint64(size) != f.UncompressedSize64/uint64(e.bytes):
		return nil, fmt.Errorf("%s is to have %d elements, and has %d bytes", f.Name, size, f.UncompressedSize64)
	}
	return &storage{f, e, size}, nil
}

// A storage is what tensors lie in, not read yet.
type storage struct {
	f    *zip.File
	e    elements
	size int // elements
}

// SetFromFile makes it a pytorch.StorageInterface; nothing calls it.
func (*storage) SetFromFile(io.Reader) error { return errors.ErrUnsupported }

// SetFromFileWithSize does too.
func (*storage) SetFromFileWithSize(io.Reader, int) error { return errors.ErrUnsupported }

// elements reads the storage.
func (s *storage) elements() (at func(int) float32, err error) {
	if s.e.class == nil {
		return nil, errors.New("whole numbers, want floating point")
	}
	data, err := read(s.f)
	if err != nil {
		return nil, err
	}
	all := s.e.class.New(s.size, "cpu")
	if err := all.SetFromFileWithSize(bytes.NewReader(data), s.size); err != nil {
		return nil, fmt.Errorf("%s: %w", s.f.Name, err)
	}
	switch s := all.(type) {
	case *pytorch.FloatStorage:
		return func(i int) float32 { return s.Data[i] }, nil
	case *pytorch.HalfStorage:
		return func(i int) float32 { return s.Data[i] }, nil
	case *pytorch.BFloat16Storage:
		return func(i int) float32 { return s.Data[i] }, nil
	case *pytorch.DoubleStorage:
		return func(i int) float32 { return float32(s.Data[i]) }, nil
	}
	return nil, fmt.Errorf("elements of %T", all)
}
