package gguf

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
)

var (
	pairs = []KeyValue{
		{"general.architecture", "llama"}, {"a", uint8(1)}, {"b", int8(-2)}, {"c", uint16(3)}, {"d", int16(-4)}, {"e", uint32(5)},
		{"f", int32(-6)}, {"g", uint64(7)}, {"h", int64(-8)}, {"i", float32(9.5)}, {"j", -10.25}, {"k", true}, {"l", "ü"},
		{"words", []string{"", "a", "bc"}}, {"floats", []float32{1, -2}}, {"ints", []int32{-1, 1 << 30}}, {"none", []uint8{}},
		{"bools", []bool{true, false}},
	}
	tensors = []Tensor{
		{"x", F32, []uint64{3}, []float32{1, -2, 3.5}},
		{"y", F16, []uint64{2, 2}, []float32{1, 0.5, -65504, 0}},
		{"z", Q8_0, []uint64{32, 1, 2}, ramp(64)},
	}
)

func ramp(n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(i-n/2) / 4
	}
	return out
}

// encode returns the file that Write makes.
func encode(t testing.TB, pairs []KeyValue, tensors []Tensor) []byte {
	var b bytes.Buffer
	require.NoError(t, Write(&b, pairs, tensors))
	return b.Bytes()
}

func parse(b []byte) (*File, error) {
	return Parse("test.gguf", bytes.NewReader(b), int64(len(b)))
}

func get[T Scalar](t *testing.T, f *File, key string, want T) {
	got, err := Get[T](f, key)
	require.NoError(t, err)
	assert.Equal(t, want, got, key)
}

func array[T Scalar](t *testing.T, f *File, key string, want []T) {
	got, err := GetArray[T](f, key)
	require.NoError(t, err)
	assert.Equal(t, want, got, key)
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.gguf")
	require.NoError(t, WriteFile(path, pairs, tensors))
	f, err := Open(path)
	require.NoError(t, err)
	defer f.Close()
	assert.Len(t, f.Keys, len(pairs))
	get(t, f, "a", uint8(1))
	get(t, f, "b", int8(-2))
	get(t, f, "c", uint16(3))
	get(t, f, "d", int16(-4))
	get(t, f, "e", uint32(5))
	get(t, f, "f", int32(-6))
	get(t, f, "g", uint64(7))
	get(t, f, "h", int64(-8))
	get(t, f, "i", float32(9.5))
	get(t, f, "j", -10.25)
	get(t, f, "k", true)
	get(t, f, "l", "ü")
	array(t, f, "words", []string{"", "a", "bc"})
	array(t, f, "floats", []float32{1, -2})
	array(t, f, "ints", []int32{-1, 1 << 30})
	array(t, f, "none", []uint8{})
	array(t, f, "bools", []bool{true, false})
	for _, want := range tensors {
		info, ok := f.Tensor(want.Name)
		require.True(t, ok)
		assert.Equal(t, want.Dims, info.Dims)
		assert.Equal(t, want.Type, info.Type)
		assert.Zero(t, info.Offset%DefaultAlignment)
		got, err := f.Floats(want.Name)
		require.NoError(t, err)
		assert.InDeltaSlice(t, want.Values, got, 8./254+1e-6) // half a step of Q8_0 at most
	}
}

func TestGetRefuses(t *testing.T) {
	f, err := parse(encode(t, pairs, tensors))
	require.NoError(t, err)
	_, err = Get[uint32](f, "nothing")
	assert.ErrorIs(t, err, ErrMissing)
	_, err = Get[uint32](f, "f")
	assert.ErrorIs(t, err, ErrType)
	assert.EqualError(t, err, "test.gguf: key f: of the wrong type: found i32 -6, wanted u32")
	_, err = Get[string](f, "words")
	assert.EqualError(t, err, "test.gguf: key words: of the wrong type: found an array of 3 string, wanted string")
	_, err = GetArray[int32](f, "words")
	assert.ErrorIs(t, err, ErrType)
	_, err = GetArray[int32](f, "f")
	assert.ErrorIs(t, err, ErrType)
	_, err = f.Floats("nothing")
	assert.ErrorIs(t, err, ErrMissing)
}

// TestTruncated cuts a file at every byte: what is left must be refused, and only padding may be missing.
func TestTruncated(t *testing.T) {
	b := encode(t, pairs, tensors)
	f, err := parse(b)
	require.NoError(t, err)
	last := f.Tensors[len(f.Tensors)-1]
	for n := range b {
		_, err := parse(b[:n])
		switch {
		case n < 4:
			assert.ErrorIs(t, err, ErrMagic)
		case n < int(last.Offset+last.Size):
			assert.ErrorIs(t, err, ErrTruncated, "%d bytes", n)
		default:
			assert.NoError(t, err)
		}
	}
}

// file lays out a file by hand, for what Write refuses to write.
type file struct{ b []byte }

func head(tensors, keys uint64) *file {
	return (&file{[]byte(Magic)}).u32(Version).u64(tensors).u64(keys)
}

func (f *file) u32(n uint32) *file { f.b = binary.LittleEndian.AppendUint32(f.b, n); return f }
func (f *file) u64(n uint64) *file { f.b = binary.LittleEndian.AppendUint64(f.b, n); return f }
func (f *file) str(s string) *file { f.b = appendString(f.b, s); return f }

func TestHostile(t *testing.T) {
	huge := uint64(math.MaxUint64)
	for name, c := range map[string]struct {
		file *file
		want error
	}{
		"zip":                {&file{[]byte("PK\x03\x04....................")}, ErrMagic},
		"empty":              {&file{}, ErrMagic},
		"version 1":          {(&file{[]byte(Magic)}).u32(1).u64(0).u64(0), ErrVersion},
		"version 4":          {(&file{[]byte(Magic)}).u32(4).u64(0).u64(0), ErrVersion},
		"version 0":          {(&file{[]byte(Magic)}).u32(0).u64(0).u64(0), ErrVersion},
		"big-endian":         {(&file{[]byte(Magic)}).u32(3 << 24).u64(0).u64(0), ErrByteOrder},
		"tensors":            {head(huge, 0), ErrTruncated},
		"keys":               {head(0, huge), ErrTruncated},
		"key length":         {head(0, 1).u64(huge), ErrCorrupt},
		"empty key":          {head(0, 1).str("").u32(4).u32(0), ErrCorrupt},
		"key twice":          {head(0, 2).str("k").u32(4).u32(0).str("k").u32(4).u32(0), ErrCorrupt},
		"value type":         {head(0, 1).str("k").u32(13), ErrCorrupt},
		"string length":      {head(0, 1).str("k").u32(8).u64(huge), ErrCorrupt},
		"long string":        {head(0, 1).str("k").u32(8).u64(1 << 20), ErrTruncated},
		"array length":       {head(0, 1).str("k").u32(9).u32(4).u64(huge), ErrTruncated},
		"array overflow":     {head(0, 1).str("k").u32(9).u32(4).u64(1 << 62), ErrTruncated},
		"strings":            {head(0, 1).str("k").u32(9).u32(8).u64(20).u64(huge), ErrTruncated},
		"nested arrays":      {head(0, 1).str("k").u32(9).u32(9).u64(1), ErrCorrupt},
		"alignment":          {head(0, 1).str("general.alignment").u32(4).u32(48), ErrCorrupt},
		"alignment type":     {head(0, 1).str("general.alignment").u32(10).u64(32), ErrType},
		"dimensions":         {head(1, 0).str("t").u32(5), ErrCorrupt},
		"no elements":        {head(1, 0).str("t").u32(2).u64(4).u64(0).u32(0).u64(0), ErrCorrupt},
		"elements overflow":  {head(1, 0).str("t").u32(2).u64(1 << 40).u64(1 << 40).u32(0).u64(0), ErrCorrupt},
		"tensor type":        {head(1, 0).str("t").u32(1).u64(4).u32(99).u64(0), ErrType},
		"removed type":       {head(1, 0).str("t").u32(1).u64(4).u32(4).u64(0), ErrType},
		"part of a block":    {head(1, 0).str("t").u32(1).u64(48).u32(8).u64(0), ErrCorrupt},
		"data":               {head(1, 0).str("t").u32(1).u64(1 << 40).u32(0).u64(0), ErrTruncated},
		"offset":             {head(1, 0).str("t").u32(1).u64(1).u32(0).u64(huge), ErrTruncated},
		"gap before tensor":  {head(1, 0).str("t").u32(1).u64(1).u32(0).u64(32).u64(0).u64(0), ErrCorrupt},
		"name of a tensor":   {head(1, 0).u64(64), ErrCorrupt},
		"tensors of a name":  {head(2, 0).str("t").u32(1).u64(1).u32(0).u64(0).str("t").u32(1).u64(1), ErrCorrupt},
		"no data after head": {head(1, 0).str("t").u32(1).u64(8).u32(0).u64(0), ErrTruncated},
	} {
		_, err := parse(c.file.b)
		assert.ErrorIs(t, err, c.want, name)
		assert.ErrorContains(t, err, "test.gguf: ", name)
	}
	_, err := parse(head(0, 0).b)
	assert.NoError(t, err, "an empty file is a file")
	_, err = parse(append(head(1, 0).str("s").u32(0).u32(0).u64(0).b, make([]byte, 64)...))
	assert.NoError(t, err, "a tensor without dimensions has one element")
}

func TestOpenRefuses(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "none.gguf"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open(t.TempDir())
	assert.ErrorIs(t, err, ErrMagic)
}

func TestWriteRefuses(t *testing.T) {
	one := []float32{1}
	for name, c := range map[string]struct {
		pairs   []KeyValue
		tensors []Tensor
		want    error
	}{
		"key twice":     {[]KeyValue{{"k", true}, {"k", true}}, nil, ErrCorrupt},
		"empty key":     {[]KeyValue{{"", true}}, nil, ErrCorrupt},
		"int":           {[]KeyValue{{"k", 1}}, nil, ErrType},
		"nil":           {[]KeyValue{{"k", nil}}, nil, ErrType},
		"tensor twice":  {nil, []Tensor{{"t", F32, []uint64{1}, one}, {"t", F32, []uint64{1}, one}}, ErrCorrupt},
		"name":          {nil, []Tensor{{string(make([]byte, 64)), F32, []uint64{1}, one}}, ErrCorrupt},
		"count":         {nil, []Tensor{{"t", F32, []uint64{2}, one}}, ErrCorrupt},
		"no dimensions": {nil, []Tensor{{"t", F32, nil, one}}, ErrCorrupt},
		"BF16":          {nil, []Tensor{{"t", BF16, []uint64{1}, one}}, ErrType},
		"Q8_0 rows":     {nil, []Tensor{{"t", Q8_0, []uint64{16, 2}, ramp(32)}}, ErrType},
		"NaN":           {nil, []Tensor{{"t", F32, []uint64{1}, []float32{float32(math.NaN())}}}, ErrRange},
		"Inf":           {nil, []Tensor{{"t", F32, []uint64{1}, []float32{float32(math.Inf(-1))}}}, ErrRange},
		"F16":           {nil, []Tensor{{"t", F16, []uint64{1}, []float32{65520}}}, ErrRange},
		"Q8_0":          {nil, []Tensor{{"t", Q8_0, []uint64{32}, append(ramp(31), 1e7)}}, ErrRange},
	} {
		path := filepath.Join(t.TempDir(), "x.gguf")
		require.NoError(t, os.WriteFile(path, []byte("old"), 0o644))
		assert.ErrorIs(t, WriteFile(path, c.pairs, c.tensors), c.want, name)
		old, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, "old", string(old), "%s: the file that was there is still there", name)
		left, err := filepath.Glob(path + "*")
		require.NoError(t, err)
		assert.Len(t, left, 1, "%s: nothing is left behind", name)
	}
}

// TestEncode holds the rounding against bounds from the formats' definitions.
func TestEncode(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	values := make([]float32, 32*64)
	for i := range values {
		values[i] = float32(r.NormFloat64() * math.Pow(10, float64(i/32%8)-4))
	}
	copy(values, make([]float32, 32)) // a block of zeros
	for typ, bound := range map[Type]func(x, top float64) float64{
		F32:  func(x, top float64) float64 { return 0 },
		F16:  func(x, top float64) float64 { return x/2048 + 1./(1<<25) },
		Q8_0: func(x, top float64) float64 { return top*(.5/127+1./2048) + 1./(1<<25)*127 },
	} {
		data, err := Encode(nil, typ, values)
		require.NoError(t, err)
		size, ok := typ.Size(uint64(len(values)))
		require.True(t, ok)
		require.Len(t, data, int(size))
		got, err := Decode(typ, data)
		require.NoError(t, err)
		require.Len(t, got, len(values))
		for i, x := range values {
			var top float64
			for _, y := range values[i&^31 : i&^31+32] {
				top = max(top, math.Abs(float64(y)))
			}
			require.LessOrEqual(t, math.Abs(float64(got[i]-x)), bound(math.Abs(float64(x)), top), "%v, value %d", typ, i)
		}
		again, err := Encode(nil, typ, got)
		require.NoError(t, err)
		assert.Equal(t, data, again, "%v: what was read is written unchanged", typ)
	}
	bf16, err := Decode(BF16, []byte{0x80, 0x3f, 0x20, 0xc0})
	require.NoError(t, err)
	assert.Equal(t, []float32{1, -2.5}, bf16)
	for typ, data := range map[Type][]byte{F32: make([]byte, 6), Q8_0: make([]byte, 33), 12: make([]byte, 144), 99: nil} {
		_, err := Decode(typ, data)
		assert.ErrorIs(t, err, ErrType, "%v", typ)
	}
	_, err = Encode(nil, Q8_0, ramp(31))
	assert.ErrorIs(t, err, ErrType)
}

// FuzzParse: any bytes are read, in memory of their own size, or refused with an *Error; what was read and can be written reads the same.
func FuzzParse(f *testing.F) {
	f.Add(encode(f, pairs, tensors))
	f.Add(head(1, 1).str("k").u32(9).u32(8).u64(2).str("").str("x").str("t").u32(1).u64(1).u32(0).u64(0).b)
	f.Add(head(0, 1).str("general.alignment").u32(4).u32(1 << 31).b)
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, 1<<20+256*len(b), func() {
			file, err := parse(b)
			if err != nil {
				var e *Error
				require.ErrorAs(t, err, &e)
				return
			}
			pairs, tensors := all(t, file)
			var first, second bytes.Buffer
			if err := Write(&first, pairs, tensors); err != nil {
				return // an empty name, a value that is no number
			}
			again, err := parse(first.Bytes())
			require.NoError(t, err)
			pairs2, tensors2 := all(t, again)
			require.Equal(t, len(pairs), len(pairs2))
			require.NoError(t, Write(&second, pairs2, tensors2))
			require.True(t, bytes.Equal(first.Bytes(), second.Bytes()), "a file that was written, read and written is another")
		})
	})
}

// all returns what Write takes of a file: its keys but for the alignment, and the tensors in the types that keep their values.
func all(t *testing.T, f *File) (pairs []KeyValue, tensors []Tensor) {
	for _, key := range f.Keys {
		v := f.values[key]
		if key == "general.alignment" {
			continue
		}
		value := v.scalar
		if v.typ == Array {
			value = elements(t, f, key, v.elem)
		}
		pairs = append(pairs, KeyValue{key, value})
	}
	for _, info := range f.Tensors {
		values, err := f.Floats(info.Name)
		if err != nil {
			require.ErrorIs(t, err, ErrType)
			continue
		}
		require.Len(t, values, int(info.Elements()))
		if info.Type == F32 || info.Type == F16 {
			tensors = append(tensors, Tensor{info.Name, info.Type, info.Dims, values})
		}
	}
	return pairs, tensors
}

// elements reads an array of any type.
func elements(t *testing.T, f *File, key string, of ValueType) any {
	switch of {
	case Uint8:
		return whole[uint8](t, f, key)
	case Int8:
		return whole[int8](t, f, key)
	case Uint16:
		return whole[uint16](t, f, key)
	case Int16:
		return whole[int16](t, f, key)
	case Uint32:
		return whole[uint32](t, f, key)
	case Int32:
		return whole[int32](t, f, key)
	case Uint64:
		return whole[uint64](t, f, key)
	case Int64:
		return whole[int64](t, f, key)
	case Float32:
		return whole[float32](t, f, key)
	case Float64:
		return whole[float64](t, f, key)
	case Bool:
		return whole[bool](t, f, key)
	}
	return whole[string](t, f, key)
}

func whole[T Scalar](t *testing.T, f *File, key string) []T {
	got, err := GetArray[T](f, key)
	require.NoError(t, err)
	_, n, err := f.ArrayLen(key)
	require.NoError(t, err)
	require.Len(t, got, int(n))
	return got
}
