package train

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights"
)

// Options that can't be trained with are refused before the model runs.
func TestOptionsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(o *Options)
		want   error
		says   string
	}{
		"rate NaN":           {func(o *Options) { o.Rate = math.NaN() }, ErrOption, "a rate of NaN"},
		"rate infinite":      {func(o *Options) { o.Rate = math.Inf(1) }, ErrOption, "a rate of +Inf"},
		"rate huge":          {func(o *Options) { o.Rate = 1e30 }, ErrOption, "at most 1"},
		"rate negative":      {func(o *Options) { o.Rate = -1 }, ErrOption, "a rate of -1"},
		"rank":               {func(o *Options) { o.Rank = 100000 }, ErrOption, "at most 65536"},
		"hidden size":        {func(o *Options) { o.Hidden = 100000 }, ErrOption, "at most 65536"},
		"negative":           {func(o *Options) { o.Steps = -1 }, ErrOption, "-1"},
		"budget":             {func(o *Options) { o.Budgets = []int{16, window + 1} }, ErrOption, "nothing is evicted"},
		"budget of none":     {func(o *Options) { o.Budgets, o.Heavy = []int{0}, 1 }, ErrOption, "a budget of 0 slots"},
		"budget of a window": {func(o *Options) { o.Budgets = []int{window - 4} }, ErrOption, "nothing is evicted"},
		"memory of the rank": {func(o *Options) { o.Rank, o.Memory = 3000, 256<<20 }, ErrMemory, "256 MiB are free"},
		"memory of windows":  {func(o *Options) { o.Memory = 1 }, ErrMemory, "windows of 96 tokens"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, "a.gguf")
			c.change(&o)
			var f fake
			_, err := Run(context.Background(), o, &f, windows(t))
			assert.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, c.says)
			assert.Zero(t, f.recorded, "refused before the work")
			assert.NoDirExists(t, o.Output+".work")
		})
	}
}

// What phi and psi of any size take is known without making them, if it is more than there is. Those of other layers do not count.
func TestSizedMemory(t *testing.T) {
	o := options(t, "a.gguf")
	o.Rank, o.Hidden, o.Memory = weights.MaxSize, weights.MaxSize, 1<<30
	_, err := o.Sized()
	assert.ErrorIs(t, err, ErrMemory)
	assert.ErrorContains(t, err, "1 GiB are free")
	o.Rank, o.Hidden, o.Ranks, o.Hiddens = 1, 1, map[int]int{2: weights.MaxSize}, map[int]int{2: weights.MaxSize}
	_, err = o.Sized()
	assert.ErrorIs(t, err, ErrMemory)
	o.Layers = []int{0, 1}
	a, err := o.Sized()
	require.NoError(t, err)
	assert.False(t, a.Kernels[1].Empty())
	assert.True(t, a.Kernels[2].Empty())
}

// With memory for little, less is done at a time.
func TestLittleMemory(t *testing.T) {
	o := options(t, "a.gguf")
	o.Steps, o.Threads = 2, 4
	require.NoError(t, o.Check(window))
	o.Context = window
	require.NoError(t, o.fill())
	o.Memory = o.fitMemory() + 1000
	assert.Equal(t, 1, o.atOnce(4, o.fitMemory()))
	assert.Equal(t, 3, o.atOnce(3, o.windowMemory()))
	_, err := Run(context.Background(), o, &fake{}, windows(t))
	require.NoError(t, err)
}

// The largest budget that a window has something to learn for is taken.
func TestLargestBudget(t *testing.T) {
	o := options(t, "a.gguf")
	o.Budgets, o.Steps, o.Memory = []int{window - 5}, 2, 1<<30
	_, err := Run(context.Background(), o, &fake{}, windows(t))
	require.NoError(t, err)
}

// A name that a shell would take for a pattern is a name like others: the work folder's files are found, and freed.
func TestOutputLikePattern(t *testing.T) {
	for _, name := range []string{"x[1.gguf", "m[1].gguf", "*?.gguf", `a\b.gguf`} {
		t.Run(name, func(t *testing.T) {
			o := options(t, name)
			o.Steps = 40
			work := o.Output + ".work"
			require.NoError(t, os.MkdirAll(work, 0o755))
			other := filepath.Join(work, "layer-001.replay-16") // of a layer that is not fitted
			require.NoError(t, os.WriteFile(other, nil, 0o644))
			finished := 0
			o.Progress = func(e Event) {
				if e.Stage == Finished {
					finished++
				}
				if e.Stage == Fitting && e.Layer == 2 { // after layer 0, as there is one thread
					left, err := os.ReadDir(work)
					assert.NoError(t, err)
					for _, f := range left {
						assert.NotContains(t, []string{"layer-000.recording", "layer-000.replay-16", "layer-000.replay-24"}, f.Name(), "freed")
					}
					assert.FileExists(t, other)
				}
			}
			_, err := Run(context.Background(), o, &fake{}, windows(t))
			require.NoError(t, err)
			assert.Equal(t, 2, finished)
			assert.FileExists(t, o.Output)
			assert.NoDirExists(t, work)
		})
	}
}

// What a user keeps in a folder of the work's name is not deleted with the work.
func TestWorkOfAnother(t *testing.T) {
	for _, name := range []string{"thesis.txt", "locksmith.txt", "lock.bak", "plan.json.bak", "plan.jsonl", "layer-000.psd", "layer-1.gguf", "layer-000.gguf.bak", "layer-000.readme",
		"layer-000.replay-", "my layer-000.gguf", "plan.json/years.txt", "layer-000.gguf/years.txt"} {
		o := options(t, "a.gguf")
		mine := filepath.Join(o.Output+".work", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(mine), 0o755))
		require.NoError(t, os.WriteFile(mine, []byte("years"), 0o644))
		_, err := Run(context.Background(), o, &fake{}, windows(t))
		assert.ErrorIs(t, err, ErrOther, name)
		first, _, _ := strings.Cut(name, "/")
		assert.ErrorContains(t, err, first)
		data, err := os.ReadFile(mine)
		require.NoError(t, err)
		assert.Equal(t, "years", string(data))
	}
}

// Nor what is put there while the run is at work.
func TestWorkOfAnotherLater(t *testing.T) {
	o := options(t, "a.gguf")
	mine := filepath.Join(o.Output+".work", "layer-000.readme")
	o.Progress = func(Event) { assert.NoError(t, os.WriteFile(mine, []byte("years"), 0o644)) }
	_, err := Run(context.Background(), o, &fake{}, windows(t))
	require.NoError(t, err)
	assert.FileExists(t, o.Output)
	left, err := os.ReadDir(filepath.Dir(mine))
	require.NoError(t, err)
	require.Len(t, left, 1)
	assert.Equal(t, filepath.Base(mine), left[0].Name())
}

// Parts of one adapter that were trained differently are not joined, though their files' keys agree.
func TestMergeParts(t *testing.T) {
	parts := map[string]*weights.Adapter{}
	for name, change := range map[string]func(o *Options){
		"first":  func(o *Options) { o.Layers = []int{0} },
		"second": func(o *Options) { o.Layers = []int{1, 2} },
		"steps":  func(o *Options) { o.Layers, o.Steps = []int{1, 2}, 41 },
	} {
		o := options(t, name)
		o.Steps = 40
		change(&o)
		_, err := Run(context.Background(), o, &fake{}, windows(t))
		require.NoError(t, err)
		parts[name], err = weights.Read(o.Output)
		require.NoError(t, err)
	}
	both, err := weights.Merge(parts["first"], parts["second"])
	require.NoError(t, err)
	assert.False(t, both.Kernels[0].Empty() || both.Kernels[2].Empty())
	_, err = weights.Merge(parts["first"], parts["steps"])
	assert.ErrorIs(t, err, weights.ErrMerge)
	assert.ErrorContains(t, err, `"Steps":41`)
	assert.ErrorContains(t, err, `"Steps":40`)
}
