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

	"github.com/lesskv/lesskv/cgo/kernels"
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
}

// ReadModel reads the header and the one-dimensional tensors of the model at path. It fails with an *Error: ErrModel for a
// model that no adapter of version 1 can be made for (no attention, layers that differ, a part of a split model), gguf's
// faults for a bad file. Whether LESS can serve its architecture is for the runtime to say.
func ReadModel(path string) (*Model, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := &Model{}
	if m.Architecture, err = gguf.Get[string](f, kernels.KeyArchitecture); err != nil {
		return nil, err
	}
	if t, err := gguf.Get[string](f, kernels.KeyGeneralType); err == nil && t != "model" {
		return nil, &Error{File: path, Item: "key " + kernels.KeyGeneralType, Err: ErrModel, Found: fmt.Sprintf("%.32q", t), Wanted: `"model"`, Advice: "give the base model's file"}
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
	if m.Layers < 1 || m.Layers > maxLayers {
		return &Error{File: f.Name, Item: "key " + m.key("block_count"), Err: ErrModel, Found: fmt.Sprint(m.Layers), Wanted: fmt.Sprintf("1 to %d", maxLayers)}
	}
	if m.Heads, err = m.heads(f, "attention.head_count", 0); err != nil {
		return err
	}
	if m.HeadsKV, err = m.heads(f, "attention.head_count_kv", m.Heads); err != nil {
		return err
	}
	if m.Heads < 1 || m.HeadsKV < 1 || m.Heads%m.HeadsKV != 0 || m.Heads > maxSize {
		return &Error{File: f.Name, Item: "key " + m.key("attention.head_count"), Err: ErrModel, Found: fmt.Sprintf("%d query and %d key/value heads", m.Heads, m.HeadsKV), Wanted: "a multiple of the key/value heads, which LESS is about"}
	}
	embedding, err := m.number(f, "embedding_length", -1)
	if err != nil {
		return err
	}
	for _, k := range []struct {
		name  string
		field *int
	}{{"attention.key_length", &m.KeyLength}, {"attention.value_length", &m.ValueLength}} {
		if *k.field, err = m.number(f, k.name, embedding/m.Heads); err != nil {
			return err
		}
		if *k.field < 1 || *k.field > maxSize {
			return &Error{File: f.Name, Item: "key " + m.key(k.name), Err: ErrModel, Found: fmt.Sprint(*k.field), Wanted: fmt.Sprintf("1 to %d", maxSize)}
		}
	}
	return nil
}

// heads reads a number of heads: a scalar, or an array with one number for each layer, which must be equal.
func (m *Model) heads(f *gguf.File, name string, fallback int) (int, error) {
	key := m.key(name)
	elem, n, err := f.ArrayLen(key)
	if err != nil { // not an array
		return m.number(f, name, fallback)
	}
	var counts []int64
	switch elem {
	case gguf.Int32:
		counts, err = array[int32](f, key)
	case gguf.Uint32:
		counts, err = array[uint32](f, key)
	default:
		err = &Error{File: f.Name, Item: "key " + key, Err: gguf.ErrType, Found: fmt.Sprintf("an array of %v", elem), Wanted: "u32 or i32"}
	}
	if err != nil {
		return 0, err
	}
	if n < uint64(m.Layers) {
		return 0, &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprintf("an array of %d", n), Wanted: fmt.Sprintf("one for each of %d layers", m.Layers)}
	}
	for i, c := range counts[:m.Layers] {
		if c != counts[0] {
			return 0, &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprintf("%d in layer 0, %d in layer %d", counts[0], c, i), Wanted: "the same in every layer", Advice: "adapters of version 1 don't cover this model"}
		}
	}
	if counts[0] < 0 || counts[0] > maxSize {
		return 0, &Error{File: f.Name, Item: "key " + key, Err: ErrModel, Found: fmt.Sprint(counts[0]), Wanted: fmt.Sprintf("1 to %d", maxSize)}
	}
	return int(counts[0]), nil
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
