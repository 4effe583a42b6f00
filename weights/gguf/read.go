package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
)

// File is an open GGUF file: its keys and its table of tensors, checked. It may be read by several goroutines at once.
type File struct {
	Name    string // path or whatever else names it, for errors
	Version uint32 // of GGUF: 2 or 3
	Size    int64  // bytes
	Keys    []string
	Tensors []Info

	r      io.ReaderAt
	closer io.Closer
	values map[string]value
	index  map[string]int // into Tensors
}

// Info describes a tensor. Its data are Size bytes at Offset of the file, the first dimension the fastest.
type Info struct {
	Name   string
	Type   Type
	Dims   []uint64 // 1 to 4 of them, none zero
	Offset int64
	Size   int64
}

// Elements returns the number of elements.
func (t Info) Elements() uint64 {
	n := uint64(1)
	for _, d := range t.Dims {
		n *= d
	}
	return n
}

// value is what a key holds: a Go scalar or string, or where to find an array.
type value struct {
	typ    ValueType
	scalar any
	elem   ValueType // of an array
	n      uint64
	offset int64 // of its first element
}

// Open reads the header of the file at path. The caller closes it.
func Open(path string) (*File, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err // names the path
	}
	stat, err := r.Stat()
	if err == nil && !stat.Mode().IsRegular() {
		err = &Error{File: path, Err: ErrMagic, Found: Kind(stat.Mode()), Wanted: "a regular file"}
	}
	var f *File
	if err == nil {
		f, err = Parse(path, r, stat.Size())
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	f.closer = r
	return f, nil
}

// Kind names in words what a file is that is no regular one.
func Kind(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeDevice != 0:
		return "a device"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return mode.Type().String()
}

// Parse reads the header of the size bytes of r, which it goes on reading when asked for arrays and tensors. The name is for errors.
func Parse(name string, r io.ReaderAt, size int64) (*File, error) {
	f := &File{Name: name, Size: size, r: r, values: map[string]value{}, index: map[string]int{}}
	s := &scanner{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 1<<16), size: uint64(size)}
	if err := f.header(s); err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return nil, fmt.Errorf("%s: %w", name, err) // a read error
		}
		e.File = name
		return nil, e
	}
	return f, nil
}

// Close closes the file that Open opened.
func (f *File) Close() error {
	if f.closer == nil {
		return nil
	}
	return f.closer.Close()
}

func (f *File) header(s *scanner) error {
	magic, err := s.bytes(4, "magic")
	if err != nil || string(magic) != Magic {
		if err != nil && !errors.Is(err, ErrTruncated) {
			return err
		}
		if s.size < uint64(len(Magic)) {
			return &Error{Err: ErrMagic, Found: fmt.Sprintf("a file of %d bytes", s.size), Wanted: fmt.Sprintf("%q at its start", Magic), Advice: "copy or make it again"}
		}
		return &Error{Err: ErrMagic, Found: fmt.Sprintf("%q at its start", magic), Wanted: fmt.Sprintf("%q", Magic), Advice: "is this the right file?"}
	}
	if f.Version, err = s.u32("version"); err != nil {
		return err
	}
	switch {
	case f.Version&0xffff == 0 && f.Version != 0:
		return &Error{Err: ErrByteOrder, Found: fmt.Sprintf("version %#x", f.Version), Wanted: "little-endian", Advice: "convert it with llama.cpp's gguf_convert_endian.py"}
	case f.Version != 2 && f.Version != Version:
		return &Error{Err: ErrVersion, Found: fmt.Sprint(f.Version), Wanted: "2 or 3", Advice: "convert the model again"}
	}
	nTensors, err := s.u64("number of tensors")
	if err != nil {
		return err
	}
	nKeys, err := s.u64("number of keys")
	if err != nil {
		return err
	}
	for i := range nKeys {
		if err := f.key(s, i); err != nil {
			return err
		}
	}
	alignment := uint32(DefaultAlignment)
	if f.Has("general.alignment") {
		if alignment, err = Get[uint32](f, "general.alignment"); err != nil {
			return err
		}
		if alignment == 0 || alignment&(alignment-1) != 0 {
			return &Error{Item: "key general.alignment", Err: ErrCorrupt, Found: fmt.Sprint(alignment), Wanted: "a power of two"}
		}
	}
	for i := range nTensors {
		if err := f.tensor(s, i); err != nil {
			return err
		}
	}
	return f.place(s, uint64(alignment))
}

func (f *File) key(s *scanner, i uint64) error {
	item := fmt.Sprintf("key %d", i)
	key, err := s.string(math.MaxUint16, item)
	if err != nil {
		return err
	}
	if key == "" {
		return &Error{Item: item, Err: ErrCorrupt, Found: "an empty name"}
	}
	item = fmt.Sprintf("key %.64q", key)
	if f.Has(key) {
		return &Error{Item: item, Err: ErrCorrupt, Found: "it twice"}
	}
	t, err := s.u32(item)
	if err != nil {
		return err
	}
	v := value{typ: ValueType(t)}
	switch {
	case v.typ == Array:
		if err := s.array(&v, item); err != nil {
			return err
		}
	case v.typ == String:
		if v.scalar, err = s.string(maxString, item); err != nil {
			return err
		}
	case v.typ.known():
		b, err := s.bytes(uint64(valueTypes[v.typ].size), item)
		if err != nil {
			return err
		}
		v.scalar = scalar(v.typ, b)
	default:
		return &Error{Item: item, Err: ErrCorrupt, Found: v.typ.String(), Wanted: "0 to 12"}
	}
	f.Keys = append(f.Keys, key)
	f.values[key] = v
	return nil
}

// scalar decodes a value of fixed size.
func scalar(t ValueType, b []byte) any {
	le := binary.LittleEndian
	switch t {
	case Uint8:
		return b[0]
	case Int8:
		return int8(b[0])
	case Uint16:
		return le.Uint16(b)
	case Int16:
		return int16(le.Uint16(b))
	case Uint32:
		return le.Uint32(b)
	case Int32:
		return int32(le.Uint32(b))
	case Float32:
		return math.Float32frombits(le.Uint32(b))
	case Bool:
		return b[0] != 0
	case Uint64:
		return le.Uint64(b)
	case Int64:
		return int64(le.Uint64(b))
	default:
		return math.Float64frombits(le.Uint64(b))
	}
}

func (f *File) tensor(s *scanner, i uint64) error {
	item := fmt.Sprintf("tensor %d", i)
	name, err := s.string(maxName, item)
	if err != nil {
		return err
	}
	item = fmt.Sprintf("tensor %q", name)
	if _, twice := f.index[name]; twice {
		return &Error{Item: item, Err: ErrCorrupt, Found: "it twice"}
	}
	n, err := s.u32(item)
	if err != nil {
		return err
	}
	if n > maxDims {
		return &Error{Item: item, Err: ErrCorrupt, Found: fmt.Sprintf("%d dimensions", n), Wanted: "at most 4"}
	}
	info := Info{Name: name, Dims: make([]uint64, n)}
	elements := uint64(1)
	for d := range info.Dims {
		if info.Dims[d], err = s.u64(item); err != nil {
			return err
		}
		if info.Dims[d] == 0 || info.Dims[d] > math.MaxInt64/elements {
			return &Error{Item: item, Err: ErrCorrupt, Found: fmt.Sprintf("dimensions %v", info.Dims), Wanted: "1 to 2^63-1 elements"}
		}
		elements *= info.Dims[d]
	}
	if n == 0 {
		info.Dims = []uint64{1}
	}
	t, err := s.u32(item)
	if err != nil {
		return err
	}
	info.Type = Type(t)
	if _, known := types[info.Type]; !known {
		return &Error{Item: item, Err: ErrType, Found: info.Type.String(), Wanted: "one that llama.cpp knows"}
	}
	if rest := info.Dims[0] % types[info.Type].n; rest != 0 {
		return &Error{Item: item, Err: ErrCorrupt, Found: fmt.Sprintf("rows of %d elements", info.Dims[0]), Wanted: fmt.Sprintf("a multiple of %d, as %v has it", types[info.Type].n, info.Type)}
	}
	offset, err := s.u64(item)
	if err != nil {
		return err
	}
	size, ok := info.Type.Size(elements)
	if !ok || size > s.size || offset > s.size {
		return &Error{Item: item, Err: ErrTruncated, Found: fmt.Sprintf("%d bytes of file", s.size), Wanted: fmt.Sprintf("%v of %v at %d", info.Type, info.Dims, offset), Advice: "copy or download it again"}
	}
	info.Offset, info.Size = int64(offset), int64(size)
	f.index[name] = len(f.Tensors)
	f.Tensors = append(f.Tensors, info)
	return nil
}

// place turns the offsets of the tensors, which count from the start of the data, into offsets in the file.
func (f *File) place(s *scanner, alignment uint64) error {
	base := pad(s.pos, alignment)
	var next uint64
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if uint64(t.Offset) != next {
			return &Error{Item: "tensor " + t.Name, Err: ErrCorrupt, Found: fmt.Sprintf("offset %d", t.Offset), Wanted: fmt.Sprint(next)}
		}
		if base+next+uint64(t.Size) > s.size {
			return &Error{Item: "tensor " + t.Name, Err: ErrTruncated, Found: fmt.Sprintf("%d bytes", s.size), Wanted: fmt.Sprintf("%d or more", base+next+uint64(t.Size)), Advice: "copy or download it again"}
		}
		t.Offset = int64(base + next)
		next = pad(next+uint64(t.Size), alignment)
	}
	return nil
}

// Has reports whether the file has a key.
func (f *File) Has(key string) bool {
	_, ok := f.values[key]
	return ok
}

// Scalar is what a key can hold but for arrays.
type Scalar interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64 | float32 | float64 | bool | string
}

// Get returns the value of a key. It fails with ErrMissing, and with ErrType if the value is not exactly a T.
func Get[T Scalar](f *File, key string) (T, error) {
	var want T
	v, ok := f.values[key]
	if !ok {
		return want, &Error{File: f.Name, Item: "key " + key, Err: ErrMissing}
	}
	got, ok := v.scalar.(T)
	if !ok {
		return want, &Error{File: f.Name, Item: "key " + key, Err: ErrType, Found: v.describe(), Wanted: typeOf(want).String()}
	}
	return got, nil
}

// ArrayLen returns the type and number of an array's elements. It fails with ErrMissing, and with ErrType if the key's value is not an
// array.
func (f *File) ArrayLen(key string) (ValueType, uint64, error) {
	v, ok := f.values[key]
	if !ok {
		return 0, 0, &Error{File: f.Name, Item: "key " + key, Err: ErrMissing}
	}
	if v.typ != Array {
		return 0, 0, &Error{File: f.Name, Item: "key " + key, Err: ErrType, Found: v.describe(), Wanted: "an array"}
	}
	return v.elem, v.n, nil
}

// GetArray reads the elements of an array. It fails as Get does.
func GetArray[T Scalar](f *File, key string) ([]T, error) {
	elem, n, err := f.ArrayLen(key)
	if err != nil {
		return nil, err
	}
	var zero T
	if want := typeOf(zero); elem != want {
		return nil, &Error{File: f.Name, Item: "key " + key, Err: ErrType, Found: f.values[key].describe(), Wanted: fmt.Sprintf("an array of %v", want)}
	}
	offset := f.values[key].offset
	s := &scanner{r: bufio.NewReader(io.NewSectionReader(f.r, offset, f.Size-offset)), pos: uint64(offset), size: uint64(f.Size)}
	out := make([]T, 0, n) // Parse saw n elements in the file
	for range n {
		var v any
		var err error
		if elem == String {
			v, err = s.string(maxString, key)
		} else {
			var b []byte
			if b, err = s.bytes(uint64(valueTypes[elem].size), key); err == nil {
				v = scalar(elem, b)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		out = append(out, v.(T))
	}
	return out, nil
}

// Tensor returns the description of a tensor, and false if the file has none of that name.
func (f *File) Tensor(name string) (Info, bool) {
	i, ok := f.index[name]
	if !ok {
		return Info{}, false
	}
	info := f.Tensors[i]
	info.Dims = slices.Clone(info.Dims)
	return info, true
}

// Raw reads a tensor's data as it lies in the file. It fails with ErrMissing.
func (f *File) Raw(name string) ([]byte, error) {
	t, ok := f.Tensor(name)
	if !ok {
		return nil, &Error{File: f.Name, Item: "tensor " + name, Err: ErrMissing}
	}
	data := make([]byte, t.Size) // at most the file's size
	if _, err := f.r.ReadAt(data, t.Offset); err != nil {
		return nil, fmt.Errorf("%s: tensor %s: %w", f.Name, name, err)
	}
	return data, nil
}

// Floats reads a tensor's values. It fails with ErrMissing, and with ErrType on a type that Decode doesn't read.
func (f *File) Floats(name string) ([]float32, error) {
	data, err := f.Raw(name)
	if err != nil {
		return nil, err
	}
	t, _ := f.Tensor(name)
	values, err := Decode(t.Type, data)
	if err != nil {
		return nil, fmt.Errorf("%s: tensor %s: %w", f.Name, name, err)
	}
	return values, nil
}

func (v value) describe() string {
	switch v.typ {
	case Array:
		return fmt.Sprintf("an array of %d %v", v.n, v.elem)
	case String:
		return fmt.Sprintf("string %.32q", v.scalar)
	default:
		return fmt.Sprintf("%v %v", v.typ, v.scalar)
	}
}

// scanner reads a header from its start and knows how many bytes are left.
type scanner struct {
	r         *bufio.Reader
	pos, size uint64
	buf       [8]byte
}

// need fails if the file has fewer than n bytes left.
func (s *scanner) need(n uint64, item string) error {
	if left := s.size - s.pos; n > left {
		return &Error{Item: item, Err: ErrTruncated, Found: fmt.Sprintf("%d bytes left at %d", left, s.pos), Wanted: fmt.Sprint(n), Advice: "copy or download it again"}
	}
	return nil
}

// bytes returns the next n bytes, valid until the next call if there are at most 8.
func (s *scanner) bytes(n uint64, item string) ([]byte, error) {
	if err := s.need(n, item); err != nil {
		return nil, err
	}
	b := s.buf[:]
	if n > uint64(len(b)) {
		b = make([]byte, n)
	}
	if _, err := io.ReadFull(s.r, b[:n]); err != nil {
		return nil, fmt.Errorf("%s: %w", item, err)
	}
	s.pos += n
	return b[:n], nil
}

func (s *scanner) u32(item string) (uint32, error) {
	b, err := s.bytes(4, item)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (s *scanner) u64(item string) (uint64, error) {
	b, err := s.bytes(8, item)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

func (s *scanner) string(limit uint64, item string) (string, error) {
	n, err := s.u64(item)
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", &Error{Item: item, Err: ErrCorrupt, Found: fmt.Sprintf("a string of %d bytes", n), Wanted: fmt.Sprintf("at most %d", limit)}
	}
	b, err := s.bytes(n, item)
	return string(b), err
}

// array notes an array's type, length and place, and skips it.
func (s *scanner) array(v *value, item string) error {
	elem, err := s.u32(item)
	if err != nil {
		return err
	}
	if v.elem = ValueType(elem); !v.elem.known() || v.elem == Array {
		return &Error{Item: item, Err: ErrCorrupt, Found: fmt.Sprintf("an array of %v", v.elem), Wanted: "scalars or strings"}
	}
	if v.n, err = s.u64(item); err != nil {
		return err
	}
	v.offset = int64(s.pos)
	if v.n > s.size { // an element takes a byte at least
		return &Error{Item: item, Err: ErrTruncated, Found: fmt.Sprintf("an array of %d %v", v.n, v.elem), Wanted: fmt.Sprintf("what fits into %d bytes", s.size)}
	}
	if size := valueTypes[v.elem].size; size > 0 {
		return s.skip(v.n*uint64(size), item)
	}
	for range v.n {
		n, err := s.u64(item)
		if err != nil {
			return err
		}
		if err := s.skip(n, item); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) skip(n uint64, item string) error {
	if err := s.need(n, item); err != nil {
		return err
	}
	for left := n; left > 0; {
		d, err := s.r.Discard(int(min(left, 1<<30)))
		if err != nil {
			return fmt.Errorf("%s: %w", item, err)
		}
		left -= uint64(d)
	}
	s.pos += n
	return nil
}
