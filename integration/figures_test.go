package integration

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/reference"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// What testdata/heldout-windows.u16 holds: windows of gopher-5m's context.
const (
	windows      = 6
	windowTokens = 2048
)

// window returns the tokens of held-out window i, 0 to 5.
func window(t *testing.T, i int) []int32 {
	t.Helper()
	b, err := os.ReadFile("testdata/heldout-windows.u16")
	require.NoError(t, err)
	require.Len(t, b, 2*windows*windowTokens)
	tokens := make([]int32, windowTokens)
	for j := range tokens {
		tokens[j] = int32(binary.LittleEndian.Uint16(b[2*(i*windowTokens+j):]))
	}
	return tokens
}

// The windows are what they are said to be: in make test the first, and make soak, which tokenises all of the text, has the others.
func TestWindows(t *testing.T) {
	t.Parallel()
	w := open(t, worker.Unmodified, worker.Config{Model: gopher})
	if !soak() {
		assert.Equal(t, heldOut(t, w, windowTokens), window(t, 0))
		return
	}
	text, err := os.ReadFile("testdata/heldout.txt")
	require.NoError(t, err)
	tokens, err := w.Tokenize(string(text), true)
	require.NoError(t, err)
	assert.Len(t, tokens, 378608)
	for i := range windows {
		assert.Equal(t, tokens[60000*i:][:windowTokens], window(t, i), "window %d", i)
	}
}

// adapterPath returns the file of one of gopher-5m's adapters.
func adapterPath(name string) string {
	dir := "testdata/"
	if strings.HasPrefix(name, "reference-") {
		dir += "checkout/"
	}
	return dir + "gopher-5m." + name + ".lesskv.gguf"
}

// kernels gives the reference an adapter's kernels.
func kernels(a *weights.Adapter) []*reference.Kernels {
	all := make([]*reference.Kernels, len(a.Kernels))
	for i, k := range a.Kernels {
		if k.Empty() {
			continue
		}
		w := &reference.Kernels{Rank: k.Rank, Hidden: k.Hidden}
		for m := range k.Phi {
			w.Phi[m] = k.Phi[m].Values
		}
		for m := range k.Psi {
			w.Psi[m] = k.Psi[m].Values
		}
		w.Scale = k.Scale.Values
		all[i] = w
	}
	return all
}

// figures is what a method's logits are worth: perplexity, KL(full || method) in nats, share of equal top tokens.
type figures struct{ perplexity, kl, top1 float64 }

// published are figures of another implementation of algorithm.md, in PyTorch and float32, on the six windows of
// testdata/heldout-windows.u16, with the adapters that it was published with: means over positions from B + T on, one pinned token, h as algorithm.md has it.
var published = []struct {
	policy  *reference.Policy
	budget  int
	ubatch  int
	adapter string // "": sparse only
	full    float64
	figures
	always bool // quick enough to be checked every time
}{
	{reference.H2O, 102, 32, "", 17.410, figures{20.873, 0.2087, 0.8053}, false},
	{reference.H2O, 102, 32, "reference-h2o-102", 17.410, figures{20.543, 0.1763, 0.8384}, false},
	{reference.H2O, 41, 32, "", 17.488, figures{24.487, 0.3505, 0.7369}, false},
	{reference.H2O, 41, 32, "reference-h2o-41", 17.488, figures{23.326, 0.2793, 0.7868}, true},
	{reference.Lambda, 102, 32, "", 17.410, figures{19.558, 0.1515, 0.8264}, false},
	{reference.Lambda, 41, 32, "", 17.488, figures{22.645, 0.2950, 0.7574}, false},
	{reference.Peak, 102, 32, "", 17.410, figures{19.473, 0.1347, 0.8345}, false},
	{reference.Peak, 102, 32, "reference-peak-102", 17.410, figures{19.285, 0.1082, 0.8669}, false},
	{reference.Peak, 41, 32, "", 17.488, figures{22.174, 0.2610, 0.7710}, false},
	{reference.Peak, 41, 32, "reference-peak-41", 17.488, figures{21.400, 0.2069, 0.8148}, false},
	{reference.H2O, 102, 512, "", 16.826, figures{17.536, 0.0592, 0.8956}, false},
	{reference.H2O, 102, 512, "reference-h2o-102", 16.826, figures{17.543, 0.0488, 0.9134}, false},
}

// The reference finds what the other implementation found: two people read algorithm.md and understood the same. make soak has every row.
func TestReferenceFigures(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute of computing")
	}
	t.Parallel()
	model, err := reference.LoadModel(gopher)
	require.NoError(t, err)
	model.Unrounded = true // as PyTorch had it

	rows := published[:0:0]
	for _, row := range published {
		if row.always || soak() {
			rows = append(rows, row)
		}
	}
	points := make([][]*distance.Points, len(rows))
	t.Run("windows", func(t *testing.T) {
		var mu sync.Mutex
		for i := range windows {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				tokens := window(t, i)
				full, err := model.Logits(tokens, reference.Exact(model.Layer(), len(tokens)))
				require.NoError(t, err)
				for j, row := range rows {
					method := reference.LESS{Layer: model.Layer(), Ubatch: row.ubatch}
					method.Layer.Policy, method.Layer.Budget = row.policy, row.budget
					method.Layer.Heavy, method.Layer.Pinned = row.policy.Heavy(row.budget), 1
					if row.adapter != "" {
						a, err := weights.Read(adapterPath(row.adapter))
						require.NoError(t, err)
						method.Kernels = kernels(a)
					}
					logits, err := model.Logits(tokens, method.Attention())
					require.NoError(t, err)
					p, err := distance.Compare(full, logits, tokens)
					require.NoError(t, err)
					mu.Lock()
					points[j] = append(points[j], p)
					mu.Unlock()
				}
			})
		}
	})

	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "policy, B, T\tadapter\tfull ppl\tppl\tKL\ttop-1\tKL off by")
	for j, row := range rows {
		s := distance.Mean(row.budget+row.ubatch, points[j]...)
		fmt.Fprintf(w, "%v %d, %d\t%s\t%.3f\t%.3f\t%.4f\t%.4f\t%+.2f %%\n", row.policy, row.budget, row.ubatch, row.adapter,
			s.FullPerplexity, s.Perplexity, s.KL, s.Top1, 100*(s.KL/row.kl-1))
		name := fmt.Sprintf("%v %d, %d, adapter %q", row.policy, row.budget, row.ubatch, row.adapter)
		assert.InEpsilon(t, row.full, s.FullPerplexity, 2e-4, name)
		assert.InEpsilon(t, row.perplexity, s.Perplexity, 2e-3, name)
		assert.InEpsilon(t, row.kl, s.KL, 5e-3, name)
		assert.Less(t, math.Abs(row.top1-s.Top1), 1e-3, name)
	}
	w.Flush()
	t.Log("\n" + b.String())
}

// What lesskv train made beats what another trainer made of less text, and the state beats its bytes in slots: on one window
// here, on all six in docs/quality.md.
func TestAdapters(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute of computing")
	}
	t.Parallel()
	tokens := window(t, 1)
	logits := func(tree worker.Tree, less *worker.LESS) []float32 {
		w := open(t, tree, worker.Config{Model: gopher, Context: windowTokens, Batch: windowTokens, Ubatch: 32, LESS: less})
		out, err := w.Decode(0, 0, tokens, worker.All)
		require.NoError(t, err)
		return out.Values
	}
	full := logits(worker.Unmodified, nil)
	for _, policy := range []string{"h2o", "peak"} {
		for _, budget := range []int{102, 41} {
			kl := func(budget int, adapter string) float64 {
				less := &worker.LESS{Policy: policy, Budget: budget}
				if adapter != "" {
					less.Adapter = adapterPath(adapter)
				}
				p, err := distance.Compare(full, logits(worker.Patched, less), tokens)
				require.NoError(t, err)
				return distance.Mean(budget+32, p).KL
			}
			name := fmt.Sprintf("%s-%d", policy, budget)
			own, other, plus := kl(budget, name), kl(budget, "reference-"+name), kl(budget+7, "")
			t.Logf("%s: %.4f, the other trainer's %.4f, Baseline+ %.4f", name, own, other, plus)
			assert.Less(t, own, other, name)
			assert.Less(t, own, plus, name)
		}
	}
}
