package integration

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Where two runtimes round their products otherwise (a GPU beside a CPU, matrices of F16 beside those of F32), two pairs whose scores are
// nearly the same can be evicted one for the other, and from then on the two remember different texts. So they are compared up to
// there: logits within a bound, the same pairs in every head, and where pairs differ at last, their scores do not by more than a tenth.
const roundedTie = 0.1

// sameButForTies decodes tokens with both, in micro-batches and eight alone, and compares them. With experts the comparison ends, too, where
// rounding made one choose others.
func sameButForTies(t *testing.T, one, other *worker.Worker, tokens []int32, experts bool, bound float64) {
	t.Helper()
	goOnAlike(t, one, other, 0, tokens, experts, bound)
}

// goOnAlike is sameButForTies behind what both have of sequence 0, whose next position is begin.
func goOnAlike(t *testing.T, one, other *worker.Worker, begin int, tokens []int32, experts bool, bound float64) {
	t.Helper()
	const ubatch = 32
	most := 0.0
	for pos := 0; pos < len(tokens); {
		n := min(ubatch, len(tokens)-pos)
		if pos >= len(tokens)/2 && pos < len(tokens)/2+8 {
			n = 1
		}
		var out [2]*worker.Output
		for i, w := range []*worker.Worker{one, other} {
			var err error
			out[i], err = w.Feed(0, begin+pos, tokens[pos:pos+n], worker.All)
			require.NoError(t, err)
		}
		d := compare(t, out[0], out[1])
		if experts && d.max >= bound {
			t.Logf("other experts at token %d of %d", pos, len(tokens))
			return
		}
		require.Less(t, d.max, bound, "tokens from %d on", pos)
		most, pos = max(most, d.max), pos+n
		if !sameSlots(t, one, other) {
			t.Logf("a tie behind token %d of %d; logits differed by %.2g at most", pos, len(tokens), most)
			return
		}
	}
	t.Logf("the same pairs; logits differed by %.2g at most", most)
}

// sameSlots says whether both hold the same pairs. Where they do not, those that only one holds are as good as tied.
func sameSlots(t *testing.T, one, other *worker.Worker) bool {
	t.Helper()
	layers, err := one.Layers(0)
	require.NoError(t, err)
	on, err := other.Layers(0)
	require.NoError(t, err)
	require.Equal(t, layers, on, "as many pairs kept and folded")
	heads, err := one.Heads()
	require.NoError(t, err)
	same := true
	for _, h := range heads {
		var scores [2]map[int32]float32 // by position
		for i, w := range []*worker.Worker{one, other} {
			at, score, err := w.Slots(0, h.Layer, h.Head)
			require.NoError(t, err)
			scores[i] = map[int32]float32{}
			for k, p := range at {
				scores[i][p] = score[k]
			}
		}
		lost, gained := onlyIn(scores[0], scores[1]), onlyIn(scores[1], scores[0])
		require.Len(t, gained, len(lost))
		for k := range lost {
			same = false
			assert.InDelta(t, lost[k], gained[k], roundedTie*max(lost[k], gained[k]), "layer %d, head %d: scores %v for %v", h.Layer, h.Head, gained, lost)
		}
	}
	return same
}

// onlyIn returns the scores of the pairs that only one holds, in order.
func onlyIn(one, other map[int32]float32) (scores []float64) {
	for p, s := range one {
		if _, both := other[p]; !both {
			scores = append(scores, float64(s))
		}
	}
	slices.Sort(scores)
	return scores
}

// What TestDevicesLESS asks of a GPU holds of other rounding on a CPU, where the weights are rounded as well: 0.14 were seen.
func TestRoundingMovesTiesOnly(t *testing.T) {
	t.Parallel()
	for _, m := range tinymodels.Supported() {
		if m.NoDecode {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			var w [2]*worker.Worker
			for i, matrices := range []gguf.Type{gguf.F32, gguf.F16} {
				w[i] = open(t, worker.Patched, worker.Config{Model: write(t, m, matrices), Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: 40}})
			}
			info, err := w[0].Info()
			require.NoError(t, err)
			sameButForTies(t, w[0], w[1], randomTokens(300, info.Vocab), m.Experts, 2*logitBoundF16)
		})
	}
}
