package weights

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"

	"github.com/lesskv/lesskv/weights/gguf"
)

// MaxLayers is how many layers a model has at most: llama.cpp's LLAMA_MAX_LAYERS.
const MaxLayers = 512

var fingerprint = regexp.MustCompile(`^[0-9a-f]{64}$`)

// number is a u32 key of the format and the field that it fills.
type number struct {
	key      string
	field    *int
	min, max int
}

func (a *Adapter) numbers() []number {
	return []number{
		{keyBlockCount, &a.Layers, 1, MaxLayers},
		{keyHeadCount, &a.Heads, 0, MaxSize},
		{keyHeadCountKV, &a.HeadsKV, 0, MaxSize},
		{keyKeyLength, &a.KeyLength, 0, MaxSize},
		{keyValueLength, &a.ValueLength, 0, MaxSize},
		{keyTrainedHeavy, &a.Trained.Heavy, 0, math.MaxInt32},
		{keyTrainedRecent, &a.Trained.Recent, 0, math.MaxInt32},
		{keyTrainedUbatch, &a.Trained.Ubatch, 1, math.MaxInt32},
		{keyTrainedContext, &a.Trained.Context, 1, math.MaxInt32},
	}
}

// size is a key that may have an array, one number for each layer, and the field of a layer that it fills.
type size struct {
	key string
	of  func(*Shape) *int
}

var sizes = []size{
	{keyHeadCount, func(s *Shape) *int { return &s.Heads }},
	{keyHeadCountKV, func(s *Shape) *int { return &s.HeadsKV }},
	{keyKeyLength, func(s *Shape) *int { return &s.KeyLength }},
	{keyValueLength, func(s *Shape) *int { return &s.ValueLength }},
}

// text is a string key of the format and the field that it fills.
type text struct {
	key   string
	field *string
}

func (a *Adapter) texts() []text {
	return []text{
		{keyArchitecture, &a.Architecture},
		{keyTrainedPolicy, &a.Trained.Policy},
		{keyBaseName, &a.BaseName},
		{keyFingerprint, &a.Fingerprint},
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
		return nil, &Error{File: path, Err: ErrNotAdapter, Found: gguf.Kind(stat.Mode()), Wanted: "a regular file"}
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
	if err := a.readSizes(f); err != nil {
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

// IsAdapter reports whether the file at path is an adapter, of whatever version and model.
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
	for _, k := range []struct{ key, want string }{{keyGeneralType, generalType}, {keyAdapterType, adapterType}} {
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
	version, err := gguf.Get[uint32](f, keyVersion)
	if err != nil {
		return err
	}
	if version < 1 || version > adapterVersion {
		return &Error{File: f.Name, Item: "key " + keyVersion, Err: ErrVersion, Found: fmt.Sprint(version), Wanted: fmt.Sprintf("1 to %d", adapterVersion), Advice: "train it again, or update"}
	}
	perLayer := map[string][]uint32{}
	for _, k := range a.texts() {
		if *k.field, err = gguf.Get[string](f, k.key); err != nil {
			return err
		}
	}
	if f.Has(keyDescription) {
		if a.Description, err = gguf.Get[string](f, keyDescription); err != nil {
			return err
		}
	}
	for _, k := range a.numbers() {
		if version > 1 && slices.ContainsFunc(sizes, func(s size) bool { return s.key == k.key }) {
			if _, _, err := f.ArrayLen(k.key); err == nil {
				if perLayer[k.key], err = gguf.GetArray[uint32](f, k.key); err != nil {
					return err
				}
				continue
			}
		}
		n, err := gguf.Get[uint32](f, k.key)
		if err != nil {
			return err
		}
		if n > math.MaxInt32 {
			return &Error{File: f.Name, Item: "key " + k.key, Err: ErrValue, Found: fmt.Sprint(n), Wanted: fmt.Sprintf("%d to %d", k.min, k.max)}
		}
		*k.field = int(n)
	}
	if a.Layers < 1 || a.Layers > MaxLayers {
		return a.checkKeys(f.Name) // says so
	}
	shapes := make([]Shape, a.Layers)
	for _, s := range sizes {
		numbers, ok := perLayer[s.key]
		if ok && len(numbers) != a.Layers {
			return &Error{File: f.Name, Item: "key " + s.key, Err: ErrValue, Found: fmt.Sprintf("an array of %d", len(numbers)), Wanted: fmt.Sprintf("one for each of %d layers", a.Layers)}
		}
		same := Shape{a.Heads, a.HeadsKV, a.KeyLength, a.ValueLength}
		for i := range shapes {
			n := *s.of(&same)
			if ok {
				n = min(int(numbers[i]), MaxSize+1) // which is refused
			}
			*s.of(&shapes[i]) = n
		}
	}
	a.setLayers(shapes)
	if version > 1 && f.Has(keyBudgetWeight) {
		if a.Budget, err = gguf.GetArray[float32](f, keyBudgetWeight); err != nil {
			return err
		}
	}
	if version > 2 && (f.Has(keySlotKeyType) || f.Has(keySlotValueType)) {
		if err := a.readSlotTypes(f); err != nil {
			return err
		}
	}
	return a.checkKeys(f.Name)
}

// checkLayer checks the sizes of a layer. One without key/value heads has no attention, and neither phi nor psi.
func (a *Adapter) checkLayer(file string, layer int, s Shape) error {
	of := ""
	if a.PerLayer != nil {
		of = fmt.Sprintf(" of layer %d", layer)
	}
	least := 1
	if a.PerLayer != nil && s.HeadsKV == 0 {
		least = 0
	}
	for _, k := range sizes {
		if n := *k.of(&s); n < least || n > MaxSize {
			return &Error{File: file, Item: "key " + k.key + of, Err: ErrValue, Found: fmt.Sprint(n), Wanted: fmt.Sprintf("%d to %d", least, MaxSize)}
		}
	}
	if s.HeadsKV > 0 && s.Heads%s.HeadsKV != 0 {
		return &Error{File: file, Item: "key " + keyHeadCountKV + of, Err: ErrValue, Found: fmt.Sprint(s.HeadsKV), Wanted: fmt.Sprintf("a divisor of %s, %d", keyHeadCount, s.Heads)}
	}
	return nil
}

// checkBudget checks the weights of the budgets.
func (a *Adapter) checkBudget(file string) error {
	heads := a.KVHeads()
	if a.Budget != nil && len(a.Budget) != heads {
		return &Error{File: file, Item: "key " + keyBudgetWeight, Err: ErrValue, Found: fmt.Sprintf("%d weights", len(a.Budget)), Wanted: fmt.Sprintf("one for each of %d key/value heads, layer by layer", heads)}
	}
	for i, w := range a.Budget {
		if !(w >= 0 && w <= MaxWeight) { // nor NaN
			return &Error{File: file, Item: "key " + keyBudgetWeight, Err: ErrValue, Found: fmt.Sprintf("%v at %d", w, i), Wanted: fmt.Sprintf("from 0 to %.0f", float64(MaxWeight))}
		}
	}
	return nil
}

// checkKeys checks what the keys say. The file is for errors.
func (a *Adapter) checkKeys(file string) error {
	for _, k := range a.numbers() {
		if *k.field < k.min || *k.field > k.max {
			return &Error{File: file, Item: "key " + k.key, Err: ErrValue, Found: fmt.Sprint(*k.field), Wanted: fmt.Sprintf("%d to %d", k.min, k.max)}
		}
	}
	if a.PerLayer != nil && len(a.PerLayer) != a.Layers {
		return &Error{File: file, Item: "key " + keyBlockCount, Err: ErrValue, Found: fmt.Sprint(a.Layers), Wanted: fmt.Sprintf("%d, the layers whose sizes are given", len(a.PerLayer))}
	}
	for i := range a.Layers {
		if err := a.checkLayer(file, i, a.Layer(i)); err != nil {
			return err
		}
		if a.PerLayer == nil {
			break // all are alike
		}
	}
	if err := cmp.Or(a.checkBudget(file), a.checkSlotTypes(file)); err != nil {
		return err
	}
	for _, k := range []text{{keyArchitecture, &a.Architecture}, {keyTrainedPolicy, &a.Trained.Policy}} {
		if *k.field == "" {
			return &Error{File: file, Item: "key " + k.key, Err: ErrValue, Found: "an empty string"}
		}
	}
	if !fingerprint.MatchString(a.Fingerprint) {
		return &Error{File: file, Item: "key " + keyFingerprint, Err: ErrValue, Found: fmt.Sprintf("%.80q", a.Fingerprint), Wanted: "64 lower-case hex digits"}
	}
	return nil
}

// readKernels reads the tensors. All are of known name and shape before the first one is read.
func (a *Adapter) readKernels(f *gguf.File) error {
	version, err := gguf.Get[uint32](f, keyVersion)
	if err != nil {
		return err
	}
	known := 0
	for i := range a.Kernels {
		parts := a.parts(i)
		var held [6]bool
		for j, p := range parts {
			info, ok := f.Tensor(p.name(i))
			if !ok || !a.knows(i, p, version) { // a stranger
				continue
			}
			held[j] = true
			known++
			if err := p.check(f.Name, i, info.Type, info.Dims); err != nil {
				return err
			}
		}
		for j, p := range parts {
			for k, other := range parts {
				if held[j] || !held[k] || !other.needs(p, version) {
					continue
				}
				what := "all of its tensors"
				if version > 1 {
					what = []string{"all tensors of phi", "all tensors of psi"}[p.of]
				}
				return &Error{File: f.Name, Item: "tensor " + p.name(i), Err: gguf.ErrMissing, Advice: fmt.Sprintf("layer %d needs %s or none", i, what)}
			}
		}
	}
	if known != len(f.Tensors) {
		return a.stranger(f, version)
	}
	for i := range a.Kernels {
		parts := a.parts(i)
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

// knows reports whether a version of the format has that part of a layer: none without attention, and no scale in the first.
func (a *Adapter) knows(layer int, p part, version uint32) bool {
	return a.Layer(layer).HeadsKV > 0 && (version > 1 || p.of != ofScale)
}

// stranger names a tensor that is not part of the format.
func (a *Adapter) stranger(f *gguf.File, version uint32) error {
	known, later := map[string]bool{}, map[string]bool{}
	for i := range a.Layers {
		for _, p := range a.parts(i) {
			known[p.name(i)] = a.knows(i, p, version)
			later[p.name(i)] = a.knows(i, p, adapterVersion)
		}
	}
	for _, t := range f.Tensors {
		if later[t.Name] && !known[t.Name] {
			return &Error{File: f.Name, Item: "tensor " + t.Name, Err: ErrTensor, Found: fmt.Sprintf("it in a file of version %d", version), Wanted: "version 2, the first with scales"}
		}
		if !known[t.Name] {
			return &Error{File: f.Name, Item: "tensor " + t.Name, Err: ErrTensor, Found: "a name that the format doesn't have", Wanted: fmt.Sprintf("%s and its like, layers 0 to %d, those with attention", a.parts(0)[0].name(0), a.Layers-1)}
		}
	}
	return nil
}

// check compares a tensor's type and dimensions with the format's.
func (p part) check(file string, layer int, t gguf.Type, dims []uint64) error {
	e := &Error{File: file, Item: "tensor " + p.name(layer), Err: ErrTensor}
	got, want := [3]uint64{1, 1, 1}, [3]uint64{1, 1, 1}
	copy(want[:], p.dims)
	rest := uint64(1)
	for i, d := range dims {
		if i < len(got) {
			got[i] = d
		} else {
			rest *= d
		}
	}
	if got != want || rest != 1 {
		e.Found, e.Wanted = fmt.Sprintf("dimensions %v", dims), fmt.Sprint(p.dims)
		e.Advice = "the keys " + keyRank + " to " + keyKeyLength + " say so"
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
			at := make([]int, len(p.dims)) // i, first dimension fastest
			for d, rest := 0, i; d < len(at); d++ {
				at[d], rest = rest%int(p.dims[d]), rest/int(p.dims[d])
			}
			return &Error{File: file, Item: "tensor " + p.name(layer), Err: ErrNotFinite, Found: fmt.Sprintf("%v at %v", x, at), Advice: "train it again"}
		}
	}
	return nil
}

// version returns the first version of the format that will do: more readers know it.
func (a *Adapter) version() uint32 {
	first := a.PerLayer == nil && a.Budget == nil
	for i := range a.Kernels {
		first = first && a.Kernels[i].HasPhi() == a.Kernels[i].HasPsi() && !a.Kernels[i].hasScale()
	}
	for _, k := range kernelSizes {
		if _, alike := k.common(a); !alike {
			return 3
		}
	}
	if a.SlotTypes != nil {
		return 3
	}
	if first {
		return 1
	}
	return 2
}

// number returns what the file has of one: a u32 or, where layers differ in it, an array.
func (a *Adapter) number(k number) any {
	for _, s := range sizes {
		if s.key != k.key || a.PerLayer == nil {
			continue
		}
		all := make([]uint32, a.Layers)
		differ := false
		for i := range all {
			all[i] = uint32(*s.of(&a.PerLayer[i]))
			differ = differ || all[i] != all[0]
		}
		if differ {
			return all
		}
	}
	return uint32(*k.field)
}

// Write checks the adapter as Read does and writes it to path, in the first version of the format that will do, each matrix in its own type; path is replaced only when
// everything is on the disk. Convert gives the matrices their types; the zero type is F32.
func (a *Adapter) Write(path string) error {
	if err := a.checkKeys(path); err != nil {
		return err
	}
	if len(a.Kernels) != a.Layers {
		return &Error{File: path, Item: "phi and psi", Err: ErrTensor, Found: fmt.Sprintf("those of %d layers", len(a.Kernels)), Wanted: fmt.Sprint(a.Layers)}
	}
	pairs := []gguf.KeyValue{
		{Key: keyGeneralType, Value: generalType},
		{Key: keyAdapterType, Value: adapterType},
		{Key: keyVersion, Value: a.version()},
	}
	for _, k := range a.texts() {
		pairs = append(pairs, gguf.KeyValue{Key: k.key, Value: *k.field})
	}
	if a.Description != "" {
		pairs = append(pairs, gguf.KeyValue{Key: keyDescription, Value: a.Description})
	}
	for _, k := range kernelSizes {
		pairs = append(pairs, gguf.KeyValue{Key: k.key, Value: k.value(a)})
	}
	for _, k := range a.numbers() {
		pairs = append(pairs, gguf.KeyValue{Key: k.key, Value: a.number(k)})
	}
	if a.Budget != nil {
		pairs = append(pairs, gguf.KeyValue{Key: keyBudgetWeight, Value: a.Budget})
	}
	for _, k := range slotTypes {
		if a.SlotTypes != nil {
			pairs = append(pairs, gguf.KeyValue{Key: k.key, Value: k.value(a)})
		}
	}
	var tensors []gguf.Tensor
	for i := range a.Kernels {
		if err := a.checkSizes(path, i); err != nil {
			return err
		}
		parts := a.parts(i)
		for j, m := range a.Kernels[i].matrices() {
			p := parts[j]
			if !a.Kernels[i].has(p) {
				continue
			}
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
