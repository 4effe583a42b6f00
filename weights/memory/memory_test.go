package memory

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Allocate spreads as the C kernels do, and refuses what they refuse.
func TestAllocateAsC(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range 20000 {
		w := make([]float32, 1+r.IntN(40))
		for i := range w {
			switch r.IntN(5) {
			case 0: // stays 0
			case 1:
				w[i] = 1
			case 2:
				w[i] = float32(weights.MaxWeight) * r.Float32()
			default:
				w[i] = float32(r.ExpFloat64())
			}
		}
		if r.IntN(20) == 0 {
			w[0] = -1
		}
		budget := 1 + r.IntN(300)
		least, most := r.IntN(budget+2), budget-1+r.IntN(1000)
		want, wantErr := kernels.Allocate(w, budget, least, most)
		got, err := Allocate(w, budget, least, most)
		if wantErr != nil {
			refused++
			require.ErrorIs(t, err, ErrBudget, "%v %d %d %d", w, budget, least, most)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want, got, "%v %d %d %d", w, budget, least, most)
	}
	require.Greater(t, refused, 100)
}

// Weights count once, quantised ones too.
func TestWeights(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.gguf")
	require.NoError(t, gguf.WriteFile(path, nil, []gguf.Tensor{
		{Name: "quantised", Type: gguf.Q8_0, Dims: []uint64{64}, Values: make([]float32, 64)},
		{Name: "half", Type: gguf.F16, Dims: []uint64{64}, Values: make([]float32, 64)},
	}))
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.EqualValues(t, 2*34+2*64, Weights(f))
}

func TestParseBudget(t *testing.T) {
	for text, want := range map[string]Budget{
		"": {}, "1024": {Tokens: 1024}, "5%": {Share: 0.05}, "7%": {Share: 0.07}, "5 %": {Share: 0.05}, "100%": {Share: 1}, "150%": {Share: 1},
		"64MiB": {Bytes: 64 << 20}, "1.5 GiB": {Bytes: 3 << 29}, "3KiB": {Bytes: 3 << 10}, "1/16": {Full: 1. / 16}, "3 / 64": {Full: 3. / 64}, "1/1": {Full: 1},
	} {
		got, err := ParseBudget(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		require.Equal(t, want.Bytes > 0 || want.Full > 0, got.InBytes(), text)
	}
	for _, text := range []string{"0", "-1", "1.5", "1e2", "0%", "NaN%", "Inf%", "MiB", "64MB", "0MiB", "1e300GiB", "2/1", "0/4", "1/2/3"} { // and more in the plugin's tests
		_, err := ParseBudget(text)
		require.ErrorIs(t, err, ErrBudget, text)
	}
	for text, want := range map[string]string{"64M": "64MiB", "64 MB": "64MiB", "1.5g": "1.5GiB", "300kib": "300KiB"} {
		_, err := ParseBudget(text)
		require.ErrorIs(t, err, ErrBudget, text)
		require.ErrorContains(t, err, "want a budget in memory as "+want, text)
	}
}

// f16 are slots of F16 in all layers.
func f16(m *weights.Model) []weights.SlotTypes {
	return weights.SameSlotTypes(weights.SlotTypes{Key: gguf.F16, Value: gguf.F16}, m.Layers)
}

// Each layer's slots take the bytes of its own types: an adapter's where none are given, and in a budget in bytes too.
func TestTypesByLayer(t *testing.T) {
	m, err := weights.ReadModel("../../integration/testdata/gopher-5m.gguf")
	require.NoError(t, err)
	a := weights.New(m, weights.Trained{Policy: "peak", Ubatch: 32, Context: 2048})
	a.SlotTypes = SlotTypes(m, nil)
	a.SlotTypes[0].Key, a.SlotTypes[5].Value = gguf.Q4_0, gguf.Q4_0
	c := Cache{Context: 2048, Budget: Budget{Tokens: 64}, Pinned: 1, Adapter: a}
	got, err := Less(m, c)
	require.NoError(t, err)
	require.EqualValues(t, 2*64*(4*(68+68+8)+2*(36+68+8)), got.Slots)
	each, err := SlotOfEach(m, a.SlotTypes)
	require.NoError(t, err)
	require.Equal(t, got.Slots, 64*each)
	c.Budget = Budget{Bytes: int64(got.Slots)}
	got, err = Less(m, c)
	require.NoError(t, err)
	require.Equal(t, 64, got.Budget)
	c.Types = f16(m)
	got, err = Less(m, c)
	require.NoError(t, err)
	require.Equal(t, 2*64*(4*(68+68+8)+2*(36+68+8))/(6*2*264), got.Budget, "given types are those of all layers")
}

// phi and psi take their own bytes, whatever slots they read: rotated ones too.
func TestKernelBytes(t *testing.T) {
	m, err := weights.ReadModel("../../integration/testdata/gopher-5m.gguf")
	require.NoError(t, err)
	a := weights.Random(m, 4, 4, weights.Trained{Policy: "h2o", Ubatch: 32, Context: 1024}, 1)
	for _, key := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q8_0, gguf.Q4_0} {
		bytes, err := Less(m, Cache{Context: 512, Budget: Budget{Tokens: 64}, Pinned: 1, Types: weights.SameSlotTypes(weights.SlotTypes{Key: key, Value: gguf.F16}, m.Layers), Adapter: a})
		require.NoError(t, err)
		require.Equal(t, a.Bytes(), bytes.Kernels, key)
	}
}

// Shares of heavy hitters are those of the kernels' policies.
func TestHeavyAsC(t *testing.T) {
	require.NotEmpty(t, heavy)
	for policy, share := range heavy {
		for budget := 1; budget < 300; budget++ {
			want, err := kernels.PolicyHeavy(policy, budget)
			require.NoError(t, err)
			require.Equal(t, want, share(budget), "%s of %d", policy, budget)
		}
	}
}

// Scratch is for the head with most slots of a layer, and has more for caches that layers share.
func TestScratch(t *testing.T) {
	tiny, err := tinymodels.Find("gemma3n")
	require.NoError(t, err)
	path, err := tiny.WriteIn(t.TempDir(), gguf.F32, 1)
	require.NoError(t, err)
	m, err := weights.ReadModel(path)
	require.NoError(t, err)

	a := weights.New(m, weights.Trained{Policy: "h2o", Ubatch: 32, Context: 1024})
	a.Budget = make([]float32, m.Sum(func(s weights.Shape) int { return s.HeadsKV }))
	plan, err := Less(m, Cache{Context: 1024, Budget: Budget{Tokens: 40}, Pinned: 1, Types: f16(m), Adapter: a})
	require.NoError(t, err)
	full := slices.IndexFunc(plan.Most, func(n int) bool { return n == 40 })
	a.Budget[full*m.HeadsKV] = 1 // its first head has all that is not the others' least
	plan, err = Less(m, Cache{Context: 1024, Budget: Budget{Tokens: 40}, Pinned: 1, Types: f16(m), Adapter: a})
	require.NoError(t, err)
	require.Greater(t, plan.Most[full], 40)

	few, more, bytes := make([]int, m.Layers), make([]int, m.Layers), 0
	for i := range m.Layers {
		if few[i], more[i] = 64, 128; !m.Attends(i) || m.Window(i) > 0 || m.Owner(i) == full {
			few[i], more[i] = 1024, 1024 // which all threads need room for
		}
	}
	for i := range m.Layers {
		if m.Shares(i) && m.Owner(i) != full && m.Window(i) == 0 && bytes == 0 {
			bytes = 4 * m.Layer(i).HeadsKV * 64
		}
	}
	require.Positive(t, bytes)
	require.EqualValues(t, bytes, Scratch(m, more, 32, 1)-Scratch(m, few, 32, 1))
}

func TestSlots(t *testing.T) {
	require.Equal(t, 64, Budget{Share: .01}.Slots(2048))
	require.Equal(t, 102, Budget{Share: .05}.Slots(2048))
	require.Equal(t, 2048, Budget{Share: 1}.Slots(2048))
	require.Equal(t, 7, Budget{Tokens: 7}.Slots(2048))
	require.Equal(t, 153, Budget{Share: .05}.Slots(3000), "of 3072, as the runtime rounds it up")
}

// What an adapter was trained with has room for what is pinned, whoever gives the budget; another budget has the policy's share.
func TestPinnedBesideTrained(t *testing.T) {
	tiny, err := tinymodels.Find("llama")
	require.NoError(t, err)
	path, err := tiny.WriteIn(t.TempDir(), gguf.F32, 1)
	require.NoError(t, err)
	m, err := weights.ReadModel(path)
	require.NoError(t, err)
	for _, c := range []struct {
		heavy, recent, budget int
		fits                  bool
	}{{30, 50, 0, true}, {30, 50, 80, true}, {30, 50, 81, false}, {40, 40, 0, false}, {40, 40, 80, false}, {40, 40, 120, true}} { // the policy's own share is half
		a := weights.Random(m, 4, 4, weights.Trained{Policy: "h2o", Heavy: c.heavy, Recent: c.recent, Ubatch: 32, Context: 1024}, 1)
		_, err := Less(m, Cache{Context: 512, Budget: Budget{Tokens: c.budget}, Pinned: 60, Types: f16(m), Adapter: a})
		if c.fits {
			require.NoError(t, err, c)
		} else {
			require.ErrorIs(t, err, ErrBudget, c)
		}
	}
}

func TestSize(t *testing.T) {
	for bytes, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1000 << 10: "1000 KiB", 10_368_000: "9.888 MiB", 96 << 20: "96 MiB", 5 << 30: "5 GiB", 1_648_000_000_000: "1.499 TiB"} {
		require.Equal(t, want, Size(bytes))
		require.Equal(t, want, Size(int64(bytes)))
	}
}
