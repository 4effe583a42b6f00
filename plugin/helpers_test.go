package lesskv_test

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/greedy"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

const prompt = "func (s *Server) ListenAndServe() error {"

// file returns the path of a test file.
func file(t *testing.T, name string) string {
	t.Helper()
	path, err := testdata.Path(name)
	require.NoError(t, err)
	return path
}

// open loads gopher-5m with its whole context, in f16.
func open(t *testing.T, opts ...llama.ModelOption) *llama.LLama {
	t.Helper()
	return load(t, file(t, testdata.Model), append([]llama.ModelOption{llama.SetContext(0), llama.EnableF16Memory}, opts...)...)
}

// load loads a model until the test ends.
func load(t *testing.T, path string, opts ...llama.ModelOption) *llama.LLama {
	t.Helper()
	model, err := llama.New(path, opts...)
	require.NoError(t, err)
	t.Cleanup(model.Free)
	return model
}

// writeTiny writes the random model of a name and returns its path.
func writeTiny(t *testing.T, name string, matrices gguf.Type, seed uint64) string {
	t.Helper()
	m, err := tinymodels.Find(name)
	require.NoError(t, err)
	path, err := m.WriteIn(t.TempDir(), matrices, seed)
	require.NoError(t, err)
	return path
}

// vocabularySize is that of every tiny model.
const vocabularySize = 384

// writeConstant writes a model that gives its tokens the same logits after every text, and returns its path.
func writeConstant(t *testing.T, logits []float32) string {
	t.Helper()
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	f, err := gguf.Open(writeTiny(t, "llama", gguf.F32, 1))
	require.NoError(t, err)
	defer f.Close()
	values := map[string][]float32{}
	tensor := func(name string) []float32 {
		info, ok := f.Tensor(name)
		require.True(t, ok, name)
		values[name] = make([]float32, info.Elements())
		return values[name]
	}
	for layer := range 4 { // that add nothing
		tensor("blk." + strconv.Itoa(layer) + ".attn_output.weight")
		tensor("blk." + strconv.Itoa(layer) + ".ffn_down.weight")
	}
	embeddings := tensor("token_embd.weight")
	for i := range embeddings {
		embeddings[i] = 1
	}
	tensor("output_norm.weight")[0] = 1
	output := tensor("output.weight")
	for i, x := range logits {
		output[i*len(output)/len(logits)] = x
	}
	path := filepath.Join(t.TempDir(), "constant.gguf")
	require.NoError(t, m.WriteChanged(path, gguf.F32, 1, values))
	return path
}

// sparse is LESS with a budget that a short text exceeds, and no kernels; in f16, as the unmodified cache of these tests is.
func sparse(budget int) llama.ModelOption {
	return lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(budget), Policy: lesskv.H2O, Keys: lesskv.F16, Values: lesskv.F16, Adapter: lesskv.NoAdapter})
}

// predict completes a text greedily on one thread: two would wait for the scheduler where the tests share the machine.
func predict(t *testing.T, model *llama.LLama, text string, opts ...llama.PredictOption) string {
	t.Helper()
	opts = append([]llama.PredictOption{llama.SetThreads(1), llama.SetTemperature(0), llama.SetTokens(24)}, opts...)
	out, err := model.Predict(text, opts...)
	require.NoError(t, err)
	return out
}

// nKeep is how many tokens a full context keeps in texts for follow.
const nKeep = 10

// pieces returns the tokens of a text that predict or speculate writes, so that follow can judge it.
func pieces(write func(opts ...llama.PredictOption) string) (tokens []string) {
	write(llama.SetPenalty(1), llama.IgnoreEOS, llama.SetNKeep(nKeep), llama.SetTokenCallback(func(s string) bool {
		tokens = append(tokens, s)
		return true
	}))
	return tokens
}

// follow judges a greedy text after prompt by another computation of it, in the worker, ties aside. only, if there is one, says which
// tokens may be written.
func follow(t *testing.T, c worker.Config, text []string, only func(piece string) bool) error {
	t.Helper()
	return followBy(t, c, text, func(v *greedy.Vocabulary, logits []float32) []float32 {
		for i := range logits {
			if only != nil && !only(v.Pieces[i]) {
				logits[i] = float32(math.Inf(-1))
			}
		}
		return logits
	})
}

// followBy is follow with logits that mask makes of the worker's.
func followBy(t *testing.T, c worker.Config, text []string, mask func(v *greedy.Vocabulary, logits []float32) []float32) error {
	t.Helper()
	require.NotEmpty(t, text)
	tree := worker.Unmodified
	if c.LESS != nil {
		tree = worker.Patched
	}
	path, err := worker.Path(tree)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	w, err := worker.Start(ctx, path)
	require.NoError(t, err)
	defer func() { assert.NoError(t, w.Close()) }()
	_, err = w.Open(c)
	require.NoError(t, err)
	v, err := greedy.ReadVocabulary(c.Model)
	require.NoError(t, err)
	reader := greedy.Context{Worker: w, Size: c.Context, Keep: nKeep}
	logits, err := reader.Begin(prompt)
	require.NoError(t, err)
	ties, err := v.Follow(text, mask(v, logits), func(token int32) ([]float32, error) {
		logits, err := reader.Next(token)
		return mask(v, logits), err
	})
	t.Logf("%d tokens, %d of them tied with another", len(text), ties)
	return err
}

func stats(t *testing.T, model *llama.LLama) lesskv.CacheStats {
	t.Helper()
	s, err := lesskv.Stats(model)
	require.NoError(t, err)
	return s
}

func timings(t *testing.T, model *llama.LLama) lesskv.Timings {
	t.Helper()
	timings, err := lesskv.LastTimings(model)
	require.NoError(t, err)
	return timings
}

// log collects log lines until the test ends.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// onLine is a log output that is called with each line.
type onLine func(line string)

func (f onLine) Write(p []byte) (int, error) {
	f(string(p))
	return len(p), nil
}

// onBatch calls f in batch n of what models compute from now on that were loaded with LLAMA_BATCH_DEBUG=1, until the test ends or the log
// has another output.
func onBatch(t *testing.T, n int, f func()) {
	debugLog(t)
	batches := 0
	lesskv.SetLogOutput(onLine(func(line string) {
		if !strings.Contains(line, "input batch info") {
			return
		}
		if batches++; batches == n {
			done := make(chan bool)
			go func() { defer close(done); f() }() // a writer must not call the model
			<-done
		}
	}))
	t.Cleanup(func() { lesskv.SetLogOutput(nil) })
}

// debugLog has all log lines written, until the test ends.
func debugLog(t *testing.T) {
	lesskv.SetLogLevel(slog.LevelDebug)
	t.Cleanup(func() { lesskv.SetLogLevel(slog.LevelWarn) })
}

func captureLog(t *testing.T) *log {
	l := &log{}
	lesskv.SetLogOutput(l)
	t.Cleanup(func() { lesskv.SetLogOutput(nil) })
	return l
}

// copied puts test files into a fresh folder, under names of the caller's, and returns the folder.
func copied(t *testing.T, names map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for to, from := range names {
		data, err := testdata.Read(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, to), data, 0o644))
	}
	return dir
}

// assertSays checks an error's kind, and that its text holds all the words.
func assertSays(t *testing.T, err error, kind error, words ...string) {
	t.Helper()
	require.ErrorIs(t, err, kind)
	for _, w := range words {
		assert.Contains(t, err.Error(), w)
	}
	var e *lesskv.Error
	require.ErrorAs(t, err, &e)
	assert.NotEmpty(t, e.Op)
	assert.True(t, strings.HasSuffix(err.Error(), e.Reason))
}
