package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// A damaged adapter is refused or, where the damage is in a weight, loaded; the process never ends. A model is refused as
// an adapter, and so is an adapter of another model.
func TestDamagedAdapter(t *testing.T) {
	good, err := os.ReadFile("testdata/gopher-5m.h2o-41.lesskv.gguf")
	require.NoError(t, err)
	const header = 4096 // keys and tensors are described in the first few kilobytes
	w := start(t, worker.Patched)
	path := filepath.Join(t.TempDir(), "damaged.lesskv.gguf")

	load := func(model string, data []byte) error {
		require.NoError(t, os.WriteFile(path, data, 0o644))
		_, err := w.Open(worker.Config{Model: model, Context: 256, LESS: &worker.LESS{Policy: "h2o", Budget: 41, Adapter: path}})
		var refused *worker.Error
		if err != nil {
			require.ErrorAs(t, err, &refused, "the worker died")
			return err
		}
		require.NoError(t, w.CloseModel())
		return nil
	}
	require.NoError(t, load(gopher, good))

	r := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		n := r.IntN(len(good))
		assert.Error(t, load(gopher, good[:n]), "cut off after %d bytes", n)
	}
	for n := range 8 {
		assert.Error(t, load(gopher, good[:n*3]), "cut off after %d bytes", n*3)
	}
	// Wherever the damage is, the runtime takes what package weights takes, and no more.
	model, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	valid := func() error {
		a, err := weights.Read(path)
		if err != nil {
			return err
		}
		if _, err := weights.Check(a, model); err != nil {
			return err
		}
		_, err = weights.CheckUse(a, weights.Trained{Policy: "h2o", Heavy: 20, Recent: 21, Ubatch: 256, Context: 256})
		return err
	}
	refused := 0
	for range 160 {
		bad := append([]byte(nil), good...)
		at := r.IntN(header)
		copy(bad[at:], []byte{0xff, 0, byte(r.IntN(256)), 0xff}[:1+r.IntN(4)])
		err, want := load(gopher, bad), valid()
		if err != nil {
			refused++
		}
		assert.Equal(t, want == nil, err == nil, "changed at %d: the runtime says %v, package weights %v", at, err, want)
	}
	assert.Greater(t, refused, 80)
	assert.Less(t, refused, 160)

	whole, err := os.ReadFile(gopher)
	require.NoError(t, err)
	assert.ErrorContains(t, load(gopher, whole), "general.type")
	assert.ErrorContains(t, load(tiny(t, "llama"), good), "less.block_count")
	assert.ErrorContains(t, load(tiny(t, "qwen3"), good), "general.architecture")
}

// rawTensor is a tensor as an adapter's file describes it, whether that makes sense or not.
type rawTensor struct {
	name   string
	dims   []uint64
	typ    uint32
	offset int64 // -1: where it belongs
	data   []byte
}

// rawAdapter is an adapter's file, to be spoilt and written.
type rawAdapter struct {
	version uint32
	pairs   []gguf.KeyValue
	tensors []rawTensor
}

func readRaw(t *testing.T, path string) *rawAdapter {
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	a := &rawAdapter{version: f.Version}
	for _, key := range f.Keys {
		if text, err := gguf.Get[string](f, key); err == nil {
			a.set(key, text)
			continue
		}
		if numbers, err := gguf.GetArray[uint32](f, key); err == nil {
			a.set(key, numbers)
			continue
		}
		if numbers, err := gguf.GetArray[float32](f, key); err == nil {
			a.set(key, numbers)
			continue
		}
		n, err := gguf.Get[uint32](f, key)
		require.NoError(t, err, key)
		if key != "general.alignment" {
			a.set(key, n)
		}
	}
	for _, info := range f.Tensors {
		data, err := f.Raw(info.Name)
		require.NoError(t, err)
		a.tensors = append(a.tensors, rawTensor{info.Name, info.Dims, uint32(info.Type), -1, data})
	}
	return a
}

// set gives a key a value, nil: takes it out.
func (a *rawAdapter) set(key string, value any) {
	a.pairs = slices.DeleteFunc(a.pairs, func(p gguf.KeyValue) bool { return p.Key == key })
	if value != nil {
		a.pairs = append(a.pairs, gguf.KeyValue{Key: key, Value: value})
	}
}

// last makes the tensor of a name the last one, so that its size is nobody's offset, and returns it.
func (a *rawAdapter) last(name string) *rawTensor {
	i := slices.IndexFunc(a.tensors, func(t rawTensor) bool { return t.name == name })
	at := a.tensors[i]
	a.tensors = append(slices.Delete(a.tensors, i, i+1), at)
	return &a.tensors[len(a.tensors)-1]
}

func (a *rawAdapter) bytes() []byte {
	le := binary.LittleEndian
	text := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
	b := le.AppendUint32([]byte("GGUF"), a.version)
	b = le.AppendUint64(b, uint64(len(a.tensors)))
	b = le.AppendUint64(b, uint64(len(a.pairs)))
	for _, p := range a.pairs {
		b = text(b, p.Key)
		switch v := p.Value.(type) {
		case uint32:
			b = le.AppendUint32(le.AppendUint32(b, 4), v)
		case int32:
			b = le.AppendUint32(le.AppendUint32(b, 5), uint32(v))
		case string:
			b = text(le.AppendUint32(b, 8), v)
		case []uint32:
			b = le.AppendUint64(le.AppendUint32(le.AppendUint32(b, 9), 4), uint64(len(v)))
			for _, x := range v {
				b = le.AppendUint32(b, x)
			}
		case []float32:
			b = le.AppendUint64(le.AppendUint32(le.AppendUint32(b, 9), 6), uint64(len(v)))
			for _, x := range v {
				b = le.AppendUint32(b, math.Float32bits(x))
			}
		default:
			panic(fmt.Sprintf("no way to write a %T", v))
		}
	}
	var data []byte
	for _, t := range a.tensors {
		b = le.AppendUint32(text(b, t.name), uint32(len(t.dims)))
		for _, d := range t.dims {
			b = le.AppendUint64(b, d)
		}
		offset := int64(len(data))
		if t.offset >= 0 {
			offset = t.offset
		}
		b = le.AppendUint64(le.AppendUint32(b, t.typ), uint64(offset))
		data = append(data, t.data...)
		data = append(data, make([]byte, -len(data)&31)...)
	}
	b = append(b, make([]byte, -len(b)&31)...)
	return append(b, data...)
}

// bothReaders returns what reads an adapter for a model twice: here, package weights, and there, the runtime.
func bothReaders(t *testing.T, base string) func(data []byte, force bool) (here, there error) {
	model, err := weights.ReadModel(base)
	require.NoError(t, err)
	w := start(t, worker.Patched)
	path := filepath.Join(t.TempDir(), "a.lesskv.gguf")
	return func(data []byte, force bool) (here, there error) {
		require.NoError(t, os.WriteFile(path, data, 0o644))
		a, here := weights.Read(path)
		if here == nil {
			_, here = weights.Check(a, model)
			if force && errors.Is(here, weights.ErrFingerprint) {
				here = nil
			}
		}
		_, there = w.Open(worker.Config{Model: base, Context: 256, LESS: &worker.LESS{Policy: "h2o", Budget: 41, Adapter: path, ForceAdapter: force}})
		var refused *worker.Error
		if there != nil {
			require.ErrorAs(t, there, &refused, "the worker died")
		} else {
			require.NoError(t, w.CloseModel())
		}
		return here, there
	}
}

// So it is with adapters of version 2, for a model whose layers differ and share.
func TestBothReadersOfVersion2(t *testing.T) {
	path := tiny(t, "gemma4") // ten layers; 6 and 8 share those of 4, windowed, and 7 and 9 of 5
	base, err := weights.ReadModel(path)
	require.NoError(t, err)
	adapter := weights.Random(base, 4, 8, weights.Trained{Policy: "h2o", Heavy: 20, Recent: 21, Ubatch: 32, Context: 256}, 1)
	adapter.Budget = make([]float32, heads(base))
	for i := range adapter.Budget {
		adapter.Budget[i] = float32(i)
	}
	file := filepath.Join(t.TempDir(), "a.lesskv.gguf")
	require.NoError(t, adapter.Write(file))
	both := bothReaders(t, path)
	key := func(name string, value any) func(*rawAdapter) { return func(a *rawAdapter) { a.set(name, value) } }
	without := func(prefixes ...string) func(*rawAdapter) {
		return func(a *rawAdapter) {
			a.tensors = slices.DeleteFunc(a.tensors, func(t rawTensor) bool {
				return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(t.name, p) })
			})
		}
	}
	numbers := func(name string, at int, n uint32) func(*rawAdapter) {
		return func(a *rawAdapter) {
			for i, p := range a.pairs {
				if p.Key == name {
					v := slices.Clone(p.Value.([]uint32))
					v[at] = n
					a.pairs[i].Value = v
				}
			}
		}
	}
	floats := func(at int, x float32) func(*rawAdapter) {
		return func(a *rawAdapter) {
			v := slices.Clone(adapter.Budget)
			v[at] = x
			a.set("less.budget.weight", v)
		}
	}
	scale := func(layer int, typ gguf.Type, x float32, dims ...uint64) func(*rawAdapter) {
		return func(a *rawAdapter) {
			n := uint64(1)
			for _, d := range dims {
				n *= d
			}
			values := make([]float32, n)
			data, err := gguf.Encode(nil, typ, values)
			require.NoError(t, err)
			if typ == gguf.F32 {
				binary.LittleEndian.PutUint32(data[len(data)-4:], math.Float32bits(x)) // which Encode would refuse
			}
			a.tensors = append(a.tensors, rawTensor{fmt.Sprintf("blk.%d.less.phi.scale", layer), dims, uint32(typ), -1, data})
		}
	}
	of := func(layer int) uint64 { return uint64(base.Layer(layer).Heads) }
	after := func(changes ...func(*rawAdapter)) func(*rawAdapter) {
		return func(a *rawAdapter) {
			for _, change := range changes {
				change(a)
			}
		}
	}
	for name, change := range map[string]func(*rawAdapter){
		"scales":                     scale(5, gguf.F32, 120, of(5)),
		"a sharer's scales":          scale(7, gguf.F32, -120, of(7)),
		"scales of one row":          scale(5, gguf.F32, 120, of(5), 1),
		"as it is":                   func(*rawAdapter) {},
		"no weights":                 key("less.budget.weight", nil),
		"a weight of 0":              floats(3, 0),
		"an allocation alone":        func(a *rawAdapter) { a.tensors = nil },
		"without a sharer's phi":     without("blk.7.less.phi."),
		"without an owner's phi":     without("blk.5.less.phi."),
		"without owner and sharers":  without("blk.5.", "blk.7.", "blk.9."),
		"without a layer of its own": without("blk.2."),
	} {
		a := readRaw(t, file)
		change(a)
		here, there := both(a.bytes(), false)
		assert.NoError(t, here, "%s: package weights", name)
		assert.NoError(t, there, "%s: the runtime", name)
	}
	for name, change := range map[string]func(*rawAdapter){
		"too few scales":          scale(5, gguf.F32, 1, of(5)-1),
		"scales in a column":      scale(5, gguf.F32, 1, 1, of(5)),
		"scales in F16":           scale(5, gguf.F16, 1, of(5)),
		"a scale that is none":    scale(5, gguf.F32, float32(math.NaN()), of(5)),
		"an infinite scale":       scale(7, gguf.F32, float32(math.Inf(1)), of(7)),
		"scales without phi":      after(without("blk.7.less.phi."), scale(7, gguf.F32, 1, of(7))),
		"scales of no layer":      scale(10, gguf.F32, 1, of(9)),
		"version 1":               key("less.version", uint32(1)),
		"a number for all layers": key("less.head_count", uint32(8)),
		"another number of heads": numbers("less.head_count", 5, 8),
		"another number of KV":    numbers("less.head_count_kv", 5, 2),
		"another key length":      numbers("less.key_length", 9, 16),
		"another value length":    numbers("less.value_length", 0, 8),
		"no heads":                numbers("less.head_count", 2, 0),
		"no KV heads":             numbers("less.head_count_kv", 2, 0),
		"too few numbers":         key("less.head_count", []uint32{8, 8}),
		"numbers as floats":       key("less.head_count", []float32{8, 8, 4, 8, 8, 4, 8, 4, 8, 4}),
		"an array of layers":      key("less.block_count", []uint32{10}),
		"too few weights":         key("less.budget.weight", adapter.Budget[1:]),
		"a weight for all":        key("less.budget.weight", uint32(1)),
		"whole weights":           key("less.budget.weight", make([]uint32, len(adapter.Budget))),
		"a weight below 0":        floats(3, -1),
		"an infinite weight":      floats(0, float32(math.Inf(1))),
		"no weight":               floats(1, float32(math.NaN())),
		"half a phi":              without("blk.2.less.phi.1."),
		"half a psi":              without("blk.2.less.psi.0."),
		"phi without psi":         without("blk.2.less.psi."),
		"a sharer's without psi":  without("blk.5."),
		"psi that nobody reads":   without("blk.2.less.phi."),
		"psi of a sharer": func(a *rawAdapter) {
			for _, t := range slices.Clone(a.tensors) {
				if rest, ok := strings.CutPrefix(t.name, "blk.5.less.psi."); ok {
					t.name = "blk.7.less.psi." + rest
					a.tensors = append(a.tensors, t)
				}
			}
		},
	} {
		a := readRaw(t, file)
		change(a)
		here, there := both(a.bytes(), false)
		assert.Error(t, here, "%s: package weights", name)
		assert.Error(t, there, "%s: the runtime", name)
	}
}

// So it is where layers have sizes of their own: a sharer its hidden size, but the rank of the cache that it reads.
func TestBothReadersOfSizes(t *testing.T) {
	path := tiny(t, "gemma4")
	base, err := weights.ReadModel(path)
	require.NoError(t, err)
	trained := weights.Trained{Policy: "h2o", Heavy: 20, Recent: 21, Ubatch: 32, Context: 256}
	make := func(rank, hidden int, layers ...int) []byte {
		a, other := weights.Random(base, 4, 8, trained, 1), weights.Random(base, rank, hidden, trained, 2)
		a.Kernels[2] = weights.Kernels{}
		for _, i := range layers {
			a.Kernels[i] = other.Kernels[i]
		}
		file := filepath.Join(t.TempDir(), "a.lesskv.gguf")
		require.NoError(t, a.Write(file))
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		return data
	}
	both := bothReaders(t, path)
	for name, data := range map[string][]byte{
		"a layer of its own":      make(3, 2, 0),
		"a family":                make(3, 2, 5, 7, 9),
		"a sharer's hidden size":  make(4, 2, 7),
		"an owner's hidden size":  make(4, 2, 5),
		"all but a layer without": make(3, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9),
	} {
		here, there := both(data, false)
		assert.NoError(t, here, "%s: package weights", name)
		assert.NoError(t, there, "%s: the runtime", name)
	}
	for name, data := range map[string][]byte{
		"a sharer's rank": make(3, 8, 7),
		"an owner's rank": make(3, 8, 5),
	} {
		here, there := both(data, false)
		assert.ErrorContains(t, here, "found phi of rank", "%s: package weights", name)
		assert.ErrorContains(t, there, "has phi of rank", "%s: the runtime", name)
	}
}

// So it is with types of slots that heads do not fill. Of a layer that shares another's cache they have no meaning, but are such types; of one without
// attention any type is.
func TestBothReadersOfTypes(t *testing.T) {
	for model, c := range map[string]struct {
		fine, bad [][2]string
	}{
		"gemma4": {[][2]string{{"f16", "f32"}, {"f16,2=q8_0,7=q4_0", "f16,5=q4_0"}}, [][2]string{{"f16,0=q8_0", "f16"}, {"f16", "f16,4=q4_0"}, {"f16,6=q8_0", "f16"}}}, // 16 and 32 wide
		"deci":   {[][2]string{{"f16,1=q8_0", "f16,0=f32,2=q4_0"}}, [][2]string{{"f16,3=q8_0", "f16"}}},
	} {
		path := tiny(t, model)
		base, err := weights.ReadModel(path)
		require.NoError(t, err)
		both := bothReaders(t, path)
		read := func(c [2]string) (here, there error) {
			a := weights.New(base, weights.Trained{Policy: "h2o", Ubatch: 32, Context: 256})
			a.SlotTypes, err = worker.LayerTypes("f16", "f16", base.Layers)
			require.NoError(t, err)
			file := filepath.Join(t.TempDir(), "a.lesskv.gguf")
			require.NoError(t, a.Write(file))
			raw := readRaw(t, file)
			all, err := worker.LayerTypes(c[0], c[1], base.Layers)
			require.NoError(t, err)
			var keys, values []uint32
			for _, l := range all {
				keys, values = append(keys, uint32(l.Key)), append(values, uint32(l.Value))
			}
			raw.set("less.slots.key_type", keys)
			raw.set("less.slots.value_type", values)
			return both(raw.bytes(), false)
		}
		for _, f := range c.fine {
			here, there := read(f)
			assert.NoError(t, here, "%s %v: package weights", model, f)
			assert.NoError(t, there, "%s %v: the runtime", model, f)
		}
		for _, b := range c.bad {
			here, there := read(b)
			assert.ErrorContains(t, here, "less.slots.", "%s %v: package weights", model, b)
			assert.ErrorContains(t, there, "less.slots.", "%s %v: the runtime", model, b)
		}
	}
}

// unequal returns random phi and psi of another size in each layer: a sharer has its owner's rank, and a hidden size of its own.
func unequal(m *weights.Model, trained weights.Trained, seed uint64) *weights.Adapter {
	a, r := weights.New(m, trained), rand.New(rand.NewPCG(seed, 1))
	ranks := make([]int, m.Layers)
	for i := range a.Kernels {
		if ranks[i] = 1 + r.IntN(9); m.Owner(i) != i {
			ranks[i] = ranks[m.Owner(i)]
		}
		a.Kernels[i] = weights.Random(m, ranks[i], 1+r.IntN(12), trained, seed).Kernels[i]
	}
	return a
}

// heads counts the KV heads of all layers.
func heads(m *weights.Model) (n int) {
	for i := range m.Layers {
		n += m.Layer(i).HeadsKV
	}
	return n
}

// There are two readers of adapters, the runtime's and package weights. What one of them refuses the other refuses, too.
func TestBothReadersOfAdapters(t *testing.T) {
	const phi0, psi1, psi2 = "blk.2.less.phi.0.weight", "blk.2.less.psi.1.weight", "blk.2.less.psi.2.weight"
	both := bothReaders(t, gopher)
	key := func(name string, value any) func(*rawAdapter) { return func(a *rawAdapter) { a.set(name, value) } }
	tensor := func(name string, change func(*rawTensor)) func(*rawAdapter) {
		return func(a *rawAdapter) { change(a.last(name)) }
	}
	without := func(a *rawAdapter) {
		a.tensors = slices.DeleteFunc(a.tensors, func(t rawTensor) bool { return strings.HasPrefix(t.name, "blk.2.") })
	}
	scales := func(a *rawAdapter) {
		a.tensors = append(a.tensors, rawTensor{"blk.2.less.phi.scale", []uint64{4}, uint32(gguf.F32), -1, make([]byte, 16)})
	}
	sizes := func(rank, hidden any) func(*rawAdapter) {
		return func(a *rawAdapter) {
			a.set("less.version", uint32(3))
			a.set("less.rank", rank)
			a.set("less.hidden", hidden)
		}
	}
	types := func(keys, values any) func(*rawAdapter) {
		return func(a *rawAdapter) {
			a.set("less.version", uint32(3))
			a.set("less.slots.key_type", keys)
			a.set("less.slots.value_type", values)
		}
	}
	fine := map[string]func(*rawAdapter){
		"as it is":                             func(*rawAdapter) {},
		"scales":                               func(a *rawAdapter) { a.set("less.version", uint32(2)); scales(a) },
		"version 2 of GGUF":                    func(a *rawAdapter) { a.version = 2 },
		"in another order":                     func(a *rawAdapter) { slices.Reverse(a.tensors) },
		"no description":                       key("general.description", nil),
		"another key":                          key("general.author", "somebody"),
		"a dimension more":                     tensor(phi0, func(t *rawTensor) { t.dims = append(slices.Clone(t.dims), 1) }),
		"another heavy":                        key("less.trained.heavy", uint32(7)),
		"another fingerprint":                  key("less.base.fingerprint", strings.Repeat("0a", 32)), // forced
		"a layer without":                      without,
		"no tensors at all":                    func(a *rawAdapter) { a.tensors = nil },
		"version 2":                            key("less.version", uint32(2)),
		"version 3":                            key("less.version", uint32(3)),
		"sizes by layer":                       sizes([]uint32{8, 8, 8, 8, 8, 8}, []uint32{4, 4, 4, 4, 4, 4}),
		"ranks by layer":                       sizes([]uint32{8, 8, 8, 8, 8, 8}, uint32(4)),
		"a size of 0 in a layer without":       func(a *rawAdapter) { without(a); sizes(uint32(8), []uint32{4, 4, 0, 4, 4, 4})(a) },
		"sizes of 0 and no tensors":            func(a *rawAdapter) { a.tensors = nil; sizes(make([]uint32, 6), make([]uint32, 6))(a) },
		"types of slots":                       types([]uint32{0, 1, 2, 8, 8, 8}, []uint32{8, 8, 2, 1, 0, 8}),
		"types that version 1 does not know":   key("less.slots.key_type", []uint32{3}),
		"weights that version 1 does not know": key("less.budget.weight", []float32{-1}),
	}
	bad := map[string]func(*rawAdapter){
		"version 4 of GGUF":          func(a *rawAdapter) { a.version = 4 },
		"big-endian":                 func(a *rawAdapter) { a.version = 3 << 24 },
		"version 0":                  key("less.version", uint32(0)),
		"version 4":                  key("less.version", uint32(4)),
		"sizes of version 2":         func(a *rawAdapter) { sizes([]uint32{8, 8, 8, 8, 8, 8}, uint32(4))(a); a.set("less.version", uint32(2)) },
		"signed sizes":               sizes([]float32{8, 8, 8, 8, 8, 8}, uint32(4)),
		"too few sizes":              sizes(uint32(8), []uint32{4, 4, 4, 4, 4}),
		"no size":                    sizes([]uint32{8, 8, 0, 8, 8, 8}, uint32(4)),
		"another size of a layer":    sizes([]uint32{8, 8, 7, 8, 8, 8}, uint32(4)),
		"a huge size":                sizes(uint32(8), []uint32{4, 4, 4, 4, 4, 1 << 31}),
		"a size in a layer without":  func(a *rawAdapter) { without(a); sizes([]uint32{8, 8, 8, 8, 8, 8}, uint32(4))(a) },
		"sizes and no tensors":       func(a *rawAdapter) { a.tensors = nil; sizes(uint32(8), []uint32{0, 0, 4, 0, 0, 0})(a) },
		"types of keys alone":        types([]uint32{8, 8, 8, 8, 8, 8}, nil),
		"types of values alone":      types(nil, []uint32{8, 8, 8, 8, 8, 8}),
		"too few types":              types([]uint32{8, 8, 8, 8, 8, 8}, []uint32{8, 8, 8, 8, 8}),
		"too many types":             types([]uint32{8, 8, 8, 8, 8, 8, 8}, []uint32{8, 8, 8, 8, 8, 8}),
		"one type":                   types(uint32(8), uint32(8)),
		"signed types":               types([]float32{8, 8, 8, 8, 8, 8}, []uint32{8, 8, 8, 8, 8, 8}),
		"a type of no slot":          types([]uint32{8, 8, 8, 8, 8, 8}, []uint32{8, 8, 8, 8, 3, 8}),
		"no type of ggml's":          types([]uint32{8, 8, 8, 1 << 31, 8, 8}, []uint32{8, 8, 8, 8, 8, 8}),
		"scales in version 1":        scales,
		"scales alone":               func(a *rawAdapter) { a.set("less.version", uint32(2)); without(a); scales(a) },
		"layers of version 1":        key("less.head_count", []uint32{4, 4, 4, 4, 4, 4}),
		"a model":                    key("general.type", "model"),
		"a LoRA adapter":             key("adapter.type", "lora"),
		"no type":                    key("general.type", nil),
		"no base name":               key("less.base.name", nil),
		"no fingerprint":             key("less.base.fingerprint", nil),
		"half a fingerprint":         key("less.base.fingerprint", "0a0a"),
		"upper case":                 key("less.base.fingerprint", strings.Repeat("0A", 32)),
		"no policy":                  key("less.trained.policy", nil),
		"an empty policy":            key("less.trained.policy", ""),
		"no context":                 key("less.trained.context", nil),
		"context of 0":               key("less.trained.context", uint32(0)),
		"ubatch of 0":                key("less.trained.ubatch", uint32(0)),
		"heavy beyond int32":         key("less.trained.heavy", uint32(1<<31)),
		"recent beyond int32":        key("less.trained.recent", uint32(1<<31)),
		"a signed rank":              key("less.rank", int32(8)),
		"a rank of 0":                key("less.rank", uint32(0)),
		"another rank":               key("less.rank", uint32(9)),
		"a huge rank":                key("less.rank", uint32(1<<16+1)),
		"another hidden":             key("less.hidden", uint32(5)),
		"other layers":               key("less.block_count", uint32(5)),
		"other heads":                key("less.head_count", uint32(8)),
		"other KV heads":             key("less.head_count_kv", uint32(4)),
		"another key length":         key("less.key_length", uint32(128)),
		"another value length":       key("less.value_length", uint32(128)),
		"another architecture":       key("general.architecture", "qwen3"),
		"a numeric description":      key("general.description", uint32(1)),
		"alignment of 0":             key("general.alignment", uint32(0)),
		"alignment of 33":            key("general.alignment", uint32(33)),
		"a signed alignment":         key("general.alignment", int32(32)),
		"an empty key":               key("", "x"),
		"a key twice":                func(a *rawAdapter) { a.pairs = append(a.pairs, a.pairs[0]) },
		"q4_0":                       tensor(phi0, func(t *rawTensor) { t.typ = 2 }),
		"bf16":                       tensor(phi0, func(t *rawTensor) { t.typ = 30 }),
		"an unknown type":            tensor(phi0, func(t *rawTensor) { t.typ = 99 }),
		"psi 2 in f16":               tensor(psi2, func(t *rawTensor) { t.typ = 1 }),
		"q8_0 that no row fills":     tensor(psi1, func(t *rawTensor) { t.typ = 8 }),
		"rows and columns the wrong": tensor(phi0, func(t *rawTensor) { t.dims = []uint64{t.dims[1], t.dims[0], t.dims[2]} }),
		"five dimensions":            tensor(phi0, func(t *rawTensor) { t.dims = append(slices.Clone(t.dims), 1, 1) }),
		"a dimension of 0":           tensor(phi0, func(t *rawTensor) { t.dims = []uint64{t.dims[0], 0, t.dims[2]} }),
		"a dimension less":           tensor(phi0, func(t *rawTensor) { t.dims = t.dims[:2] }),
		"dimensions that overflow":   tensor(phi0, func(t *rawTensor) { t.dims = []uint64{1 << 32, 1 << 32, 1 << 32} }),
		"NaN":                        tensor(phi0, func(t *rawTensor) { copy(t.data[8:], []byte{0x00, 0x7e}) }),
		"infinity":                   tensor(psi2, func(t *rawTensor) { copy(t.data[8:], []byte{0, 0, 0x80, 0x7f}) }),
		"cut off":                    tensor(phi0, func(t *rawTensor) { t.data = t.data[:len(t.data)-64] }),
		"at another's place":         tensor(phi0, func(t *rawTensor) { t.offset = 0 }),
		"a hole":                     tensor(phi0, func(t *rawTensor) { t.offset = 1 << 12 }),
		"a name too long":            tensor(phi0, func(t *rawTensor) { t.name = strings.Repeat("x", 64) }),
		"a tensor missing":           func(a *rawAdapter) { a.tensors = a.tensors[1:] },
		"a tensor twice":             func(a *rawAdapter) { a.tensors = append(a.tensors, a.tensors[0]) },
		"a stranger": func(a *rawAdapter) {
			a.tensors = append(a.tensors, rawTensor{"x", []uint64{1}, 0, -1, make([]byte, 4)})
		},
		"a layer too many": func(a *rawAdapter) {
			t := a.tensors[0]
			t.name = "blk.6.less.phi.0.weight"
			a.tensors = append(a.tensors, t)
		},
	}
	for name, change := range fine {
		a := readRaw(t, adapterPath("h2o-41"))
		change(a)
		here, there := both(a.bytes(), true)
		assert.NoError(t, here, "%s: package weights", name)
		assert.NoError(t, there, "%s: the runtime", name)
	}
	for name, change := range bad {
		a := readRaw(t, adapterPath("h2o-41"))
		change(a)
		here, there := both(a.bytes(), true)
		assert.Error(t, here, "%s: package weights", name)
		assert.Error(t, there, "%s: the runtime", name)
	}
	a := readRaw(t, adapterPath("h2o-41"))
	fine["another fingerprint"](a)
	here, there := both(a.bytes(), false)
	assert.Error(t, here)
	assert.Error(t, there)
}

// Where no policy is asked for it is the adapter's.
func TestPolicyOfTheAdapter(t *testing.T) {
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 256, LESS: &worker.LESS{Budget: 41, Adapter: adapterPath("peak-41")}})
	info, err := w.LESS()
	require.NoError(t, err)
	assert.Equal(t, "peak", info.Policy)
	assert.Equal(t, 10, info.Heavy)
}
