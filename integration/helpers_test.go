package integration

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/stat"

	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

const gopher = "testdata/gopher-5m.gguf"

// soak reports whether this is make soak, which does in full what make test does in part.
func soak() bool { return os.Getenv("LESSKV_SOAK") != "" }

// start starts a worker that lives as long as the test, and no longer than tests may run: what hangs is seen, under valgrind on a busy machine too.
func start(t *testing.T, tree worker.Tree) *worker.Worker {
	t.Helper()
	path, err := worker.Path(tree)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	if end, ok := t.Deadline(); ok {
		ctx, cancel = context.WithDeadline(context.Background(), end.Add(-10*time.Second))
	}
	w, err := worker.Start(ctx, path)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, w.Close())
		cancel()
	})
	return w
}

// open starts a worker and opens a model in it.
func open(t *testing.T, tree worker.Tree, c worker.Config) *worker.Worker {
	t.Helper()
	w := start(t, tree)
	_, err := w.Open(c)
	require.NoError(t, err)
	return w
}

// write writes a tiny model and returns its path.
func write(t *testing.T, m tinymodels.Model, matrices gguf.Type) string {
	t.Helper()
	path, err := m.WriteIn(t.TempDir(), matrices, 1)
	require.NoError(t, err)
	return path
}

// tiny writes the tiny model of a name.
func tiny(t *testing.T, name string) string {
	t.Helper()
	m, err := tinymodels.Find(name)
	require.NoError(t, err)
	return write(t, m, gguf.F32)
}

// heldOut returns the first n tokens of the text that gopher-5m was not trained on.
func heldOut(t *testing.T, w *worker.Worker, n int) []int32 {
	t.Helper()
	text, err := os.ReadFile("testdata/heldout.txt")
	require.NoError(t, err)
	tokens, err := w.Tokenize(string(text[:min(len(text), 8*n)]), true)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(tokens), n)
	return tokens[:n]
}

// randomTokens returns n tokens below vocab, always the same.
func randomTokens(n, vocab int) []int32 {
	r := rand.New(rand.NewPCG(1, 2))
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = r.Int32N(int32(vocab))
	}
	return tokens
}

// A run is a way to decode tokens: calls of so many tokens, the last size again and again.
type run struct {
	name  string
	sizes []int
}

var (
	atOnce  = run{"at once", []int{1 << 20}}
	byOne   = run{"one by one", []int{1}}
	chatter = run{"prompt, reply, prompt", []int{200, 1, 1, 1, 1, 37, 1, 1, 1, 100}}
)

// decode decodes tokens of sequence 0 from position 0 and returns the logits of each.
func (r run) decode(t *testing.T, w *worker.Worker, tokens []int32) *worker.Output {
	t.Helper()
	all := new(worker.Output)
	for i, pos := 0, 0; pos < len(tokens); i++ {
		n := min(r.sizes[min(i, len(r.sizes)-1)], len(tokens)-pos)
		out, err := w.Feed(0, pos, tokens[pos:pos+n], worker.All)
		require.NoError(t, err)
		all.Width = out.Width
		all.Values = append(all.Values, out.Values...)
		pos += n
	}
	require.Equal(t, len(tokens), all.Len())
	return all
}

// sameBits fails unless two outputs are equal bit for bit and finite. It says where they differ first, instead of printing them.
func sameBits(t *testing.T, want, got *worker.Output) {
	t.Helper()
	require.Equal(t, want.Width, got.Width)
	require.Equal(t, want.Len(), got.Len())
	require.NotEmpty(t, want.Values)
	for i, x := range want.Values {
		y := got.Values[i]
		if math.Float32bits(x) != math.Float32bits(y) {
			require.Failf(t, "not the same bits", "row %d, column %d: want %v, got %v", i/want.Width, i%want.Width, x, y)
		}
		if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
			require.Failf(t, "not finite", "row %d, column %d is %v", i/want.Width, i%want.Width, x)
		}
	}
}

// deviation says how far logits are from those they should equal.
type deviation struct {
	max      float64 // largest difference of two logits
	kl       float64 // mean KL(want || got) of a row, in nats
	flips    int     // rows whose most likely token differs although the margin over the second exceeds four times max
	rows     int
	clearTop int // rows whose margin exceeds that
}

func compare(t *testing.T, want, got *worker.Output) deviation {
	t.Helper()
	require.Equal(t, want.Width, got.Width)
	require.Equal(t, want.Len(), got.Len())
	require.NotZero(t, want.Len())
	d := deviation{rows: want.Len()}
	for i, x := range want.Values {
		diff := math.Abs(float64(x) - float64(got.Values[i]))
		if math.IsNaN(diff) {
			require.Failf(t, "not a number", "row %d, column %d: want %v, got %v", i/want.Width, i%want.Width, x, got.Values[i])
		}
		d.max = max(d.max, diff)
	}
	var points distance.Points
	require.NoError(t, points.Add(distance.Expect(want), got, nil))
	d.kl = stat.Mean(points.KL, nil)
	for i := range want.Len() {
		p, q := want.Row(i), got.Row(i)
		first, margin := top(p)
		if margin > 4*d.max {
			d.clearTop++
			if other, _ := top(q); other != first {
				d.flips++
			}
		}
	}
	return d
}

// top returns the index of the largest logit, and by how much it exceeds the second.
func top(row []float32) (index int, margin float64) {
	second := math.Inf(-1)
	for i, x := range row[1:] {
		switch {
		case x > row[index]:
			second, index = float64(row[index]), i+1
		case float64(x) > second:
			second = float64(x)
		}
	}
	return index, float64(row[index]) - second
}
