package weights

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Geometry is what of a model's attention phi and psi depend on. The numbers of heads and their lengths are those of every
// layer or, where PerLayer is not nil, of the first.
type Geometry struct {
	Layers      int // of the model
	Heads       int // Hq, query heads
	HeadsKV     int // Hkv, key/value heads
	KeyLength   int // D, of one head
	ValueLength int // Dv, of one head

	PerLayer []Shape // of each layer, where they differ; else nil
}

// Shape is the attention of one layer, as Geometry has it. One without attention has no key/value heads.
type Shape struct{ Heads, HeadsKV, KeyLength, ValueLength int }

// Layer returns the shape of a layer.
func (g *Geometry) Layer(i int) Shape {
	if g.PerLayer != nil {
		return g.PerLayer[i]
	}
	return Shape{g.Heads, g.HeadsKV, g.KeyLength, g.ValueLength}
}

// setLayers sets everything but Layers from the shapes of the layers, one at least.
func (g *Geometry) setLayers(shapes []Shape) {
	first := shapes[0]
	g.Heads, g.HeadsKV, g.KeyLength, g.ValueLength, g.PerLayer = first.Heads, first.HeadsKV, first.KeyLength, first.ValueLength, nil
	for _, s := range shapes {
		if s != first {
			g.PerLayer = shapes
		}
	}
}

// KVHeads returns the number of KV heads of all layers: the weights of an allocation.
func (g *Geometry) KVHeads() int { return g.Sum(func(s Shape) int { return s.HeadsKV }) }

// Sum adds up something of every layer.
func (g *Geometry) Sum(of func(Shape) int) (sum int) {
	for i := range g.Layers {
		sum += of(g.Layer(i))
	}
	return sum
}

// Max returns the most of something that a layer has.
func (g *Geometry) Max(of func(Shape) int) (most int) {
	for i := range g.Layers {
		most = max(most, of(g.Layer(i)))
	}
	return most
}

// Trained says how an adapter was trained. Another policy makes it useless; other numbers make it worse.
type Trained struct {
	Policy  string
	Heavy   int // h; of an allocation that tune found, what it was found for
	Recent  int // r; the same
	Ubatch  int // tokens of a micro-batch
	Context int // tokens of the longest sequence
}

// Adapter is the file of phi and psi, of budgets by head, or of both, for one model. Its zero layers run sparse-only.
type Adapter struct {
	Architecture string // general.architecture of the base model
	Geometry
	Trained     Trained
	BaseName    string // the base model's, for people
	Fingerprint string // the base model's, Model.Fingerprint
	Description string // how it was made, for people; may be empty
	Kernels     []Kernels
	Budget      []float32   // weights of the budgets of each layer's KV heads, layer by layer (less.budget.weight); nil: equal
	SlotTypes   []SlotTypes // of each layer's slots (less.slots.key_type, less.slots.value_type); nil: the runtime's default
	SHA256      string      // of the file that it was read from, lower-case hex; "" if it wasn't
}

// Kernels are the matrices of a layer ("phi and psi" in algorithm.md). The zero value, without any, runs sparse-only. A layer that shares
// another's cache has Phi alone, and that other one Psi if any that attends to its cache has Phi.
//
//	phi(q) = |gelu(gelu(q W1) W2)|       Phi[0] [Hq][R'][D]   Phi[1] [Hq][R][R']
//	psi(k) = |gelu(gelu(k U1) U2) U3|    Psi[0] [Hkv][R'][D]  Psi[1] [Hkv][R][R']  Psi[2] [Hkv][R][R]
type Kernels struct {
	Rank   int // R, of the low-rank state; of a layer that shares another's cache: that one's
	Hidden int // R', the width inside phi and psi
	Phi    [2]Matrix
	Psi    [3]Matrix
	Scale  Matrix // [Hq][1][1]: what each query head adds to log(phi z); without values: 0
}

// Matrix is a stack of matrices, one a head: [head][out][in], in fastest.
type Matrix struct {
	Type   gguf.Type // in the file and in the runtime's memory: gguf.F32, F16 or Q8_0; those of psi.2 and the scale are always F32
	Values []float32
}

// Encode returns the values in their type, as the file holds them and the C kernels take them.
func (m Matrix) Encode() ([]byte, error) { return gguf.Encode(nil, m.Type, m.Values) }

// Empty reports whether the layer has neither phi nor psi and runs sparse-only.
func (k *Kernels) Empty() bool {
	for _, m := range k.matrices() {
		if len(m.Values) > 0 {
			return false
		}
	}
	return true
}

// HasPhi and HasPsi tell which of the two a layer has, or at least a part of.
func (k *Kernels) HasPhi() bool {
	return len(k.Phi[0].Values) > 0 || len(k.Phi[1].Values) > 0 || k.hasScale()
}
func (k *Kernels) HasPsi() bool {
	return len(k.Psi[0].Values) > 0 || len(k.Psi[1].Values) > 0 || len(k.Psi[2].Values) > 0
}

// hasScale reports whether a layer's query heads have scales.
func (k *Kernels) hasScale() bool { return len(k.Scale.Values) > 0 }

// has reports whether a layer has what a matrix is a part of.
func (k *Kernels) has(p part) bool {
	switch p.of {
	case ofPhi:
		return k.HasPhi()
	case ofPsi:
		return k.HasPsi()
	}
	return k.hasScale()
}

// matrices lists the matrices in the order of the file, which is that of Adapter.parts.
func (k *Kernels) matrices() [6]*Matrix {
	return [6]*Matrix{&k.Phi[0], &k.Phi[1], &k.Psi[0], &k.Psi[1], &k.Psi[2], &k.Scale}
}

// part is what the format says of one matrix of a layer.
type part struct {
	of      int
	format  string // of the tensor's name
	dims    []uint64
	onlyF32 bool
}

// What a matrix is a part of.
const (
	ofPhi = iota
	ofPsi
	ofScale
)

// needs reports whether a layer that has p must have another part too.
func (p part) needs(other part, version uint32) bool {
	return other.of != ofScale && (version == 1 || p.of == other.of || p.of == ofScale && other.of == ofPhi)
}

func (p part) name(layer int) string { return fmt.Sprintf(p.format, layer) }

func (p part) elements() uint64 {
	n := uint64(1)
	for _, d := range p.dims {
		n *= d
	}
	return n
}

// typeFor returns the type that a matrix takes where t is asked for: F32 where the format wants that, and F16 for Q8_0 whose rows don't
// fill blocks of 32.
func (p part) typeFor(t gguf.Type) gguf.Type {
	if p.onlyF32 {
		return gguf.F32
	}
	if _, ok := t.Size(p.dims[0]); !ok {
		return gguf.F16
	}
	return t
}

func (a *Adapter) parts(layer int) [6]part {
	s, k := a.Layer(layer), &a.Kernels[layer]
	u := func(n ...int) []uint64 { return []uint64{uint64(n[0]), uint64(n[1]), uint64(n[2])} }
	return [6]part{
		{ofPhi, tensorPhi0, u(s.KeyLength, k.Hidden, s.Heads), false},
		{ofPhi, tensorPhi1, u(k.Hidden, k.Rank, s.Heads), false},
		{ofPsi, tensorPsi0, u(s.KeyLength, k.Hidden, s.HeadsKV), false},
		{ofPsi, tensorPsi1, u(k.Hidden, k.Rank, s.HeadsKV), false},
		{ofPsi, tensorPsi2, u(k.Rank, k.Rank, s.HeadsKV), true},
		{ofScale, tensorPhiScale, []uint64{uint64(s.Heads)}, true},
	}
}

// Bytes returns the bytes of phi and psi in memory ("Memory" in algorithm.md), once per model.
func (a *Adapter) Bytes() uint64 {
	var n uint64
	for i := range a.Kernels {
		for _, m := range a.Kernels[i].matrices() {
			size, _ := m.Type.Size(uint64(len(m.Values)))
			n += size
		}
	}
	return n
}

// Sizes returns the rank and the hidden size of each layer, 0 in one that has neither phi nor psi.
func (a *Adapter) Sizes() (ranks, hiddens []int) {
	for i := range a.Kernels {
		ranks, hiddens = append(ranks, a.Kernels[i].Rank), append(hiddens, a.Kernels[i].Hidden)
	}
	return ranks, hiddens
}

// Largest returns the largest rank and hidden size of a layer, 0 without phi and psi.
func (a *Adapter) Largest() (rank, hidden int) {
	for i := range a.Kernels {
		rank, hidden = max(rank, a.Kernels[i].Rank), max(hidden, a.Kernels[i].Hidden)
	}
	return rank, hidden
}

// Convert gives phi and psi another type, F32, F16 or Q8_0, and rounds the values to it. psi.2 and the scale stay F32, and matrices whose
// rows don't fill Q8_0's blocks of 32 become F16 instead: phi.1 and psi.1 at a hidden size of 16, for example. So do those that Q8_0
// would round too coarsely, as where keys have a constant and its weights are a hundredth of the others. It fails with gguf.ErrRange, and nothing is changed, if a value is too large for the type.
func (a *Adapter) Convert(t gguf.Type) error {
	if t != gguf.F32 && t != gguf.F16 && t != gguf.Q8_0 {
		return &Error{Item: "phi and psi", Err: gguf.ErrType, Found: t.String(), Wanted: "F32, F16 or Q8_0"}
	}
	converted := make([]Kernels, len(a.Kernels))
	for i := range a.Kernels {
		parts := a.parts(i)
		converted[i].Rank, converted[i].Hidden = a.Kernels[i].Rank, a.Kernels[i].Hidden
		out := converted[i].matrices()
		for j, m := range a.Kernels[i].matrices() {
			if len(m.Values) == 0 {
				continue
			}
			out[j].Type = parts[j].typeFor(t)
			if out[j].Type == gguf.Q8_0 && uneven(m.Values, parts[j].dims) {
				out[j].Type = gguf.F16
			}
			data, err := gguf.Encode(nil, out[j].Type, m.Values)
			if err == nil {
				out[j].Values, err = gguf.Decode(out[j].Type, data)
			}
			if err != nil {
				return fmt.Errorf("tensor %s: %w", parts[j].name(i), err)
			}
		}
	}
	a.Kernels = converted
	return nil
}

// uneven reports whether an input of a head has weights so much smaller than others of its block of 32 that Q8_0, which rounds a block to
// 1/127 of its largest weight, would leave little of them.
func uneven(values []float32, dims []uint64) bool {
	const most, block = 16, 32
	in, out := int(dims[0]), int(dims[1])
	for head := range slices.Chunk(values, in*out) {
		square := make([]float64, in)
		for i, x := range head {
			square[i%in] += float64(x) * float64(x)
		}
		for inputs := range slices.Chunk(square, block) {
			largest := slices.Max(inputs)
			if slices.ContainsFunc(inputs, func(x float64) bool { return x > 0 && x*most*most < largest }) {
				return true
			}
		}
	}
	return false
}

// New returns an adapter for a model, without phi and psi: every layer runs sparse-only until they are put in.
func New(m *Model, trained Trained) *Adapter {
	return &Adapter{
		Architecture: m.Architecture,
		Geometry:     m.Geometry,
		Trained:      trained,
		BaseName:     m.Name,
		Fingerprint:  m.Fingerprint,
		Kernels:      make([]Kernels, m.Layers),
	}
}

// Zero returns an adapter whose phi and psi are all zero, F32: it must act as none at all, because phi(q).z is zero.
func Zero(m *Model, rank, hidden int, trained Trained) *Adapter {
	a := New(m, trained)
	a.fill(m, func(int) (int, int) { return rank, hidden }, func() float64 { return 0 })
	return a
}

// Random returns an adapter with normally distributed phi and psi, F32, which turn inputs of unit variance into features of
// about that size: for tests, in which what is folded must matter. The same arguments give the same values.
func Random(m *Model, rank, hidden int, trained Trained, seed uint64) *Adapter {
	return RandomSized(m, func(int) (int, int) { return rank, hidden }, trained, seed)
}

// RandomSized is Random with a rank and a hidden size for each layer.
func RandomSized(m *Model, size func(layer int) (rank, hidden int), trained Trained, seed uint64) *Adapter {
	a := New(m, trained)
	r := rand.New(rand.NewPCG(seed, 0))
	a.fill(m, size, r.NormFloat64)
	return a
}

// fill draws phi and psi of every layer that attends, and of one that shares another's cache phi alone, from a distribution of unit
// variance, and divides them by the root of what they sum over. It gives no layer scales.
func (a *Adapter) fill(m *Model, size func(layer int) (rank, hidden int), draw func() float64) {
	for i := range a.Kernels {
		if a.Layer(i).HeadsKV == 0 {
			continue
		}
		a.Kernels[i].Rank, a.Kernels[i].Hidden = size(i)
		matrices := a.Kernels[i].matrices()
		for j, p := range a.parts(i) {
			if p.of == ofScale || m.Owner(i) != i && p.of == ofPsi {
				continue
			}
			values := make([]float32, p.elements())
			scale := 1 / math.Sqrt(float64(p.dims[0]))
			for e := range values {
				values[e] = float32(scale * draw())
			}
			*matrices[j] = Matrix{Type: gguf.F32, Values: values}
		}
	}
}
