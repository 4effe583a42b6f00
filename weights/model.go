package weights

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Model is what its GGUF says about a base model.
type Model struct {
	Name         string // general.name; may be empty
	Architecture string
	Geometry
	Vocab       int    // tokens
	Context     int    // tokens that it was trained for
	Fingerprint string // of algorithm.md: the same for every quantisation, 64 lower-case hex digits

	owners []int // of each layer, the one whose keys and values it has; nil: its own
	kinds  layerKinds
}

// Owner returns the layer whose keys and values a layer attends to: itself, or one that it shares them with.
func (m *Model) Owner(layer int) int {
	if m.owners != nil {
		return m.owners[layer]
	}
	return layer
}

// ReadModel reads the header and the one-dimensional tensors of the model at path. It fails with an *Error: ErrModel for a
// model that no adapter can be made for (no attention, a part of a split model), gguf's faults for a bad file. Whether LESS can serve its architecture is for the runtime to say.
func ReadModel(path string) (*Model, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := &Model{}
	if m.Architecture, err = gguf.Get[string](f, keyArchitecture); err != nil {
		return nil, err
	}
	if t, err := gguf.Get[string](f, keyGeneralType); err == nil && t != "model" {
		return nil, &Error{File: path, Item: "key " + keyGeneralType, Err: ErrModel, Found: fmt.Sprintf("%.32q", t), Wanted: `"model"`, Advice: "give the base model's file"}
	}
	if n, err := gguf.Get[uint16](f, "split.count"); err == nil && n > 1 {
		return nil, &Error{File: path, Item: "key split.count", Err: ErrModel, Found: fmt.Sprintf("one of %d parts", n), Wanted: "a whole model", Advice: "join them with llama.cpp's llama-gguf-split --merge"}
	}
	if name, err := gguf.Get[string](f, "general.name"); err == nil {
		m.Name = name
	}
	if err := m.readGeometry(f); err != nil {
		return nil, err
	}
	if m.Context, err = m.number(f, "context_length", -1); err != nil {
		return nil, err
	}
	if m.Vocab, err = m.vocabulary(f); err != nil {
		return nil, err
	}
	if m.Fingerprint, err = m.fingerprint(f); err != nil {
		return nil, err
	}
	return m, nil
}

// key returns the name of one of the architecture's keys.
func (m *Model) key(name string) string { return m.Architecture + "." + name }

// number reads a u32 of the architecture, or returns fallback if the file has none and that isn't negative.
func (m *Model) number(f *gguf.File, name string, fallback int) (int, error) {
	key := m.key(name)
	if !f.Has(key) && fallback >= 0 {
		return fallback, nil
	}
	n, err := gguf.Get[uint32](f, key)
	if err == nil && n > math.MaxInt32 {
		err = &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprint(n), Wanted: "less than 2^31"}
	}
	return int(n), err
}

func (m *Model) readGeometry(f *gguf.File) (err error) {
	if m.Layers, err = m.number(f, "block_count", -1); err != nil {
		return err
	}
	// the layers after them predict further tokens: the model is the same with or without
	ahead, err := m.number(f, "nextn_predict_layers", 0)
	if err != nil {
		return err
	}
	m.Layers -= ahead
	if m.Layers < 1 || m.Layers > MaxLayers {
		return &Error{File: f.Name, Item: "key " + m.key("block_count"), Err: ErrModel, Found: fmt.Sprint(m.Layers), Wanted: fmt.Sprintf("1 to %d", MaxLayers)}
	}
	none := make([]int, m.Layers)
	heads, err := m.heads(f, "attention.head_count", none)
	if err != nil {
		return err
	}
	headsKV, err := m.heads(f, "attention.head_count_kv", heads)
	if err != nil {
		return err
	}
	shapes := make([]Shape, m.Layers)
	attends := false
	for i := range shapes {
		s := &shapes[i]
		s.Heads, s.HeadsKV = heads[i], headsKV[i]
		attends = attends || s.HeadsKV > 0
		if s.HeadsKV > 0 && (s.Heads < 1 || s.Heads%s.HeadsKV != 0) || i == m.Layers-1 && !attends {
			return &Error{File: f.Name, Item: "key " + m.key("attention.head_count"), Err: ErrModel, Found: fmt.Sprintf("%d query and %d key/value heads in layer %d", s.Heads, s.HeadsKV, i), Wanted: "a multiple of the key/value heads, which LESS is about"}
		}
	}
	embedding, err := m.number(f, "embedding_length", -1)
	if err != nil {
		return err
	}
	if err := m.readWindows(f, headsKV); err != nil {
		return err
	}
	fallback := 0 // as llama.cpp has it
	if heads[0] > 0 {
		fallback = embedding / heads[0]
	}
	for _, k := range []struct {
		name  string
		field func(*Shape) *int
	}{
		{"attention.key_length", func(s *Shape) *int { return &s.KeyLength }},
		{"attention.value_length", func(s *Shape) *int { return &s.ValueLength }},
	} {
		full, err := m.number(f, k.name, fallback)
		if err != nil {
			return err
		}
		window, err := m.number(f, k.name+"_swa", full)
		if err != nil {
			return err
		}
		if window != full && m.kinds.windowed == nil {
			return &Error{File: f.Name, Item: "key " + m.key(k.name+"_swa"), Err: ErrModel, Found: fmt.Sprint(window), Wanted: fmt.Sprintf("%d, or an array %s", full, m.key("attention.sliding_window_pattern"))}
		}
		for i := range shapes {
			n := full
			if m.Window(i) > 0 {
				n = window
			}
			if n < 1 || n > MaxSize {
				return &Error{File: f.Name, Item: "key " + m.key(k.name), Err: ErrModel, Found: fmt.Sprint(n), Wanted: fmt.Sprintf("1 to %d", MaxSize)}
			}
			*k.field(&shapes[i]) = n
		}
	}
	m.setLayers(shapes)
	if err := m.readRecurrent(f, headsKV, embedding); err != nil {
		return err
	}
	return m.readOwners(f)
}

// readOwners finds the layers that share another one's keys and values: in the two architectures that have some the last ones. They
// share those of the last layer that has its own or, those with a sliding window, of the one before it.
func (m *Model) readOwners(f *gguf.File) error {
	own, windowed := m.Layers, m.kinds.windowed
	switch m.Architecture {
	case "gemma3n":
		own = min(own, 20)
	case "gemma4":
		shared, err := m.number(f, "attention.shared_kv_layers", 0)
		if err != nil {
			return err
		}
		own -= shared
	}
	if own == m.Layers {
		return nil
	}
	if own < 2 || windowed == nil {
		return &Error{File: f.Name, Item: "key " + m.key("attention.shared_kv_layers"), Err: ErrModel, Found: fmt.Sprint(m.Layers - own), Wanted: fmt.Sprintf("at most %d, and an array %s", m.Layers-2, m.key("attention.sliding_window_pattern"))}
	}
	m.owners = make([]int, m.Layers)
	for i := range m.owners {
		m.owners[i] = i
		if i >= own {
			m.owners[i] = own - 1
			if windowed[i] {
				m.owners[i] = own - 2
			}
		}
	}
	return nil
}

// heads reads numbers of heads: a scalar, or an array with one number for each layer.
func (m *Model) heads(f *gguf.File, name string, fallback []int) ([]int, error) {
	key := m.key(name)
	all := make([]int, m.Layers)
	elem, n, err := f.ArrayLen(key)
	if err != nil { // not an array
		if !f.Has(key) {
			return fallback, nil
		}
		same, err := m.number(f, name, -1)
		for i := range all {
			all[i] = same
		}
		if err == nil && same > MaxSize {
			err = &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprint(same), Wanted: fmt.Sprintf("1 to %d", MaxSize)}
		}
		return all, err
	}
	counts, err := m.array(f, key, elem)
	if err != nil {
		return nil, err
	}
	if n < uint64(m.Layers) {
		return nil, &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprintf("an array of %d", n), Wanted: fmt.Sprintf("one for each of %d layers", m.Layers)}
	}
	for i := range all {
		if counts[i] < 0 || counts[i] > int64(MaxSize) {
			return nil, &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprintf("%d in layer %d", counts[i], i), Wanted: fmt.Sprintf("0 to %d", MaxSize)}
		}
		all[i] = int(counts[i])
	}
	return all, nil
}

// array reads an array of whole numbers.
func (m *Model) array(f *gguf.File, key string, elem gguf.ValueType) ([]int64, error) {
	switch elem {
	case gguf.Int32:
		return array[int32](f, key)
	case gguf.Uint32:
		return array[uint32](f, key)
	}
	return nil, &Error{File: f.Name, Item: "key " + key, Err: gguf.ErrType, Found: fmt.Sprintf("an array of %v", elem), Wanted: "u32 or i32"}
}

func array[T int32 | uint32](f *gguf.File, key string) ([]int64, error) {
	values, err := gguf.GetArray[T](f, key)
	out := make([]int64, len(values))
	for i, v := range values {
		out[i] = int64(v)
	}
	return out, err
}

// vocabulary returns the number of tokens as llama.cpp counts them: the list's, or vocab_size where there is no tokenizer.
func (m *Model) vocabulary(f *gguf.File) (int, error) {
	tokenizer, err := gguf.Get[string](f, "tokenizer.ggml.model")
	if err == nil && tokenizer != "none" && tokenizer != "no_vocab" {
		_, n, err := f.ArrayLen("tokenizer.ggml.tokens")
		return int(n), err
	}
	return m.number(f, "vocab_size", 0)
}

// inLayer says whether a tensor belongs to one of the layers that count.
func (m *Model) inLayer(name string) bool {
	rest, ok := strings.CutPrefix(name, "blk.")
	number, _, _ := strings.Cut(rest, ".")
	layer, err := strconv.Atoi(number)
	return ok && (err != nil || layer < m.Layers)
}

// fingerprint hashes what quantisation leaves alone: sizes, and the norms and biases of the layers ("The adapter file" in algorithm.md).
func (m *Model) fingerprint(f *gguf.File) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %d %d %d %d %d\n", m.Architecture, m.Layers, m.Heads, m.HeadsKV, m.KeyLength, m.ValueLength, m.Vocab)
	var names []string
	for _, t := range f.Tensors {
		vector := t.Elements() == t.Dims[0]
		if vector && (m.inLayer(t.Name) || strings.HasPrefix(t.Name, "output_norm")) {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names) // by bytes
	var data []byte
	for _, name := range names {
		values, err := f.Floats(name)
		if err != nil {
			return "", err
		}
		data = append(append(data[:0], name...), 0)
		for _, x := range values {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(x))
		}
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
