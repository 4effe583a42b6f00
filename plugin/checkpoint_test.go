package lesskv_test

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/memory"
)

// long is a text of which a budget of 64 evicts most.
var long = strings.Repeat(prompt+"\n\treturn nil\n}\n", 12)

// reused runs a greedy text and returns it with how many tokens of its prompt were there, and how many were evaluated.
func reused(t *testing.T, model *llama.LLama, text string, opts ...llama.PredictOption) (out string, cached, evaluated int) {
	t.Helper()
	out = predict(t, model, text, append([]llama.PredictOption{llama.IgnoreEOS}, opts...)...)
	g := timings(t, model)
	assert.Equal(t, g.Prompt, g.Cached+g.Evaluated)
	return out, g.Cached, g.Evaluated
}

// tokens counts those of a text.
func tokens(t *testing.T, model *llama.LLama, text string) int {
	t.Helper()
	n, _, err := model.TokenizeString(text)
	require.NoError(t, err)
	return int(n)
}

// sameFile fails unless two files have the same bytes.
func sameFile(t *testing.T, want, got string) {
	t.Helper()
	a, err := os.ReadFile(want)
	require.NoError(t, err)
	b, err := os.ReadFile(got)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(a, b), "%s and %s differ", want, got)
}

// checkpointed opens models of which each holds its memory in another way.
func checkpointed(t *testing.T, f func(t *testing.T, open func(opts ...llama.ModelOption) *llama.LLama)) {
	t.Run("sparse", func(t *testing.T) {
		f(t, func(opts ...llama.ModelOption) *llama.LLama {
			return open(t, append([]llama.ModelOption{sparse(64)}, opts...)...)
		})
	})
	t.Run("kernels", func(t *testing.T) {
		less := lesskv.Enable(lesskv.Config{Adapter: file(t, testdata.Peak102), Policy: lesskv.Peak, Budget: lesskv.Tokens(102)})
		f(t, func(opts ...llama.ModelOption) *llama.LLama {
			return open(t, append([]llama.ModelOption{less}, opts...)...)
		})
	})
	for _, name := range []string{"qwen35", "gemma3"} { // recurrent layers, sliding windows
		path := writeTiny(t, name, gguf.F16, 1)
		t.Run(name, func(t *testing.T) {
			f(t, func(opts ...llama.ModelOption) *llama.LLama {
				return load(t, path, append([]llama.ModelOption{sparse(64)}, opts...)...)
			})
		})
	}
}

// The same prompt again takes no evaluation, and writes the same, however often.
func TestRegenerate(t *testing.T) {
	checkpointed(t, func(t *testing.T, open func(opts ...llama.ModelOption) *llama.LLama) {
		model := open()
		want, _, _ := reused(t, model, long)
		for range 3 {
			got, cached, evaluated := reused(t, model, long)
			assert.Equal(t, want, got)
			assert.Equal(t, tokens(t, model, long), cached)
			assert.Zero(t, evaluated)
		}
		require.NoError(t, model.Eval(long, llama.SetThreads(1)))
		assert.Zero(t, timings(t, model).Evaluated, "Eval")
	})
}

// A text that leaves the one in the cache is evaluated from the last checkpoint before, with the bits of a model that never was elsewhere.
func TestEditedTurn(t *testing.T) {
	checkpointed(t, func(t *testing.T, open func(opts ...llama.ModelOption) *llama.LLama) {
		first := "\n" // go-llama.cpp's texts lack it
		model, fresh := open(), open()
		state, want := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "want")
		turn := func(m *llama.LLama, text string) string {
			var answer strings.Builder
			reused(t, m, text, llama.SetTokenCallback(func(s string) bool { answer.WriteString(s); return true }))
			return answer.String()
		}
		history := long + turn(model, long)
		held := tokens(t, model, long)

		turn(model, history+first+"func a() {")
		_, cached, evaluated := reused(t, model, history+first+"func b(x int) {", llama.SetTokens(40))
		assert.GreaterOrEqual(t, cached, held, "from the end of the answer, or else of its prompt")
		assert.Less(t, evaluated, 60)
		require.NoError(t, model.SaveState(state))

		turn(fresh, long)
		reused(t, fresh, history+first+"func b(x int) {", llama.SetTokens(40))
		require.NoError(t, fresh.SaveState(want))
		sameFile(t, want, state)
	})
}

// Where another program evaluated to a checkpoint, saved its state and went on, restoring the checkpoint comes to the same bits.
func TestCheckpointIsTheState(t *testing.T) {
	checkpointed(t, func(t *testing.T, open func(opts ...llama.ModelOption) *llama.LLama) {
		dir := t.TempDir()
		in := func(name string) string { return filepath.Join(dir, name) }
		model := open()
		require.NoError(t, model.Eval(long, llama.SetThreads(1)))
		require.NoError(t, model.SaveState(in("end")))
		reused(t, model, long+"func one() {")
		got, cached, _ := reused(t, model, long+"type two struct {")
		require.Positive(t, cached)
		require.NoError(t, model.SaveState(in("got")))

		other := open()
		require.NoError(t, other.LoadState(in("end")))
		want, fromState, _ := reused(t, other, long+"type two struct {")
		require.NoError(t, other.SaveState(in("want")))
		if assert.Equal(t, fromState, cached) {
			assert.Equal(t, want, got)
			sameFile(t, in("want"), in("got"))
		}
	})
}

// Of 200 turns, each with an edited one, the memory is that of the newest ends.
func TestCheckpointsAreBounded(t *testing.T) {
	for asked, turns := range map[int]int{0: 20, 1: 20, 2: 200, 5: 20} {
		model := open(t, lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Adapter: lesskv.NoAdapter, Checkpoints: asked}))
		n := cmp.Or(asked, memory.DefaultCheckpoints)
		text := prompt
		for i := range turns / 2 {
			for _, edit := range []string{"a", "b"} {
				reused(t, model, fmt.Sprintf("%s\n%s%d := 1", text, edit, i), llama.SetTokens(2))
				s := stats(t, model)
				assert.LessOrEqual(t, s.Checkpoints, n)
				const logits, headers = 4 * 4096, 4096
				assert.LessOrEqual(t, s.CheckpointBytes, uint64(n)*(s.SlotBytes+s.StateBytes+logits+headers))
			}
			text = fmt.Sprintf("%s\nb%d := 1", text, i)
		}
		s := stats(t, model)
		assert.Equal(t, n, s.Checkpoints)
		assert.Greater(t, s.CheckpointBytes, uint64(n-1)*s.SlotBytes)
	}
}

// Without checkpoints, and without LESS, what leaves the text is evaluated anew.
func TestNoCheckpoints(t *testing.T) {
	for name, opt := range map[string]llama.ModelOption{
		"none": lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Adapter: lesskv.NoAdapter, Checkpoints: lesskv.None}),
		"off":  lesskv.Disable(),
	} {
		model := open(t, opt)
		want, _, _ := reused(t, model, long)
		got, cached, _ := reused(t, model, long)
		assert.Equal(t, want, got, name)
		assert.Zero(t, cached, name)
		assert.Zero(t, stats(t, model).CheckpointBytes, name)
	}
	t.Setenv("LESSKV", "on")
	t.Setenv("LESSKV_CHECKPOINTS", "0")
	model := open(t)
	reused(t, model, long)
	assert.Zero(t, stats(t, model).Checkpoints)
	t.Setenv("LESSKV_CHECKPOINTS", "1")
	model = open(t)
	reused(t, model, long)
	reused(t, model, long+"x")
	assert.Equal(t, 1, stats(t, model).Checkpoints)
}

// What is interrupted half-way through a prompt goes on from there, and leaves the checkpoints before it.
func TestInterruptedPromptKeepsCheckpoints(t *testing.T) {
	t.Setenv("LLAMA_BATCH_DEBUG", "1")
	model := open(t, sparse(64))
	want, _, _ := reused(t, model, long)
	longer := long + strings.Repeat("func one() {}\n", 40)
	onBatch(t, 3, func() { lesskv.Interrupt(model) })
	require.NoError(t, model.Eval(longer, llama.SetThreads(1), llama.SetBatch(16)))
	lesskv.SetLogOutput(nil)
	g := timings(t, model)
	require.Equal(t, "interrupt", g.Stop)
	require.Less(t, g.Evaluated, g.Prompt-g.Cached)
	got, _, evaluated := reused(t, model, long)
	assert.Equal(t, want, got)
	assert.Zero(t, evaluated)
}

// Another text takes the checkpoints of the last one with it: nothing of a state, a prompt cache or embeddings is mixed with them.
func TestCheckpointsOfAnotherText(t *testing.T) {
	dir := t.TempDir()
	model := open(t, sparse(64), llama.EnableEmbeddings)
	want, _, _ := reused(t, model, long)
	state := filepath.Join(dir, "state")
	require.NoError(t, model.SaveState(state))
	for name, change := range map[string]func(){
		"LoadState":    func() { require.NoError(t, model.LoadState(state)) },
		"prompt cache": func() { reused(t, model, long, llama.SetPathPromptCache(filepath.Join(dir, "cache"))) },
		"embeddings": func() {
			_, err := model.Embeddings(long, llama.SetThreads(1))
			require.NoError(t, err)
		},
		"another text": func() { reused(t, model, "package other") },
	} {
		reused(t, model, long)
		require.Positive(t, stats(t, model).Checkpoints)
		change()
		got, cached, _ := reused(t, model, long)
		assert.Zero(t, cached, name)
		assert.Equal(t, want, got, name)
	}
}

// Guesses that were wrong leave nothing in the checkpoints: the same prompt again evaluates nothing, and an edited turn little. A draft
// model that has read a text would cut it back and round otherwise, and so might guess otherwise: each call has a new one.
func TestCheckpointsOfSpeculativeTexts(t *testing.T) {
	model := open(t, sparse(64))
	speculate := func(text string) string {
		draft := open(t)
		out, err := model.SpeculativeSampling(draft, text, llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(40), llama.SetNDraft(4), llama.IgnoreEOS)
		require.NoError(t, err)
		return out
	}
	want := speculate(long)
	g := timings(t, model)
	require.Less(t, g.Accepted, g.Drafted, "some guesses were wrong")
	assert.Equal(t, want, speculate(long))
	assert.Zero(t, timings(t, model).Evaluated)
	speculate(long + "func one() {")
	speculate(long + "type two struct {")
	assert.Equal(t, tokens(t, model, long), timings(t, model).Cached)
}

// A model that drafts for another cuts its text back, and the checkpoints behind the cut are of a text that is gone.
func TestCheckpointsOfADraftModel(t *testing.T) {
	dir := t.TempDir()
	target := open(t, sparse(2048))
	drafted, asked := long+strings.Repeat("type a struct {\n", 4), long+strings.Repeat("type a struct {\n", 4)+"func b() {"
	model, fresh := open(t, sparse(2048)), open(t, sparse(2048))
	reused(t, model, long+"func one(x int) {") // a checkpoint of it
	_, err := target.SpeculativeSampling(model, drafted, llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(8), llama.SetNDraft(4), llama.IgnoreEOS)
	require.NoError(t, err)
	require.Positive(t, timings(t, target).Drafted)
	assert.Zero(t, stats(t, model).Checkpoints)

	got, _, _ := reused(t, model, asked)
	want, _, _ := reused(t, fresh, asked)
	assert.Equal(t, want, got)
	require.NoError(t, model.SaveState(filepath.Join(dir, "got")))
	require.NoError(t, fresh.SaveState(filepath.Join(dir, "want")))
	sameFile(t, filepath.Join(dir, "want"), filepath.Join(dir, "got"))
}

// The only checkpoint is that of a prompt: the end of an answer, which the prompt after it would throw away, takes its place at no time.
func TestOneCheckpoint(t *testing.T) {
	t.Setenv("LLAMA_BATCH_DEBUG", "1")
	model := open(t, lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Adapter: lesskv.NoAdapter, Checkpoints: 1}))
	var text strings.Builder // as the callback gets it
	answer, _, _ := reused(t, model, prompt, llama.SetTokens(4), llama.SetTokenCallback(func(s string) bool { text.WriteString(s); return true }))
	onBatch(t, 1, func() { lesskv.Interrupt(model) })
	require.NoError(t, model.Eval(prompt+text.String()+strings.Repeat("func one() {}\n", 40), llama.SetThreads(1), llama.SetBatch(16)))
	lesskv.SetLogOutput(nil)
	require.Equal(t, "interrupt", timings(t, model).Stop)
	require.Greater(t, timings(t, model).Cached, tokens(t, model, prompt), "it went on from the answer")
	again, _, evaluated := reused(t, model, prompt, llama.SetTokens(4))
	assert.Equal(t, answer, again)
	assert.Zero(t, evaluated)
}

// What a checkpoint takes to restore is in the time of the prompt. Nothing copies 100 bytes in a nanosecond.
func TestTimeOfCheckpoints(t *testing.T) {
	model := open(t, sparse(2048))
	text := strings.Repeat(prompt+"\n", 100)
	reused(t, model, text)
	_, _, evaluated := reused(t, model, text)
	require.Zero(t, evaluated)
	assert.Greater(t, timings(t, model).PromptTime, time.Duration(stats(t, model).SlotBytes/100))
}
