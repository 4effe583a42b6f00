package weights

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/weights/gguf"
)

// What an adapter may say, so that no product of its numbers overflows and no count allocates more than its tensors do.
const (
	maxLayers = 512 // llama.cpp's LLAMA_MAX_LAYERS
	maxSize   = MaxSize
)

// MaxSize is the most that a rank, a hidden size and the sizes of a model may be.
const MaxSize = kernels.AdapterMaxSize

var fingerprint = regexp.MustCompile(`^[0-9a-f]{64}$`)

// number is a u32 key of the format and the field that it fills.
type number struct {
	key      string
	field    *int
	min, max int
}

func (a *Adapter) numbers() []number {
	return []number{
		{kernels.KeyRank, &a.Rank, 1, maxSize},
		{kernels.KeyHidden, &a.Hidden, 1, maxSize},
		{kernels.KeyBlockCount, &a.Layers, 1, maxLayers},
		{kernels.KeyHeadCount, &a.Heads, 1, maxSize},
		{kernels.KeyHeadCountKV, &a.HeadsKV, 1, maxSize},
		{kernels.KeyKeyLength, &a.KeyLength, 1, maxSize},
		{kernels.KeyValueLength, &a.ValueLength, 1, maxSize},
		{kernels.KeyTrainedHeavy, &a.Trained.Heavy, 0, math.MaxInt32},
		{kernels.KeyTrainedRecent, &a.Trained.Recent, 0, math.MaxInt32},
		{kernels.KeyTrainedUbatch, &a.Trained.Ubatch, 1, math.MaxInt32},
		{kernels.KeyTrainedContext, &a.Trained.Context, 1, math.MaxInt32},
	}
}

// text is a string key of the format and the field that it fills.
type text struct {
	key   string
	field *string
}

func (a *Adapter) texts() []text {
	return []text{
		{kernels.KeyArchitecture, &a.Architecture},
		{kernels.KeyTrainedPolicy, &a.Trained.Policy},
		{kernels.KeyBaseName, &a.BaseName},
		{kernels.KeyFingerprint, &a.Fingerprint},
	}
}

// Read reads and checks the adapter at path. It fails with an *Error that wraps one of this package's faults or of gguf's.
func Read(path string) (*Adapter, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err // names the path
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !stat.Mode().IsRegular() {
		return nil, &Error{File: path, Err: ErrNotAdapter, Found: stat.Mode().Type().String(), Wanted: "a regular file"}
	}
	return read(path, file, stat.Size())
}

// read reads an adapter of size bytes from r.
func read(path string, r io.ReaderAt, size int64) (*Adapter, error) {
	f, err := gguf.Parse(path, r, size)
	if err != nil {
		return nil, err
	}
	a := &Adapter{}
	if err := a.readKeys(f); err != nil {
		return nil, err
	}
	if err := a.readKernels(f); err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	a.SHA256 = hex.EncodeToString(h.Sum(nil))
	return a, nil
}

// IsAdapter tells whether the file at path is an adapter, of whatever version and model.
func IsAdapter(path string) bool {
	f, err := gguf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return checkKind(f) == nil
}

// checkKind tells adapters from other files.
func checkKind(f *gguf.File) error {
	for _, k := range []struct{ key, want string }{{kernels.KeyGeneralType, kernels.GeneralTypeAdapter}, {kernels.KeyAdapterType, kernels.AdapterTypeLESS}} {
		got := "nothing"
		if f.Has(k.key) {
			s, err := gguf.Get[string](f, k.key)
			if err != nil {
				return err
			}
			got = fmt.Sprintf("%.32q", s)
		}
		if want := fmt.Sprintf("%q", k.want); got != want {
			return &Error{File: f.Name, Item: "key " + k.key, Err: ErrNotAdapter, Found: got, Wanted: want, Advice: "is it a model, or another kind of adapter?"}
		}
	}
	return nil
}

func (a *Adapter) readKeys(f *gguf.File) error {
	if err := checkKind(f); err != nil {
		return err
	}
	version, err := gguf.Get[uint32](f, kernels.KeyVersion)
	if err != nil {
		return err
	}
	if version != kernels.AdapterVersion {
		return &Error{File: f.Name, Item: "key " + kernels.KeyVersion, Err: ErrVersion, Found: fmt.Sprint(version), Wanted: fmt.Sprint(kernels.AdapterVersion), Advice: "train it again, or update"}
	}
	for _, k := range a.texts() {
		if *k.field, err = gguf.Get[string](f, k.key); err != nil {
			return err
		}
	}
	if f.Has(kernels.KeyDescription) {
		if a.Description, err = gguf.Get[string](f, kernels.KeyDescription); err != nil {
			return err
		}
	}
	for _, k := range a.numbers() {
		n, err := gguf.Get[uint32](f, k.key)
		if err != nil {
			return err
		}
		if n > math.MaxInt32 {
			return &Error{File: f.Name, Item: "key " + k.key, Err: ErrValue, Found: fmt.Sprint(n), Wanted: fmt.Sprintf("%d to %d", k.min, k.max)}
		}
		*k.field = int(n)
	}
	return a.checkKeys(f.Name)
}

// checkKeys checks what the keys say. The file is for errors.
func (a *Adapter) checkKeys(file string) error {
	for _, k := range a.numbers() {
		if *k.field < k.min || *k.field > k.max {
			return &Error{File: file, Item: "key " + k.key, Err: ErrValue, Found: fmt.Sprint(*k.field), Wanted: fmt.Sprintf("%d to %d", k.min, k.max)}
		}
	}
	if a.Heads%a.HeadsKV != 0 {
		return &Error{File: file, Item: "key " + kernels.KeyHeadCountKV, Err: ErrValue, Found: fmt.Sprint(a.HeadsKV), Wanted: fmt.Sprintf("a divisor of %s, %d", kernels.KeyHeadCount, a.Heads)}
	}
	for _, k := range []text{{kernels.KeyArchitecture, &a.Architecture}, {kernels.KeyTrainedPolicy, &a.Trained.Policy}} {
		if *k.field == "" {
			return &Error{File: file, Item: "key " + k.key, Err: ErrValue, Found: "an empty string"}
		}
	}
	if !fingerprint.MatchString(a.Fingerprint) {
		return &Error{File: file, Item: "key " + kernels.KeyFingerprint, Err: ErrValue, Found: fmt.Sprintf("%.80q", a.Fingerprint), Wanted: "64 lower-case hex digits"}
	}
	return nil
}

// readKernels reads the tensors. All are of known name and shape before the first one is read.
func (a *Adapter) readKernels(f *gguf.File) error {
	parts := a.parts()
	known := 0
	a.Kernels = make([]Kernels, a.Layers)
	for i := range a.Kernels {
		held := 0
		for _, p := range parts {
			info, ok := f.Tensor(p.name(i))
			if !ok {
				continue
			}
			held++
			if err := p.check(f.Name, i, info.Type, info.Dims); err != nil {
				return err
			}
		}
		if held != 0 && held != len(parts) {
			for _, p := range parts {
				if _, ok := f.Tensor(p.name(i)); !ok {
					return &Error{File: f.Name, Item: "tensor " + p.name(i), Err: gguf.ErrMissing, Advice: fmt.Sprintf("layer %d needs all of its %d tensors or none", i, len(parts))}
				}
			}
		}
		known += held
	}
	if known != len(f.Tensors) {
		return a.stranger(f)
	}
	for i := range a.Kernels {
		for j, m := range a.Kernels[i].matrices() {
			name := parts[j].name(i)
			info, ok := f.Tensor(name)
			if !ok {
				continue
			}
			values, err := f.Floats(name)
			if err != nil {
				return err
			}
			*m = Matrix{Type: info.Type, Values: values}
			if err := parts[j].checkValues(f.Name, i, values); err != nil {
				return err
			}
		}
	}
	return nil
}

// stranger names a tensor that is not part of the format.
func (a *Adapter) stranger(f *gguf.File) error {
	known := map[string]bool{}
	for i := range a.Layers {
		for _, p := range a.parts() {
			known[p.name(i)] = true
		}
	}
	for _, t := range f.Tensors {
		if !known[t.Name] {
			return &Error{File: f.Name, Item: "tensor " + t.Name, Err: ErrTensor, Found: "a name that the format doesn't have", Wanted: fmt.Sprintf("%s and its like, layers 0 to %d", a.parts()[0].name(0), a.Layers-1)}
		}
	}
	return nil
}

// check compares a tensor's type and dimensions with the format's.
func (p part) check(file string, layer int, t gguf.Type, dims []uint64) error {
	e := &Error{File: file, Item: "tensor " + p.name(layer), Err: ErrTensor}
	got := [3]uint64{1, 1, 1}
	rest := uint64(1)
	for i, d := range dims {
		if i < len(got) {
			got[i] = d
		} else {
			rest *= d
		}
	}
	if got != [3]uint64(p.dims) || rest != 1 {
		e.Found, e.Wanted = fmt.Sprintf("dimensions %v", dims), fmt.Sprint(p.dims)
		e.Advice = "the keys " + kernels.KeyRank + " to " + kernels.KeyKeyLength + " say so"
		return e
	}
	switch {
	case p.onlyF32 && t != gguf.F32:
		e.Found, e.Wanted = t.String(), "F32"
	case t != gguf.F32 && t != gguf.F16 && t != gguf.Q8_0:
		e.Found, e.Wanted = t.String(), "F32, F16 or Q8_0"
	case p.typeFor(t) != t:
		e.Found, e.Wanted = fmt.Sprintf("%v with rows of %d", t, p.dims[0]), "F32 or F16"
	default:
		return nil
	}
	return e
}

// checkValues looks for weights that would poison the state.
func (p part) checkValues(file string, layer int, values []float32) error {
	for i, x := range values {
		if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
			in, out := i%int(p.dims[0]), i/int(p.dims[0])
			return &Error{File: file, Item: "tensor " + p.name(layer), Err: ErrNotFinite, Found: fmt.Sprintf("%v at [%d %d %d]", x, in, out%int(p.dims[1]), out/int(p.dims[1])), Advice: "train it again"}
		}
	}
	return nil
}

// Write checks the adapter as Read does and writes it to path, each matrix in its own type; path is replaced only when
// everything is on the disk. Convert gives the matrices their types; the zero type is F32.
func (a *Adapter) Write(path string) error {
	if err := a.checkKeys(path); err != nil {
		return err
	}
	if len(a.Kernels) != a.Layers {
		return &Error{File: path, Item: "kernels", Err: ErrTensor, Found: fmt.Sprintf("those of %d layers", len(a.Kernels)), Wanted: fmt.Sprint(a.Layers)}
	}
	pairs := []gguf.KeyValue{
		{Key: kernels.KeyGeneralType, Value: kernels.GeneralTypeAdapter},
		{Key: kernels.KeyAdapterType, Value: kernels.AdapterTypeLESS},
		{Key: kernels.KeyVersion, Value: uint32(kernels.AdapterVersion)},
	}
	for _, k := range a.texts() {
		pairs = append(pairs, gguf.KeyValue{Key: k.key, Value: *k.field})
	}
	if a.Description != "" {
		pairs = append(pairs, gguf.KeyValue{Key: kernels.KeyDescription, Value: a.Description})
	}
	for _, k := range a.numbers() {
		pairs = append(pairs, gguf.KeyValue{Key: k.key, Value: uint32(*k.field)})
	}
	var tensors []gguf.Tensor
	parts := a.parts()
	for i := range a.Kernels {
		if a.Kernels[i].Empty() {
			continue
		}
		for j, m := range a.Kernels[i].matrices() {
			p := parts[j]
			if uint64(len(m.Values)) != p.elements() {
				return &Error{File: path, Item: "tensor " + p.name(i), Err: ErrTensor, Found: fmt.Sprintf("%d values", len(m.Values)), Wanted: fmt.Sprintf("%d, for dimensions %v", p.elements(), p.dims)}
			}
			if err := p.check(path, i, m.Type, p.dims); err != nil {
				return err
			}
			if err := p.checkValues(path, i, m.Values); err != nil {
				return err
			}
			tensors = append(tensors, gguf.Tensor{Name: p.name(i), Type: m.Type, Dims: p.dims, Values: m.Values})
		}
	}
	return gguf.WriteFile(path, pairs, tensors)
}
