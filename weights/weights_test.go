package weights

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/weights/gguf"
)

var (
	tiny = &Model{
		Name: "tiny", Architecture: "llama", Geometry: Geometry{Layers: 3, Heads: 4, HeadsKV: 2, KeyLength: 32, ValueLength: 48},
		Vocab: 100, Context: 512, Fingerprint: strings.Repeat("0a", 32),
	}
	trained = Trained{Policy: "h2o", Heavy: 4, Recent: 5, Ubatch: 32, Context: 512}
)

func random() *Adapter { return Random(tiny, 8, 16, trained, 1) }

// scaled gives the query heads of a layer scales.
func scaled(a *Adapter, layer int) *Adapter {
	values := make([]float32, a.Layer(layer).Heads)
	for i := range values {
		values[i] = 120 - 110*float32(i)
	}
	a.Kernels[layer].Scale = Matrix{Values: values}
	return a
}

// path returns where the real file of a name lies.
func path(t testing.TB, name string) string {
	p, err := testdata.PathIn(t.TempDir(), name)
	require.NoError(t, err)
	return p
}

func TestGopher(t *testing.T) {
	model, err := ReadModel(path(t, testdata.Model))
	require.NoError(t, err)
	assert.Equal(t, Geometry{Layers: 6, Heads: 4, HeadsKV: 2, KeyLength: 64, ValueLength: 64}, model.Geometry)
	assert.Equal(t, "gopher-5m", model.Name)
	assert.Equal(t, 4096, model.Vocab)
	assert.Equal(t, 2048, model.Context)
	for name, want := range map[string]struct {
		Trained
		hidden int
		bytes  uint64 // of an element, psi 2 aside
	}{
		testdata.H2O102:  {Trained{"h2o", 51, 51, 32, 2048}, 4, 2},
		testdata.H2O41:   {Trained{"h2o", 20, 21, 32, 2048}, 4, 2},
		testdata.Peak102: {Trained{"peak", 25, 77, 32, 2048}, 4, 2},
		testdata.Peak41:  {Trained{"peak", 10, 31, 32, 2048}, 4, 2},

		testdata.ReferenceH2O102:  {Trained{"h2o", 51, 51, 32, 2048}, 32, 4},
		testdata.ReferenceH2O41:   {Trained{"h2o", 20, 21, 32, 2048}, 64, 4},
		testdata.ReferencePeak102: {Trained{"peak", 25, 77, 32, 2048}, 16, 4},
		testdata.ReferencePeak41:  {Trained{"peak", 10, 31, 32, 2048}, 16, 4},
	} {
		file, err := testdata.InCheckout(".", name)
		require.NoError(t, err)
		a, err := Read(file)
		require.NoError(t, err)
		assert.Equal(t, want.Trained, a.Trained, name)
		for _, k := range a.Kernels {
			assert.Equal(t, []int{8, want.hidden}, []int{k.Rank, k.Hidden}, name)
		}
		assert.Equal(t, model.Fingerprint, a.Fingerprint, name) // the references are another program's
		assert.Equal(t, want.bytes == 2, strings.HasPrefix(a.Description, "made by lesskv train"), "%s: %q", name, a.Description)
		warnings, err := Check(a, model)
		assert.NoError(t, err)
		assert.Empty(t, warnings)
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		sum := sha256.Sum256(content)
		assert.Equal(t, hex.EncodeToString(sum[:]), a.SHA256)
		// The formula of algorithm.md, "Memory".
		d, hidden, r := uint64(64), uint64(want.hidden), uint64(8)
		assert.Equal(t, 6*(want.bytes*(4*(d*hidden+hidden*r)+2*(d*hidden+hidden*r))+4*2*r*r), a.Bytes(), name)

		again := filepath.Join(t.TempDir(), "again.gguf")
		require.NoError(t, a.Write(again))
		b, err := Read(again)
		require.NoError(t, err)
		b.SHA256 = a.SHA256
		assert.Equal(t, a, b, "%s: what is read and written is unchanged", name)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, typ := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q8_0} {
		a := scaled(random(), 0)
		before := a.Kernels[0].Phi[0].Values[0]
		a.Kernels[1] = Kernels{} // sparse-only
		a.Description = "made by a test"
		require.NoError(t, a.Convert(typ))
		assert.InDelta(t, before, a.Kernels[0].Phi[0].Values[0], .01)
		p := filepath.Join(t.TempDir(), "a.gguf")
		require.NoError(t, a.Write(p))
		b, err := Read(p)
		require.NoError(t, err)
		assert.Len(t, b.SHA256, 64)
		b.SHA256 = ""
		assert.Equal(t, a, b)
		assert.True(t, b.Kernels[1].Empty())
		assert.Equal(t, a.Bytes(), b.Bytes())
		for i := range b.Kernels {
			for j, m := range b.Kernels[i].matrices() {
				if len(m.Values) == 0 {
					continue
				}
				want := typ
				switch {
				case j >= 4:
					want = gguf.F32
				case typ == gguf.Q8_0 && (j == 1 || j == 3): // rows of 16
					want = gguf.F16
				}
				assert.Equal(t, want, m.Type, "%v, matrix %d", typ, j)
				data, err := m.Encode()
				require.NoError(t, err)
				size, _ := m.Type.Size(uint64(len(m.Values)))
				assert.Len(t, data, int(size))
			}
		}
	}
}

// TestConvertUneven: matrices of which Q8_0 would lose the weights of an input, as those of a key's number that has a constant, become F16.
func TestConvertUneven(t *testing.T) {
	a := random()
	values := a.Kernels[1].Psi[0].Values // [2 heads][16][32]
	for i := 16*32 + 3; i < len(values); i += 32 {
		values[i] /= 100 // of the second head alone
	}
	small := slices.Clone(values[16*32:])
	require.NoError(t, a.Convert(gguf.Q8_0))
	for i, k := range a.Kernels {
		assert.Equal(t, gguf.Q8_0, k.Phi[0].Type, "layer %d", i)
		assert.Equal(t, i == 1, k.Psi[0].Type == gguf.F16, "layer %d", i)
	}
	for i, x := range a.Kernels[1].Psi[0].Values[16*32:] {
		assert.InEpsilon(t, small[i], x, 1e-3)
	}
	p := filepath.Join(t.TempDir(), "a.gguf")
	require.NoError(t, a.Write(p))
	_, err := Read(p)
	assert.NoError(t, err)

	a = random()
	for i := 3; i < len(a.Kernels[1].Psi[0].Values); i += 32 {
		a.Kernels[1].Psi[0].Values[i] = 0
	}
	require.NoError(t, a.Convert(gguf.Q8_0))
	assert.Equal(t, gguf.Q8_0, a.Kernels[1].Psi[0].Type, "of weights that are 0 nothing is lost")
}

func TestConvertRefuses(t *testing.T) {
	a := random()
	assert.ErrorIs(t, a.Convert(gguf.BF16), gguf.ErrType)
	a.Kernels[2].Psi[1].Values[3] = 1e6
	err := a.Convert(gguf.F16)
	assert.ErrorIs(t, err, gguf.ErrRange)
	assert.ErrorContains(t, err, "blk.2.less.psi.1.weight")
	assert.Equal(t, gguf.F32, a.Kernels[0].Phi[0].Type, "nothing is converted by halves")
	a = random()
	a.Kernels[2].Psi[2].Values[3] = 1e6
	assert.NoError(t, a.Convert(gguf.F16), "psi.2 stays F32")
}

func TestRandomAndZero(t *testing.T) {
	assert.Equal(t, random(), random(), "the same seed, the same values")
	assert.NotEqual(t, random(), Random(tiny, 8, 16, trained, 2))
	zero := Zero(tiny, 8, 16, trained)
	assert.False(t, zero.Kernels[0].Empty())
	for _, x := range zero.Kernels[2].Psi[2].Values {
		assert.Zero(t, x)
	}
	assert.True(t, New(tiny, trained).Kernels[0].Empty())
	assert.Zero(t, New(tiny, trained).Bytes())
	assert.NoError(t, New(tiny, trained).Write(filepath.Join(t.TempDir(), "a.gguf")), "every layer sparse-only")
}

// contents returns the keys and tensors of an adapter's file, to be spoilt.
func contents(t testing.TB, a *Adapter) (pairs []gguf.KeyValue, tensors []gguf.Tensor) {
	p := filepath.Join(t.TempDir(), "a.gguf")
	require.NoError(t, a.Write(p))
	f, err := gguf.Open(p)
	require.NoError(t, err)
	defer f.Close()
	for _, key := range f.Keys {
		if s, err := gguf.Get[string](f, key); err == nil {
			pairs = append(pairs, gguf.KeyValue{Key: key, Value: s})
		} else {
			n, err := gguf.Get[uint32](f, key)
			require.NoError(t, err)
			pairs = append(pairs, gguf.KeyValue{Key: key, Value: n})
		}
	}
	for _, info := range f.Tensors {
		values, err := f.Floats(info.Name)
		require.NoError(t, err)
		tensors = append(tensors, gguf.Tensor{Name: info.Name, Type: info.Type, Dims: info.Dims, Values: values})
	}
	return pairs, tensors
}

// readBytes reads an adapter from memory.
func readBytes(b []byte) (*Adapter, error) { return read("x.gguf", bytes.NewReader(b), int64(len(b))) }

func TestReadRefusesKeys(t *testing.T) {
	pairs, tensors := contents(t, random())
	const missing = "missing"
	for _, c := range []struct {
		key   string
		value any
		err   error
		says  string
	}{
		{keyGeneralType, "model", ErrNotAdapter, `found "model", wanted "adapter"`},
		{keyGeneralType, missing, ErrNotAdapter, `found nothing, wanted "adapter"`},
		{keyGeneralType, uint32(1), gguf.ErrType, "found u32 1, wanted string"},
		{keyAdapterType, "lora", ErrNotAdapter, `found "lora", wanted "less"`},
		{keyVersion, uint32(0), ErrVersion, "found 0, wanted 1 to 3"},
		{keyVersion, uint32(4), ErrVersion, "found 4, wanted 1 to 3"},
		{keyVersion, missing, gguf.ErrMissing, ""},
		{keyRank, missing, gguf.ErrMissing, ""},
		{keyRank, uint64(8), gguf.ErrType, "found u64 8, wanted u32"},
		{keyRank, uint32(0), ErrValue, "found 0, wanted 1 to 65536"},
		{keyHidden, uint32(math.MaxUint32), ErrValue, "found 4294967295"},
		{keyBlockCount, uint32(1 << 30), ErrValue, "wanted 1 to 512"},
		{keyBlockCount, uint32(2), ErrTensor, ""},
		{keyHeadCount, uint32(5), ErrValue, "found 2, wanted a divisor of less.head_count, 5"},
		{keyHeadCount, uint32(8), ErrTensor, "found dimensions [32 16 4], wanted [32 16 8]"},
		{keyKeyLength, uint32(64), ErrTensor, "found dimensions [32 16 4], wanted [64 16 4]"},
		{keyTrainedUbatch, uint32(0), ErrValue, ""},
		{keyTrainedPolicy, "", ErrValue, "found an empty string"},
		{keyArchitecture, "", ErrValue, "found an empty string"},
		{keyFingerprint, strings.Repeat("0A", 32), ErrValue, "wanted 64 lower-case hex digits"},
		{keyFingerprint, "", ErrValue, ""},
		{keyBaseName, missing, gguf.ErrMissing, ""},
	} {
		var spoilt []gguf.KeyValue
		for _, p := range pairs {
			switch {
			case p.Key != c.key:
				spoilt = append(spoilt, p)
			case c.value != missing:
				spoilt = append(spoilt, gguf.KeyValue{Key: c.key, Value: c.value})
			}
		}
		var b bytes.Buffer
		require.NoError(t, gguf.Write(&b, spoilt, tensors))
		_, err := readBytes(b.Bytes())
		assert.ErrorIs(t, err, c.err, "%s = %v", c.key, c.value)
		assert.ErrorContains(t, err, c.says, "%s = %v", c.key, c.value)
		var e *Error
		if assert.True(t, errors.As(err, &e)) {
			assert.Equal(t, "x.gguf", e.File)
			if c.err != ErrTensor {
				assert.Equal(t, "key "+c.key, strings.ReplaceAll(e.Item, "head_count_kv", strings.TrimPrefix(c.key, "less.")))
			}
		}
	}
}

func TestReadRefusesTensors(t *testing.T) {
	pairs, _ := contents(t, random())
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, c := range map[string]struct {
		spoil func(tensors []gguf.Tensor) []gguf.Tensor
		err   error
		says  string
	}{
		"one missing": {func(x []gguf.Tensor) []gguf.Tensor { return x[1:] }, gguf.ErrMissing, "blk.0.less.phi.0.weight"},
		"stranger": {func(x []gguf.Tensor) []gguf.Tensor {
			return append(x, gguf.Tensor{Name: "blk.3.less.phi.0.weight", Dims: []uint64{1}, Values: []float32{1}})
		}, ErrTensor, "blk.3.less.phi.0.weight"},
		"dims":   {func(x []gguf.Tensor) []gguf.Tensor { x[6].Dims = []uint64{8, 16, 4}; return x }, ErrTensor, "blk.1.less.phi.1.weight: wrong tensor: found dimensions [8 16 4], wanted [16 8 4]"},
		"rank 4": {func(x []gguf.Tensor) []gguf.Tensor { x[6].Dims = []uint64{16, 8, 2, 2}; return x }, ErrTensor, "found dimensions [16 8 2 2]"},
		"fourth dimension": {func(x []gguf.Tensor) []gguf.Tensor {
			x[6].Dims, x[6].Values = append(x[6].Dims, 2), append(x[6].Values, x[6].Values...)
			return x
		}, ErrTensor, "found dimensions [16 8 4 2]"},
		"psi.2": {func(x []gguf.Tensor) []gguf.Tensor { x[4].Type = gguf.F16; return x }, ErrTensor, "blk.0.less.psi.2.weight: wrong tensor: found F16, wanted F32"},
	} {
		_, tensors := contents(t, random())
		var b bytes.Buffer
		require.NoError(t, gguf.Write(&b, pairs, c.spoil(tensors)), name)
		_, err := readBytes(b.Bytes())
		assert.ErrorIs(t, err, c.err, name)
		assert.ErrorContains(t, err, c.says, name)
	}
	// What gguf.Write doesn't write is put in afterwards.
	_, tensors := contents(t, random())
	for name, c := range map[string]struct {
		value float32
		says  string
	}{"NaN": {nan, "blk.2.less.phi.1.weight: NaN or infinite weight: found NaN at [3 2 1]"}, "Inf": {inf, "found +Inf at [3 2 1]"}} {
		const mark = 0x4d3a2b1c
		tensors[11].Values[1*8*16+2*16+3] = math.Float32frombits(mark)
		var b bytes.Buffer
		require.NoError(t, gguf.Write(&b, pairs, tensors))
		bits := math.Float32bits(c.value)
		raw := bytes.Replace(b.Bytes(), []byte{0x1c, 0x2b, 0x3a, 0x4d}, []byte{byte(bits), byte(bits >> 8), byte(bits >> 16), byte(bits >> 24)}, 1)
		_, err := readBytes(raw)
		assert.ErrorIs(t, err, ErrNotFinite, name)
		assert.ErrorContains(t, err, c.says, name)
	}
}

func TestReadRefusesFiles(t *testing.T) {
	_, err := Read(filepath.Join(t.TempDir(), "none.gguf"))
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = Read(t.TempDir())
	assert.ErrorIs(t, err, ErrNotAdapter)
	_, err = Read(path(t, testdata.Model))
	assert.ErrorIs(t, err, ErrNotAdapter)
	_, err = readBytes([]byte("hello"))
	assert.ErrorIs(t, err, gguf.ErrMagic)
	whole, err := testdata.Read(testdata.Peak41)
	require.NoError(t, err)
	for n := 4; n < len(whole); n += 997 {
		_, err := readBytes(whole[:n])
		assert.ErrorIs(t, err, gguf.ErrTruncated)
	}
	big := bytes.Clone(whole)
	copy(big[4:], []byte{0, 0, 0, 3})
	_, err = readBytes(big)
	assert.ErrorIs(t, err, gguf.ErrByteOrder)
}

func TestWriteRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(a *Adapter)
		err   error
	}{
		"rank":        {func(a *Adapter) { a.Kernels[1].Rank = 0 }, ErrValue},
		"negative":    {func(a *Adapter) { a.Trained.Heavy = -1 }, ErrValue},
		"fingerprint": {func(a *Adapter) { a.Fingerprint = "" }, ErrValue},
		"layers":      {func(a *Adapter) { a.Kernels = a.Kernels[1:] }, ErrTensor},
		"half":        {func(a *Adapter) { a.Kernels[0].Phi[1] = Matrix{} }, ErrTensor},
		"size":        {func(a *Adapter) { a.Kernels[1].Hidden = 17 }, ErrTensor},
		"psi.2":       {func(a *Adapter) { a.Kernels[0].Psi[2].Type = gguf.F16 }, ErrTensor},
		"Q8_0":        {func(a *Adapter) { a.Kernels[0].Phi[1].Type = gguf.Q8_0 }, ErrTensor},
		"type":        {func(a *Adapter) { a.Kernels[0].Phi[0].Type = gguf.BF16 }, ErrTensor},
		"scale":       {func(a *Adapter) { scaled(a, 0).Kernels[0].Scale.Values[1] = float32(math.Inf(-1)) }, ErrNotFinite},
		"scales":      {func(a *Adapter) { a.Kernels[0].Scale.Values = make([]float32, 3) }, ErrTensor},
		"scale type":  {func(a *Adapter) { scaled(a, 0).Kernels[0].Scale.Type = gguf.F16 }, ErrTensor},
		"scale alone": {func(a *Adapter) { scaled(a, 0).Kernels[0].Phi = [2]Matrix{} }, ErrTensor},
		"NaN":         {func(a *Adapter) { a.Kernels[0].Phi[0].Values[5] = float32(math.NaN()) }, ErrNotFinite},
	} {
		a := random()
		c.spoil(a)
		p := filepath.Join(t.TempDir(), "a.gguf")
		err := a.Write(p)
		assert.ErrorIs(t, err, c.err, name)
		assert.ErrorContains(t, err, p, name)
		assert.NoFileExists(t, p, name)
	}
}

func TestCheck(t *testing.T) {
	warnings, err := Check(random(), tiny)
	assert.NoError(t, err)
	assert.Empty(t, warnings)

	other := *tiny
	other.Name = "fine-tune"
	warnings, err = Check(random(), &other)
	assert.NoError(t, err)
	assert.Len(t, warnings, 1)

	other.Fingerprint = strings.Repeat("ff", 32)
	_, err = Check(random(), &other)
	assert.ErrorIs(t, err, ErrFingerprint)
	assert.NotErrorIs(t, err, ErrGeometry)

	other.Layers, other.HeadsKV, other.Architecture = 4, 4, "qwen3"
	_, err = Check(random(), &other)
	assert.ErrorIs(t, err, ErrGeometry)
	assert.NotErrorIs(t, err, ErrFingerprint)
	assert.EqualError(t, err, "architecture: adapter for another geometry: found llama, wanted qwen3, as the model has it\n"+
		"layers: adapter for another geometry: found 3, wanted 4, as the model has it\n"+
		"key/value heads: adapter for another geometry: found 2, wanted 4, as the model has it")
}

func TestCheckUse(t *testing.T) {
	a := random()
	for _, c := range []struct {
		use      Trained
		warnings int
		err      error
	}{
		{trained, 0, nil},
		{Trained{Policy: "h2o"}, 0, nil},
		{Trained{Policy: "h2o", Context: 100}, 0, nil},
		{Trained{Policy: "h2o", Heavy: 5, Recent: 5, Ubatch: 512, Context: 513}, 2, nil},
		{Trained{Policy: "peak", Heavy: 4, Recent: 5, Ubatch: 32, Context: 512}, 0, ErrPolicy},
	} {
		warnings, err := CheckUse(a, c.use)
		assert.ErrorIs(t, err, c.err)
		assert.Len(t, warnings, c.warnings, "%+v", c.use)
	}
}

func TestReadModel(t *testing.T) {
	for name, want := range map[string]Geometry{
		"llama":     {4, 8, 2, 16, 16, nil},
		"qwen3":     {4, 4, 2, 32, 32, nil},
		"falcon":    {4, 4, 1, 32, 32, nil},
		"deepseek2": {2, 4, 1, 40, 32, nil},
		"gemma3n":   {25, 4, 1, 16, 16, nil},
		"openelm":   {4, 3, 1, 16, 16, []Shape{{3, 1, 16, 16}, {4, 2, 16, 16}, {6, 2, 16, 16}, {8, 4, 16, 16}}},
		"deci":      {5, 4, 4, 16, 16, []Shape{{4, 4, 16, 16}, {0, 0, 16, 16}, {4, 0, 16, 16}, {4, 2, 16, 16}, {4, 1, 16, 16}}},
		"gemma4-64": {7, 8, 2, 64, 64, []Shape{{8, 2, 64, 64}, {4, 1, 128, 128}, {8, 2, 64, 64}, {4, 1, 128, 128}, {8, 2, 64, 64}, {4, 1, 128, 128}, {4, 1, 128, 128}}},
	} {
		m, err := tinymodels.Find(name)
		require.NoError(t, err)
		var prints []string
		for _, typ := range []gguf.Type{gguf.F32, gguf.F16} {
			p, err := m.WriteIn(t.TempDir(), typ, 1)
			require.NoError(t, err)
			model, err := ReadModel(p)
			require.NoError(t, err)
			assert.Equal(t, want, model.Geometry, name)
			assert.Equal(t, 4096, model.Context, name)
			prints = append(prints, model.Fingerprint)
		}
		assert.Equal(t, prints[0], prints[1], "%s: the same for every type", name)
		p, err := m.WriteIn(t.TempDir(), gguf.F32, 2)
		require.NoError(t, err)
		model, err := ReadModel(p)
		require.NoError(t, err)
		assert.NotEqual(t, prints[0], model.Fingerprint, "%s: other weights", name)
	}
}

// A model has the same fingerprint with and without layers that predict further tokens.
func TestFingerprintWithoutPrediction(t *testing.T) {
	read := func(blocks, ahead int) *Model {
		pairs := []gguf.KeyValue{
			{Key: "general.architecture", Value: "x"}, {Key: "x.block_count", Value: uint32(blocks)}, {Key: "x.nextn_predict_layers", Value: uint32(ahead)},
			{Key: "x.embedding_length", Value: uint32(64)}, {Key: "x.context_length", Value: uint32(128)}, {Key: "x.attention.head_count", Value: uint32(4)},
			{Key: "x.vocab_size", Value: uint32(9)},
		}
		var tensors []gguf.Tensor
		for i := range blocks {
			tensors = append(tensors, gguf.Tensor{Name: fmt.Sprintf("blk.%d.attn_norm.weight", i), Type: gguf.F32, Dims: []uint64{2}, Values: []float32{1, float32(i)}})
		}
		p := filepath.Join(t.TempDir(), "m.gguf")
		require.NoError(t, gguf.WriteFile(p, pairs, tensors))
		m, err := ReadModel(p)
		require.NoError(t, err)
		return m
	}
	plain, predicts := read(11, 0), read(12, 1)
	assert.Equal(t, 11, predicts.Layers)
	assert.Equal(t, plain.Fingerprint, predicts.Fingerprint)
	assert.NotEqual(t, plain.Fingerprint, read(12, 0).Fingerprint)
}

func TestReadModelRefuses(t *testing.T) {
	base := []gguf.KeyValue{
		{Key: "general.architecture", Value: "x"}, {Key: "x.block_count", Value: uint32(2)}, {Key: "x.embedding_length", Value: uint32(64)},
		{Key: "x.context_length", Value: uint32(128)}, {Key: "x.attention.head_count", Value: uint32(4)}, {Key: "x.vocab_size", Value: uint32(9)},
	}
	write := func(changes ...gguf.KeyValue) string {
		var pairs []gguf.KeyValue
	next:
		for _, p := range base {
			for i, c := range changes {
				if c.Key == p.Key {
					p.Value = c.Value
					changes = append(changes[:i:i], changes[i+1:]...)
					if p.Value == nil {
						continue next
					}
					break
				}
			}
			pairs = append(pairs, p)
		}
		p := filepath.Join(t.TempDir(), "m.gguf")
		require.NoError(t, gguf.WriteFile(p, append(pairs, changes...), nil))
		return p
	}
	kv := func(key string, value any) gguf.KeyValue { return gguf.KeyValue{Key: key, Value: value} }
	m, err := ReadModel(write(kv("x.attention.head_count_kv", []uint32{2, 2})))
	require.NoError(t, err, "equal numbers in an array are one number")
	assert.Equal(t, Geometry{Layers: 2, Heads: 4, HeadsKV: 2, KeyLength: 16, ValueLength: 16}, m.Geometry)
	assert.Equal(t, 9, m.Vocab)
	for name, c := range map[string]struct {
		change gguf.KeyValue
		err    error
		says   string
	}{
		"no architecture": {kv("general.architecture", nil), gguf.ErrMissing, "general.architecture"},
		"adapter":         {kv("general.type", "adapter"), ErrModel, "give the base model's file"},
		"part":            {kv("split.count", uint16(3)), ErrModel, "one of 3 parts"},
		"no layers":       {kv("x.block_count", uint32(0)), ErrModel, "1 to 512"},
		"many layers":     {kv("x.block_count", uint32(math.MaxUint32)), ErrModel, "found 4294967295"},
		"no heads":        {kv("x.attention.head_count", nil), ErrModel, "0 query and 0 key/value heads"},
		"odd heads":       {kv("x.attention.head_count_kv", uint32(3)), ErrModel, "4 query and 3 key/value heads"},
		"unequal heads":   {kv("x.attention.head_count_kv", []int32{2, 3}), ErrModel, "4 query and 3 key/value heads in layer 1"},
		"window's length": {kv("x.attention.key_length_swa", uint32(8)), ErrModel, "sliding_window_pattern"},
		"negative heads":  {kv("x.attention.head_count_kv", []int32{-2, -2}), ErrModel, "found -2"},
		"few numbers":     {kv("x.attention.head_count_kv", []int32{2}), ErrModel, "one for each of 2 layers"},
		"heads as floats": {kv("x.attention.head_count_kv", []float32{2, 2}), gguf.ErrType, "array of f32"},
		"heads as string": {kv("x.attention.head_count_kv", "2"), gguf.ErrType, "wanted u32"},
		"narrow":          {kv("x.embedding_length", uint32(3)), ErrModel, "found 0"},
		"no context":      {kv("x.context_length", nil), gguf.ErrMissing, "x.context_length"},
		"no tokens":       {kv("tokenizer.ggml.model", "llama"), gguf.ErrMissing, "tokenizer.ggml.tokens"},
	} {
		_, err := ReadModel(write(c.change))
		assert.ErrorIs(t, err, c.err, name)
		assert.ErrorContains(t, err, c.says, name)
	}
	recurrent, err := tinymodels.Find("mamba")
	require.NoError(t, err)
	p, err := recurrent.WriteIn(t.TempDir(), gguf.F16, 1)
	require.NoError(t, err)
	_, err = ReadModel(p)
	assert.ErrorIs(t, err, ErrModel)
}

// FuzzRead: any bytes are an adapter, read in memory of their own size, or refused with an *Error; what was read is written and read
// as it was, but for the description, which is not looked at.
func FuzzRead(f *testing.F) {
	allocated := func(a *Adapter) *Adapter { a.Budget = []float32{1, 2, 3, 4, 5, 0, 0, 0}; return a }
	for _, a := range []*Adapter{
		Random(&Model{Architecture: "llama", Geometry: Geometry{1, 2, 1, 8, 8, nil}, Fingerprint: strings.Repeat("0", 64)}, 2, 4, trained, 1),
		scaled(allocated(Random(differing(), 2, 4, trained, 1)), 3),
		scaled(sized(Random(differing(), 2, 4, trained, 1), differing(), 2, 1, 0, 3), 3),
		sized(Random(&Model{Architecture: "x", Geometry: Geometry{3, 1, 1, 32, 4, nil}, Fingerprint: strings.Repeat("f", 64)}, 2, 4, trained, 1), &Model{Architecture: "x", Geometry: Geometry{3, 1, 1, 32, 4, nil}}, 3, 1, 1),
		New(&Model{Architecture: "x", Geometry: Geometry{3, 1, 1, 32, 4, nil}, Fingerprint: strings.Repeat("f", 64)}, trained),
	} {
		p := filepath.Join(f.TempDir(), "a.gguf")
		require.NoError(f, a.Write(p))
		b, err := os.ReadFile(p)
		require.NoError(f, err)
		f.Add(b)
	}
	written := filepath.Join(f.TempDir(), "b.gguf")
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, 2<<20+256*len(b), func() {
			a, err := readBytes(b)
			if err != nil {
				var e *Error
				require.ErrorAs(t, err, &e)
				return
			}
			if a.Convert(gguf.F32) != nil { // q8_0 written anew rounds anew
				return
			}
			require.NoError(t, a.Write(written))
			again, err := Read(written)
			require.NoError(t, err)
			a.SHA256, again.SHA256 = "", ""
			require.Equal(t, a, again)
		})
	})
}

// FuzzReadModel: any bytes are a model with a fingerprint, or refused with an *Error.
func FuzzReadModel(f *testing.F) {
	for _, name := range []string{"llama", "gemma2", "gpt2", "mamba", "gemma4", "gemma3n", "deci"} {
		m, err := tinymodels.Find(name)
		require.NoError(f, err)
		p, err := m.WriteIn(f.TempDir(), gguf.F16, 1)
		require.NoError(f, err)
		b, err := header(p)
		require.NoError(f, err)
		f.Add(b)
	}
	p := filepath.Join(f.TempDir(), "m.gguf")
	f.Fuzz(func(t *testing.T, b []byte) {
		require.NoError(t, os.WriteFile(p, b, 0o644))
		fuzztest.Bounded(t, 2<<20+256*len(b), func() {
			m, err := ReadModel(p)
			if err != nil {
				var e *Error
				require.ErrorAs(t, err, &e)
				return
			}
			require.Len(t, m.Fingerprint, 64)
			for i := range m.Layers {
				s, owner := m.Layer(i), m.Owner(i)
				require.True(t, s.HeadsKV == 0 || s.Heads%s.HeadsKV == 0)
				require.True(t, owner == i || owner >= 0 && owner < i && m.Owner(owner) == owner)
			}
			again, err := ReadModel(p)
			require.NoError(t, err)
			require.Equal(t, m, again)
		})
	})
}

// header returns a model's keys and its vectors: a small file that says as much to ReadModel as the model's own.
func header(path string) ([]byte, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var pairs []gguf.KeyValue
	for _, key := range f.Keys {
		if strings.HasPrefix(key, "tokenizer.") {
			continue
		}
		if v, err := gguf.Get[string](f, key); err == nil {
			pairs = append(pairs, gguf.KeyValue{Key: key, Value: v})
		}
		if v, err := gguf.GetArray[bool](f, key); err == nil {
			pairs = append(pairs, gguf.KeyValue{Key: key, Value: v})
		}
		if v, err := gguf.Get[uint32](f, key); err == nil {
			pairs = append(pairs, gguf.KeyValue{Key: key, Value: v})
		}
		if v, err := gguf.Get[float32](f, key); err == nil {
			pairs = append(pairs, gguf.KeyValue{Key: key, Value: v})
		}
		if v, err := gguf.GetArray[int32](f, key); err == nil {
			pairs = append(pairs, gguf.KeyValue{Key: key, Value: v})
		}
	}
	var tensors []gguf.Tensor
	for _, t := range f.Tensors {
		if len(t.Dims) > 1 {
			continue
		}
		values, err := f.Floats(t.Name)
		if err != nil {
			return nil, err
		}
		values = values[:min(4, len(values))]
		tensors = append(tensors, gguf.Tensor{Name: t.Name, Type: gguf.F32, Dims: []uint64{uint64(len(values))}, Values: values})
	}
	var b bytes.Buffer
	err = gguf.Write(&b, pairs, tensors)
	return b.Bytes(), err
}
