package weights

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/weights/gguf"
)

// differing is a model whose layers differ: the second has no attention, the last shares the third one's keys and values.
func differing() *Model {
	m := *tiny
	m.Layers = 4
	m.setLayers([]Shape{{4, 2, 32, 48}, {0, 0, 32, 48}, {6, 3, 16, 16}, {3, 3, 16, 16}})
	m.owners = []int{0, 1, 2, 2}
	return &m
}

// versionOf returns the version that an adapter's file says.
func versionOf(t *testing.T, path string) uint32 {
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	v, err := gguf.Get[uint32](f, keyVersion)
	require.NoError(t, err)
	return v
}

// sized gives some layers phi and psi of another size.
func sized(a *Adapter, m *Model, rank, hidden int, layers ...int) *Adapter {
	other := Random(m, rank, hidden, trained, 2)
	for _, i := range layers {
		a.Kernels[i] = other.Kernels[i]
	}
	return a
}

// The first version that can say it is written, and everything comes back as it went in.
func TestVersions(t *testing.T) {
	for name, c := range map[string]struct {
		make    func() *Adapter
		version uint32
	}{
		"alike":            {random, 1},
		"a layer without":  {func() *Adapter { a := random(); a.Kernels[1] = Kernels{}; return a }, 1},
		"phi alone":        {func() *Adapter { a := random(); a.Kernels[1].Psi = [3]Matrix{}; return a }, 2},
		"psi alone":        {func() *Adapter { a := random(); a.Kernels[1].Phi = [2]Matrix{}; return a }, 2},
		"scales":           {func() *Adapter { return scaled(random(), 2) }, 2},
		"a sharer's scale": {func() *Adapter { return scaled(Random(differing(), 8, 16, trained, 1), 3) }, 2},
		"budgets":          {func() *Adapter { a := random(); a.Budget = []float32{0, 1, 2, .5, 1, 1}; return a }, 2},
		"differing layers": {func() *Adapter { return Random(differing(), 8, 16, trained, 1) }, 2},
		"an allocation alone": {func() *Adapter {
			a := New(differing(), trained)
			a.Budget = []float32{1, 2, 3, 4, 5, 0, 0, 0}
			return a
		}, 2},
		"types of slots": {func() *Adapter {
			a := New(differing(), trained)
			a.SlotTypes = []SlotTypes{{gguf.Q8_0, gguf.F16}, {gguf.F32, gguf.Q4_0}, {gguf.F16, gguf.F32}, {gguf.F16, gguf.F16}}
			return a
		}, 3},
		"another rank":        {func() *Adapter { return sized(random(), tiny, 4, 16, 1) }, 3},
		"another hidden size": {func() *Adapter { return sized(random(), tiny, 8, 3, 0, 2) }, 3},
		"a sharer's own":      {func() *Adapter { return sized(Random(differing(), 8, 16, trained, 1), differing(), 8, 2, 3) }, 3},
		"one size beside a layer without": {func() *Adapter {
			a := sized(random(), tiny, 4, 3, 0, 2)
			a.Kernels[1] = Kernels{}
			return a
		}, 1},
		"sizes beside a layer without": {func() *Adapter {
			a := scaled(sized(random(), tiny, 4, 3, 2), 2)
			a.Kernels[1] = Kernels{}
			a.Budget = []float32{0, 1, 2, .5, 1, 1}
			return a
		}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			a := c.make()
			p := filepath.Join(t.TempDir(), "a.gguf")
			require.NoError(t, a.Write(p))
			assert.Equal(t, c.version, versionOf(t, p))
			b, err := Read(p)
			require.NoError(t, err)
			b.SHA256 = ""
			assert.Equal(t, a, b)
			again := filepath.Join(t.TempDir(), "a.gguf")
			require.NoError(t, b.Write(again))
			first, err := os.ReadFile(p)
			require.NoError(t, err)
			second, err := os.ReadFile(again)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(first, second), "the same bytes")
		})
	}
}

func TestReadRefusesVersion2(t *testing.T) {
	a := Random(differing(), 8, 16, trained, 1)
	a.Budget = []float32{1, 2, 3, 4, 5, 0, 0, 0}
	p := filepath.Join(t.TempDir(), "a.gguf")
	require.NoError(t, a.Write(p))
	f, err := gguf.Open(p)
	require.NoError(t, err)
	defer f.Close()
	var pairs []gguf.KeyValue
	for _, key := range f.Keys {
		for _, get := range []func() (any, error){
			func() (any, error) { return gguf.Get[uint32](f, key) },
			func() (any, error) { return gguf.Get[string](f, key) },
			func() (any, error) { return gguf.GetArray[uint32](f, key) },
			func() (any, error) { return gguf.GetArray[float32](f, key) },
		} {
			if v, err := get(); err == nil {
				pairs = append(pairs, gguf.KeyValue{Key: key, Value: v})
			}
		}
	}
	var tensors []gguf.Tensor
	for _, info := range f.Tensors {
		values, err := f.Floats(info.Name)
		require.NoError(t, err)
		tensors = append(tensors, gguf.Tensor{Name: info.Name, Type: info.Type, Dims: info.Dims, Values: values})
	}
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		key   string
		value any
		err   error
		says  string
	}{
		{"", nil, nil, ""},
		{keyVersion, uint32(1), gguf.ErrType, "wanted u32"},
		{keyHeadCount, []uint32{4, 0, 6}, ErrValue, "found an array of 3, wanted one for each of 4 layers"},
		{keyHeadCount, []uint32{4, 0, 5, 3}, ErrValue, "of layer 2"},
		{keyHeadCount, []uint32{4, 0, 6, 70000}, ErrValue, "of layer 3"},
		{keyHeadCount, []uint32{4, 7, 6, 3}, nil, ""},
		{keyHeadCount, []int32{4, 0, 6, 3}, gguf.ErrType, ""},
		{keyKeyLength, []uint32{32, 32, 0, 16}, ErrValue, "of layer 2"},
		{keyBudgetWeight, []float32{1, 2, 3}, ErrValue, "found 3 weights, wanted one for each of 8"},
		{keyBudgetWeight, []float32{1, 2, 3, 4, 5, 0, 0, 2 * MaxWeight}, ErrValue, "wanted from 0 to 2147483648"},
		{keyBudgetWeight, []float32{1, 2, 3, 4, 5, 0, 0, -1}, ErrValue, "found -1 at 7"},
		{keyBudgetWeight, []float32{1, 2, 3, 4, 5, 0, 0, inf}, ErrValue, "found +Inf at 7"},
		{keyBudgetWeight, []float32{1, 2, 3, 4, 5, 0, float32(math.NaN()), 0}, ErrValue, "found NaN at 6"},
		{keyBudgetWeight, []float32{0, 0, 0, 0, 0, 0, 0, 0}, nil, ""},
		{keyBudgetWeight, float32(1), gguf.ErrType, "an array"},
		{keyBudgetWeight, []uint32{1, 2, 3, 4, 5, 0, 0, 0}, gguf.ErrType, ""},
	} {
		var spoilt []gguf.KeyValue
		for _, p := range pairs {
			if p.Key == c.key {
				p.Value = c.value
			}
			spoilt = append(spoilt, p)
		}
		var b bytes.Buffer
		require.NoError(t, gguf.Write(&b, spoilt, tensors))
		_, err := readBytes(b.Bytes())
		if c.err == nil {
			assert.NoError(t, err, "%s = %v", c.key, c.value)
			continue
		}
		assert.ErrorIs(t, err, c.err, "%s = %v", c.key, c.value)
		assert.ErrorContains(t, err, c.says, "%s = %v", c.key, c.value)
	}
	for name, n := range map[string]string{"phi": "blk.0.less.phi.1.weight", "psi": "blk.0.less.psi.2.weight"} {
		var rest []gguf.Tensor
		for _, tensor := range tensors {
			if tensor.Name != n {
				rest = append(rest, tensor)
			}
		}
		var b bytes.Buffer
		require.NoError(t, gguf.Write(&b, pairs, rest))
		_, err := readBytes(b.Bytes())
		assert.ErrorIs(t, err, gguf.ErrMissing)
		assert.ErrorContains(t, err, "all tensors of "+name)
	}
	for _, c := range []struct {
		scale   gguf.Tensor
		without string // a tensor that is taken out
		err     error
		says    string
	}{
		{gguf.Tensor{Dims: []uint64{6}}, "", nil, ""},
		{gguf.Tensor{Dims: []uint64{6, 1}}, "", nil, ""},
		{gguf.Tensor{Dims: []uint64{7}}, "", ErrTensor, "found dimensions [7], wanted [6]"},
		{gguf.Tensor{Dims: []uint64{1, 6}}, "", ErrTensor, "found dimensions [1 6], wanted [6]"},
		{gguf.Tensor{Dims: []uint64{6}, Type: gguf.F16}, "", ErrTensor, "found F16, wanted F32"},
		{gguf.Tensor{Dims: []uint64{6}}, "blk.2.less.phi", gguf.ErrMissing, "all tensors of phi"},
	} {
		c.scale.Name = "blk.2.less.phi.scale"
		if c.scale.Values == nil {
			c.scale.Values = make([]float32, c.scale.Dims[0]*max(1, append(c.scale.Dims, 1)[1]))
		}
		var rest []gguf.Tensor
		for _, tensor := range tensors {
			if c.without == "" || !strings.HasPrefix(tensor.Name, c.without) {
				rest = append(rest, tensor)
			}
		}
		var b bytes.Buffer
		require.NoError(t, gguf.Write(&b, pairs, append(rest, c.scale)))
		_, err := readBytes(b.Bytes())
		if c.err == nil {
			assert.NoError(t, err)
			continue
		}
		assert.ErrorIs(t, err, c.err, c.says)
		assert.ErrorContains(t, err, c.says)
	}
	a = scaled(random(), 1)
	require.NoError(t, a.Write(p))
	first, err := os.ReadFile(p)
	require.NoError(t, err)
	first = bytes.Replace(first, append([]byte(keyVersion), 4, 0, 0, 0, 2), append([]byte(keyVersion), 4, 0, 0, 0, 1), 1)
	_, err = readBytes(first)
	assert.ErrorIs(t, err, ErrTensor, "version 1 has no scales")
	assert.ErrorContains(t, err, "blk.1.less.phi.scale")
	assert.ErrorContains(t, err, "found it in a file of version 1, wanted version 2, the first with scales")
	stranger := tensors[0]
	stranger.Name = "blk.1.less.phi.0.weight"
	var b bytes.Buffer
	require.NoError(t, gguf.Write(&b, pairs, append(tensors, stranger)))
	_, err = readBytes(b.Bytes())
	assert.ErrorIs(t, err, ErrTensor, "a layer without attention")
}

// Rank and hidden size of each layer are those of its tensors, in whatever way a file says so.
func TestSizes(t *testing.T) {
	pairs, tensors := contents(t, func() *Adapter { a := random(); a.Kernels[1] = Kernels{}; return a }())
	inf := uint32(math.MaxUint32)
	for _, c := range []struct {
		version      uint32
		rank, hidden any
		err          error
		says         string
	}{
		{1, uint32(8), uint32(16), nil, ""},
		{3, uint32(8), uint32(16), nil, ""},
		{3, []uint32{8, 0, 8}, uint32(16), nil, ""},
		{3, uint32(8), []uint32{16, 0, 16}, nil, ""},
		{3, []uint32{8, 0, 8}, []uint32{16, 0, 16}, nil, ""},
		{2, []uint32{8, 0, 8}, uint32(16), gguf.ErrType, "key less.rank"},
		{3, []int32{8, 0, 8}, uint32(16), gguf.ErrType, "key less.rank"},
		{3, []float32{8, 0, 8}, uint32(16), gguf.ErrType, "key less.rank"},
		{3, []uint32{8, 0}, uint32(16), ErrValue, "key less.rank: value out of range: found an array of 2, wanted one for each of 3 layers"},
		{3, []uint32{8, 8, 8}, uint32(16), ErrValue, "key less.rank of layer 1: value out of range: found 8, wanted 0: the layer has neither phi nor psi"},
		{3, []uint32{8, 0, 0}, uint32(16), ErrValue, "key less.rank of layer 2: value out of range: found 0, wanted 1 to 65536"},
		{3, []uint32{8, 0, inf}, uint32(16), ErrValue, "key less.rank of layer 2: value out of range: found 4294967295, wanted 1 to 65536"},
		{3, uint32(8), []uint32{16, 0, 0}, ErrValue, "key less.hidden of layer 2"},
		{3, uint32(8), []uint32{16, 1, 16}, ErrValue, "key less.hidden of layer 1"},
		{3, []uint32{8, 0, 4}, uint32(16), ErrTensor, "tensor blk.2.less.phi.1.weight: wrong tensor: found dimensions [16 8 4], wanted [16 4 4]"},
		{3, uint32(8), []uint32{15, 0, 16}, ErrTensor, "tensor blk.0.less.phi.0.weight"},
	} {
		for i, p := range pairs {
			switch p.Key {
			case keyVersion:
				pairs[i].Value = c.version
			case keyRank:
				pairs[i].Value = c.rank
			case keyHidden:
				pairs[i].Value = c.hidden
			}
		}
		var b bytes.Buffer
		require.NoError(t, gguf.Write(&b, pairs, tensors))
		a, err := readBytes(b.Bytes())
		if c.err != nil {
			assert.ErrorIs(t, err, c.err, c.says)
			assert.ErrorContains(t, err, c.says)
			continue
		}
		require.NoError(t, err)
		for i, want := range [][]int{{8, 16}, {0, 0}, {8, 16}} {
			assert.Equal(t, want, []int{a.Kernels[i].Rank, a.Kernels[i].Hidden}, "layer %d", i)
		}
	}
}

func TestCheckLayers(t *testing.T) {
	m := differing()
	for name, c := range map[string]struct {
		spoil func(a *Adapter)
		says  string
	}{
		"as it is":              {func(*Adapter) {}, ""},
		"no kernels":            {func(a *Adapter) { a.Kernels = make([]Kernels, 4) }, ""},
		"no phi of the sharer":  {func(a *Adapter) { a.Kernels[3] = Kernels{} }, ""},
		"none but the sharer's": {func(a *Adapter) { a.Kernels[2].Phi = [2]Matrix{} }, ""},
		"psi of a sharer":       {func(a *Adapter) { a.Kernels[3].Psi = a.Kernels[2].Psi }, "layer 3: adapter for another geometry: found psi, wanted none: the layer shares the keys of layer 2"},
		"phi without psi":       {func(a *Adapter) { a.Kernels[0].Psi = [3]Matrix{} }, "layer 0: adapter for another geometry: found phi, wanted psi of layer 0"},
		"a sharer without psi":  {func(a *Adapter) { a.Kernels[2] = Kernels{} }, "found phi, wanted psi of layer 2"},
		"a sharer's hidden":     {func(a *Adapter) { sized(a, m, 8, 3, 3) }, ""},
		"a sharer's rank":       {func(a *Adapter) { sized(a, m, 4, 16, 3) }, "layer 3: adapter for another geometry: found phi of rank 4, wanted rank 8, as psi of layer 2 has it"},
		"psi that nobody reads": {func(a *Adapter) { a.Kernels[0].Phi = [2]Matrix{} }, "layer 0: adapter for another geometry: found psi"},
		"other heads":           {func(a *Adapter) { a.PerLayer = append([]Shape{}, a.PerLayer...); a.PerLayer[2].Heads = 9 }, "query heads of layer 2: adapter for another geometry: found 9, wanted 6"},
		"layers alike":          {func(a *Adapter) { a.PerLayer = nil }, "query heads of layer 1: adapter for another geometry: found 4, wanted 0"},
	} {
		a := Random(m, 8, 16, trained, 1)
		c.spoil(a)
		_, err := Check(a, m)
		if c.says == "" {
			assert.NoError(t, err, name)
			continue
		}
		assert.ErrorIs(t, err, ErrGeometry, name)
		assert.ErrorContains(t, err, c.says, name)
	}
	a := Random(m, 8, 16, trained, 1)
	a.Budget = []float32{1, 1, 2, 1, 1, 1, 1, 1}
	warnings, err := Check(a, m)
	require.NoError(t, err)
	assert.Empty(t, warnings)
}

// An allocation alone was trained for no budget, and is used at any.
func TestAllocationAlone(t *testing.T) {
	a := New(differing(), trained)
	a.Budget = []float32{1, 1, 2, 1, 1, 1, 1, 1}
	path := filepath.Join(t.TempDir(), "allocation.gguf")
	require.NoError(t, a.Write(path))
	read, err := Read(path)
	require.NoError(t, err)
	assert.Equal(t, a.Budget, read.Budget)
	assert.Zero(t, read.Bytes())
	warnings, err := CheckUse(read, Trained{Policy: trained.Policy, Heavy: 1, Recent: 1000, Ubatch: 7, Context: 1 << 20})
	require.NoError(t, err)
	assert.Empty(t, warnings)
}

func TestMergeBudgets(t *testing.T) {
	m := differing()
	part := func(layers ...int) *Adapter {
		a, all := New(m, trained), Random(m, 8, 16, trained, 1)
		for _, l := range layers {
			a.Kernels[l] = all.Kernels[l]
		}
		return a
	}
	// an allocation alone was trained under nothing
	allocation := New(m, Trained{Policy: trained.Policy, Heavy: 3, Recent: 4, Ubatch: 5, Context: 6})
	allocation.Budget = []float32{1, 2, 3, 4, 5, 0, 0, 0}
	for _, parts := range [][]*Adapter{{part(0), allocation, part(2, 3)}, {allocation, part(0), part(2, 3)}} {
		merged, err := Merge(parts...)
		require.NoError(t, err)
		assert.Equal(t, allocation.Budget, merged.Budget)
		assert.True(t, merged.Kernels[3].HasPhi() && !merged.Kernels[3].HasPsi())
		assert.Equal(t, []int{8, 16}, []int{merged.Kernels[3].Rank, merged.Kernels[3].Hidden})
		assert.Equal(t, trained, merged.Trained)
	}
	foreign := *allocation
	foreign.Trained.Policy = "lambda"
	_, err := Merge(part(0), &foreign)
	assert.ErrorIs(t, err, ErrMerge)
	other := part()
	other.Budget = []float32{1, 2, 3, 4, 5, 0, 0, 1}
	_, err = Merge(allocation, other)
	assert.ErrorIs(t, err, ErrMerge)
	alike := part()
	alike.PerLayer = append([]Shape{}, alike.PerLayer...)
	alike.PerLayer[3].Heads = 6
	_, err = Merge(allocation, alike)
	assert.ErrorIs(t, err, ErrMerge)
}

// A merged adapter says of each part how it was made, once and in their order, whether or not the first has phi and psi.
func TestMergeDescriptions(t *testing.T) {
	m := differing()
	part := func(description string, layers ...int) *Adapter {
		a, all := New(m, trained), Random(m, 8, 16, trained, 1)
		a.Description = description
		for _, l := range layers {
			a.Kernels[l] = all.Kernels[l]
		}
		return a
	}
	for want, parts := range map[string][]*Adapter{
		"tuned\nother\ntrained": {part("tuned"), part("other"), part("trained", 0)},
		"trained\ntuned":        {part("trained", 0), part("tuned"), part("tuned")},
		"trained":               {part("", 0), part("trained", 2, 3)},
	} {
		merged, err := Merge(parts...)
		require.NoError(t, err)
		assert.Equal(t, want, merged.Description)
	}
}

// Whose keys and values a layer has, in the models that share some.
func TestOwners(t *testing.T) {
	for name, want := range map[string]map[int]int{
		"gemma3n":   {20: 18, 21: 18, 22: 18, 23: 18, 24: 19},
		"gemma4":    {6: 4, 7: 5, 8: 4, 9: 5},
		"gemma4-64": {4: 2, 5: 3, 6: 3},
		"llama":     {},
	} {
		model, err := tinymodels.Find(name)
		require.NoError(t, err)
		p, err := model.WriteIn(t.TempDir(), gguf.F16, 1)
		require.NoError(t, err)
		m, err := ReadModel(p)
		require.NoError(t, err)
		for i := range m.Layers {
			owner, ok := want[i]
			if !ok {
				owner = i
			}
			assert.Equal(t, owner, m.Owner(i), "%s, layer %d", name, i)
		}
		require.Contains(t, strings.Split(name, "-")[0], m.Architecture)
	}
}

// The Go side of what C defines elsewhere than in adapter.h.
func TestMaxWeight(t *testing.T) {
	require.EqualValues(t, kernels.MaxWeight, MaxWeight)
}

func TestReadRefusesSlotTypes(t *testing.T) {
	a := New(differing(), trained) // heads of 32 and 48, none, and twice 16 and 16
	p := filepath.Join(t.TempDir(), "a.gguf")
	for _, c := range []struct {
		types []SlotTypes
		says  string
	}{
		{SameSlotTypes(SlotTypes{gguf.F16, gguf.F16}, 3), "found an array of 3, wanted one for each of 4 layers"},
		{[]SlotTypes{{gguf.Q8_0, gguf.Q8_0}, {}, {}, {}}, keySlotValueType + " of layer 0"},
		{[]SlotTypes{{}, {}, {gguf.Q4_0, 0}, {}}, keySlotKeyType + " of layer 2"},
		{[]SlotTypes{{}, {}, {}, {gguf.Q4_0, 0}}, keySlotKeyType + " of layer 3"},
		{[]SlotTypes{{}, {gguf.BF16, 0}, {}, {}}, keySlotKeyType + " of layer 1"},
	} {
		a.SlotTypes = c.types
		err := a.Write(p)
		require.ErrorIs(t, err, ErrValue)
		assert.ErrorContains(t, err, c.says)
	}
	a.SlotTypes = []SlotTypes{{gguf.Q8_0, gguf.F32}, {gguf.Q4_0, gguf.Q4_0}, {}, {}}
	require.NoError(t, a.Write(p))
	data, err := os.ReadFile(p)
	require.NoError(t, err)
	spoilt := bytes.Replace(data, []byte(keySlotValueType), []byte("less.slots.other_type"), 1)
	require.Len(t, "less.slots.other_type", len(keySlotValueType), "as long as the key")
	_, err = readBytes(spoilt)
	assert.ErrorIs(t, err, gguf.ErrMissing, "one of the two alone")
}
