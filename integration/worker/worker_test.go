package worker

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	gopher  = "../testdata/gopher-5m.gguf"
	fakeEnv = "LESSKV_FAKE_WORKER"
)

// TestMain plays a worker that misbehaves, when a test starts this binary as one.
func TestMain(m *testing.M) {
	switch os.Getenv(fakeEnv) {
	case "":
		os.Exit(m.Run())
	case "crash":
		bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Fprintln(os.Stderr, "GGML_ASSERT(everything) failed")
		os.Exit(3)
	case "babble":
		fmt.Println("hello")
		time.Sleep(time.Minute)
	case "short":
		bufio.NewReader(os.Stdin).ReadString('\n') // or the request would meet a closed pipe
		fmt.Print("ok rows=1 width=4 payload=16\n1234")
	case "escape":
		fmt.Print("ok arch=%zz payload=0\n")
		time.Sleep(time.Minute)
	}
}

func start(t *testing.T, ctx context.Context) *Worker { return startTree(t, ctx, Unmodified) }

func startTree(t *testing.T, ctx context.Context, tree Tree) *Worker {
	t.Helper()
	path, err := Path(tree)
	require.NoError(t, err)
	w, err := Start(ctx, path)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, w.Close()) })
	return w
}

func open(t *testing.T, c Config) *Worker {
	t.Helper()
	w := start(t, context.Background())
	if c.Model == "" {
		c.Model = gopher
	}
	_, err := w.Open(c)
	require.NoError(t, err)
	return w
}

func refused(t *testing.T, err error, message string) *Error {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Contains(t, e.Message, message)
	return e
}

func TestInfo(t *testing.T) {
	w := start(t, context.Background())
	_, err := w.Info()
	refused(t, err, "no model is open")

	info, err := w.Open(Config{Model: gopher, Context: 512, Batch: 128, Ubatch: 32, Sequences: 2})
	require.NoError(t, err)
	want := Info{Arch: "llama", Desc: info.Desc, Vocab: 4096, Embd: 256, Layers: 6, Heads: 4, HeadsKV: 2, TrainContext: 2048,
		Context: 512, Batch: 128, Ubatch: 32, Sequences: 2}
	assert.Equal(t, want, info)

	_, err = w.Open(Config{Model: gopher})
	refused(t, err, "close it first")
	require.NoError(t, w.CloseModel())
	_, err = w.Open(Config{Model: gopher})
	assert.NoError(t, err)

	log, err := w.Log()
	require.NoError(t, err)
	assert.Contains(t, log, "llama_context")

	m, err := w.Memory()
	require.NoError(t, err)
	assert.Greater(t, m.Resident, int64(10<<20))
	assert.GreaterOrEqual(t, m.Peak, m.Resident)
}

func TestTokens(t *testing.T) {
	w := open(t, Config{Context: 512})
	const text = "func main() {\n\tfmt.Println(\"héllo\", 100%)\n}\n"
	tokens, err := w.Tokenize(text, false)
	require.NoError(t, err)
	back, err := w.Detokenize(tokens, false)
	require.NoError(t, err)
	assert.Equal(t, text, strings.TrimPrefix(back, " "))

	special, err := w.Tokenize(text, true)
	require.NoError(t, err)
	assert.Equal(t, tokens, special[1:], "special tokens are a BOS and nothing else")

	start, err := w.StartToken()
	require.NoError(t, err)
	assert.Equal(t, special[:1], start)
	pieces := []int32{start[0]} // a piece ends at a line's end, or behind the last character that it has room for
	for i, piece := range []string{"func main() {\n", "\tfmt.Println(\"h", "éllo\", 100%)\n", "}\n"} {
		part, err := w.Tokenize(piece, false)
		require.NoError(t, err, i)
		pieces = append(pieces, part...)
	}
	long, err := w.TokenizeLong(text, 16, true)
	require.NoError(t, err)
	assert.Equal(t, pieces, long)

	empty, err := w.Tokenize("", false)
	require.NoError(t, err)
	assert.Empty(t, empty)

	_, err = w.Tokenize("\xff\x00\xfe", false)
	require.NoError(t, err)
	_, err = w.Detokenize([]int32{1, 4096}, false)
	refused(t, err, "token 1 is 4096")
}

func TestDecode(t *testing.T) {
	w := open(t, Config{Context: 512, Batch: 64, Ubatch: 16, Sequences: 3})
	tokens, err := w.Tokenize(strings.Repeat("if err != nil {\n\treturn err\n}\n", 12), true)
	require.NoError(t, err)
	tokens = tokens[:100]

	all, err := w.Feed(0, 0, tokens, All)
	require.NoError(t, err)
	require.Equal(t, len(tokens), all.Len())
	assert.Equal(t, 4096, all.Width)
	assert.Positive(t, all.Elapsed)

	last, err := w.Feed(1, 0, tokens, Last)
	require.NoError(t, err)
	require.Equal(t, 1, last.Len())
	// one row and many are multiplied by different kernels, of which one sums in f16 where the CPU can (AVX512-FP16)
	assert.InDeltaSlice(t, all.Row(99), last.Row(0), 2e-2)

	none, err := w.Feed(2, 0, tokens, None)
	require.NoError(t, err)
	assert.Zero(t, none.Len())

	// Greedy is decoding the most likely token, over and over.
	next := argmax(last.Row(0))
	found, logits, err := w.Greedy(1, 100, next, 4, true)
	require.NoError(t, err)
	require.Equal(t, 4, logits.Len())
	for i := range 4 {
		out, err := w.Decode(2, 100+i, []int32{next}, Last)
		require.NoError(t, err)
		assert.Equal(t, out.Values, logits.Row(i))
		next = argmax(out.Values)
		assert.Equal(t, next, found[i])
	}
	require.NoError(t, w.Threads(2))
	_, err = w.Decode(2, 104, []int32{next}, Last)
	assert.NoError(t, err)
}

func TestDecodeEach(t *testing.T) {
	w := open(t, Config{Context: 512, Sequences: 2, Unified: true})
	out, err := w.DecodeEach([]Token{
		{ID: 1, Pos: 0, Seq: 0, Also: []int32{1}}, {ID: 9, Pos: 1, Seq: 0, Row: true}, {ID: 9, Pos: 1, Seq: 1}, {ID: 8, Pos: 2, Seq: 1, Row: true},
	})
	require.NoError(t, err)
	assert.Equal(t, 2, out.Len())
	for seq, want := range []int{1, 2} {
		lo, hi, err := w.SeqPos(seq)
		require.NoError(t, err)
		assert.Equal(t, []int{0, want}, []int{lo, hi})
	}
}

func TestSequences(t *testing.T) {
	w := open(t, Config{Context: 512, Sequences: 3})
	tokens := []int32{1, 100, 200, 300, 400, 500}
	_, err := w.Decode(0, 0, tokens, Last)
	require.NoError(t, err)
	require.NoError(t, w.SeqCopy(0, 1, End, End))
	require.NoError(t, w.SeqRemove(1, 4, End))
	_, hi, err := w.SeqPos(1)
	require.NoError(t, err)
	assert.Equal(t, 3, hi)
	refused(t, w.SeqCopy(0, 2, 1, 3), "kv_unified")
	require.NoError(t, w.SeqAdd(1, 0, End, 2))
	lo, hi, err := w.SeqPos(1)
	require.NoError(t, err)
	assert.Equal(t, []int{2, 5}, []int{lo, hi})
	require.NoError(t, w.SeqDivide(1, 0, End, 2))
	require.NoError(t, w.SeqKeep(0))
	require.NoError(t, w.Clear())
	_, hi, err = w.SeqPos(0)
	require.NoError(t, err)
	assert.Equal(t, -1, hi)
}

func TestState(t *testing.T) {
	for _, seq := range []int{0, End} {
		t.Run(fmt.Sprint("sequence ", seq), func(t *testing.T) {
			w := open(t, Config{Context: 2048})
			tokens := make([]int32, 1500)
			for i := range tokens {
				tokens[i] = int32(i * 7 % 4096)
			}
			_, err := w.Feed(0, 0, tokens, None)
			require.NoError(t, err)
			state, err := w.Save(seq)
			require.NoError(t, err)
			assert.Greater(t, len(state), 1<<20)
			file := filepath.Join(t.TempDir(), "a state 100%")
			require.NoError(t, w.SaveFile(seq, file, tokens))
			want, err := w.Decode(0, 1500, []int32{42}, Last)
			require.NoError(t, err)

			require.NoError(t, w.Clear())
			n, err := w.Load(seq, state)
			require.NoError(t, err)
			assert.Equal(t, len(state), n)
			got, err := w.Decode(0, 1500, []int32{42}, Last)
			require.NoError(t, err)
			assert.Equal(t, want.Values, got.Values)

			require.NoError(t, w.Clear())
			kept, err := w.LoadFile(seq, file)
			require.NoError(t, err)
			assert.Equal(t, tokens, kept)
			got, err = w.Decode(0, 1500, []int32{42}, Last)
			require.NoError(t, err)
			assert.Equal(t, want.Values, got.Values)

			_, err = w.Load(seq, state[:len(state)/2])
			refused(t, err, "can't load the state")
			_, err = w.Load(End, []byte("rubbish"))
			refused(t, err, "not the state of a llama model")
			_, err = w.LoadFile(seq, gopher)
			refused(t, err, "can't load the state")
			_, err = w.LoadFile(seq, file+".no")
			refused(t, err, "No such file")
			refused(t, w.SaveFile(seq, t.TempDir(), nil), "can't save")
		})
	}
}

func TestAbort(t *testing.T) {
	w := open(t, Config{Context: 512})
	require.NoError(t, w.AbortAfter(10))
	_, err := w.Decode(0, 0, []int32{1, 2, 3}, Last)
	assert.Equal(t, 2, refused(t, err, "llama_decode returned 2").Code)
	_, err = w.Decode(0, 0, []int32{1, 2, 3}, Last)
	assert.NoError(t, err, "only one decode is aborted")
}

// What the worker tells of the LESS cache.
func TestLESS(t *testing.T) {
	w := startTree(t, context.Background(), Patched)
	less := &LESS{Policy: "peak", Budget: 41, Adapter: "../testdata/gopher-5m.peak-41.lesskv.gguf"}
	info, err := w.Open(Config{Model: gopher, Context: 512, Ubatch: 16, Sequences: 2, Capture: true, LESS: less})
	require.NoError(t, err)
	assert.True(t, info.LESS)

	layers, err := w.Layers(1)
	require.NoError(t, err)
	assert.Empty(t, layers)

	tokens := make([]int32, 60)
	for i := range tokens {
		tokens[i] = int32(50 + 61*i)
	}
	require.NoError(t, w.Capture(2, 5))
	_, err = w.Feed(1, 0, tokens[:1], None)
	require.NoError(t, err)
	seen, err := w.Captured()
	require.NoError(t, err)
	require.Len(t, seen, 2)
	for i, a := range seen {
		assert.Equal(t, []int{[]int{2, 5}[i], 1, 4, 2, 64, 64}, []int{a.Layer, a.Tokens, a.Heads, a.HeadsKV, a.KeyLength, a.ValueLength})
		require.Len(t, a.Q, 4*64)
		require.Len(t, a.K, 2*64)
		for h := range 4 { // the first token sees itself alone: its output is its value
			assert.InDeltaSlice(t, a.V[h/2*64:][:64], a.Out[h*64:][:64], 1e-6)
		}
	}
	_, err = w.Feed(1, 1, tokens[1:20], None)
	require.NoError(t, err)
	require.NoError(t, w.StopCapture())
	_, err = w.Feed(1, 20, tokens[20:], None)
	require.NoError(t, err)
	seen, err = w.Captured()
	require.NoError(t, err)
	require.Len(t, seen, 4, "two micro-batches in two layers")
	assert.Equal(t, []int{16, 16, 3, 3}, []int{seen[0].Tokens, seen[1].Tokens, seen[2].Tokens, seen[3].Tokens})
	refused(t, w.Capture(6), "want numbers from 0 to 5")

	layers, err = w.Layers(1)
	require.NoError(t, err)
	require.Len(t, layers, 6)
	l := layers[3]
	assert.Equal(t, LayerInfo{Layer: 3, Kernels: true, Seen: 60, Kept: 41, Folded: 19, SlotBytes: l.SlotBytes, StateBytes: l.StateBytes, Rank: 8, Hidden: 4, Scale: 0.125}, l)
	pos, score, err := w.Slots(1, 3, 1)
	require.NoError(t, err)
	require.Len(t, pos, 41)
	require.Len(t, score, 41)
	slices.Sort(pos)
	assert.Zero(t, pos[0], "pinned")
	assert.Equal(t, int32(59), pos[40])
	_, _, err = w.Slots(1, 3, 2)
	refused(t, err, "no slots of a head 2")
	_, _, err = w.Slots(0, 3, 0)
	refused(t, err, "sequence 0")

	all, err := w.LESS()
	require.NoError(t, err)
	assert.Equal(t, []int{41, 10, 31, 1, 6, 0, 6, 8, 4, 1},
		[]int{all.Budget, all.Heavy, all.Recent, all.Pinned, all.Layers, all.WindowLayers, all.KernelLayers, all.Rank, all.Hidden, all.Sequences})
	assert.Equal(t, "peak", all.Policy)
	assert.Len(t, all.AdapterSHA256, 64)
	assert.Equal(t, 6*(l.SlotBytes+l.StateBytes), all.SlotBytes+all.StateBytes)
	hex, err := w.Fingerprint()
	require.NoError(t, err)
	assert.Len(t, hex, 64)
}

// What llama.cpp aborts on, or would take for something else, is refused, and the worker goes on.
func TestRefusals(t *testing.T) {
	w := open(t, Config{Context: 512, Batch: 64})
	many := make([]int32, 65)
	decode := func(seq, pos int, tokens []int32, rows Rows) func() error {
		return func() error { _, err := w.Decode(seq, pos, tokens, rows); return err }
	}
	call := func(verb string, args ...any) func() error {
		return func() error { _, err := w.call(verb, nil, args...); return err }
	}
	for _, c := range []struct {
		name, message string
		run           func() error
	}{
		{"no tokens", "no tokens", decode(0, 0, nil, Last)},
		{"too many tokens", "at most n_batch = 64", decode(0, 0, many, Last)},
		{"negative token", "token 1 is -1", decode(0, 0, []int32{1, -1}, Last)},
		{"token past the vocabulary", "token 0 is 4096", decode(0, 0, []int32{4096}, Last)},
		{"negative position", "pos=-1", decode(0, -1, []int32{1}, Last)},
		{"last position", "pos=2147483647", decode(0, 1<<31-1, []int32{1}, Last)},
		{"unknown sequence", "seq=1", decode(1, 0, []int32{1}, Last)},
		{"unknown rows", "want none, last or all", decode(0, 0, []int32{1}, "some")},
		{"gap in the positions", "llama_decode returned -1", func() error {
			_, err := w.Feed(0, 0, []int32{1}, Last)
			require.NoError(t, err)
			return decode(0, 5, []int32{1}, Last)()
		}},
		{"each: sequence", "sequence 9", func() error { _, err := w.DecodeEach([]Token{{Seq: 9}}); return err }},
		{"each: other sequence", "sequence 1", func() error { _, err := w.DecodeEach([]Token{{Also: []int32{1}}}); return err }},
		{"each: position", "position -3", func() error { _, err := w.DecodeEach([]Token{{Pos: -3}}); return err }},
		{"encode", "no encoder", func() error { _, err := w.Encode([]int32{1}); return err }},
		{"no threads", "n=0", func() error { return w.Threads(0) }},
		{"too many threads", "n=513", func() error { return w.Threads(513) }},
		{"removing from an unknown sequence", "seq=7", func() error { return w.SeqRemove(7, 0, 1) }},
		{"positions of an unknown sequence", "seq=-1", func() error { _, _, err := w.SeqPos(-1); return err }},
		{"dividing by zero", "by=0", func() error { return w.SeqDivide(0, 0, 1, 0) }},
		{"greedy past the end of positions", "pos=", func() error { _, _, err := w.Greedy(0, 1<<31-2, 1, 10, false); return err }},
		{"unknown verb", "unknown verb", call("sing")},
		{"unknown key", "does not take loudly", call("info", "loudly", true)},
		{"missing key", "wants n=N", call("threads")},
		{"no number", "want an integer", call("threads", "n", "x")},
		{"capture", "capture=1", func() error { return w.Capture() }},
		{"less", "no LESS", func() error { _, err := w.LESS(); return err }},
		{"slots", "no LESS", func() error { _, _, err := w.Slots(0, 0, 0); return err }},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, c.run(), c.message)
			_, err := w.Info()
			require.NoError(t, err, "the worker goes on")
		})
	}
}

func TestOpenRefusals(t *testing.T) {
	rubbish := filepath.Join(t.TempDir(), "rubbish.gguf")
	require.NoError(t, os.WriteFile(rubbish, []byte("GGUF\x03\x00\x00\x00 and no more"), 0o666))
	w := start(t, context.Background())
	for _, c := range []struct {
		name, message string
		config        Config
	}{
		{"no path", "path=FILE", Config{}},
		{"no file", "/does/not/exist", Config{Model: "/does/not/exist"}},
		{"no model", "can't load", Config{Model: rubbish}},
		{"type", "want f32, f16", Config{Model: gopher, TypeK: "iq1"}},
		{"context", "n_ctx=-1", Config{Model: gopher, Context: -1}},
		{"ubatch above batch", "n_ubatch=64", Config{Model: gopher, Batch: 32, Ubatch: 64}},
		{"sequences", "n_seq_max=257", Config{Model: gopher, Sequences: 257}},
		{"quantised values", "requires flash_attn", Config{Model: gopher, TypeV: "q8_0"}},
		{"LESS", "no LESS", Config{Model: gopher, LESS: &LESS{}}},
		{"capture", "only the LESS cache", Config{Model: gopher, Capture: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := w.Open(c.config)
			refused(t, err, c.message)
		})
	}
	_, err := w.Open(Config{Model: gopher})
	assert.NoError(t, err, "nothing was left open")
}

// Bytes that are no request are answered with an error, and the next request is found.
func TestMalformed(t *testing.T) {
	w := start(t, context.Background())
	for _, c := range []struct{ bytes, message string }{
		{"\n", "empty request"},
		{"memory payload=x\n", "number of bytes"},
		{"memory payload=-1\n", "number of bytes"},
		{"memory key\n", "key=value"},
		{"memory =1\n", "key=value"},
		{"memory a=%4\n", "bad escape"},
		{"memory a=%zz\n", "bad escape"},
		{"\x00\xff\xfe\n", "unknown verb"},
		{strings.Repeat("x", 1<<17) + "\n", "request line of more than"},
		{"sing payload=5\n\n\n\n\n\n", "unknown verb"},
		{"memory payload=2\nab", "memory does not take a payload: 2 bytes"},
		{"memory payload=2 payload=3\nabcde", "2 payloads"},
		{"memory reset=0 reset=1\n", "reset is there twice"},
	} {
		_, err := w.in.Write([]byte(c.bytes))
		require.NoError(t, err)
		_, err = readReply(w.out, "")
		refused(t, err, c.message)
	}
	_, err := w.Memory()
	assert.NoError(t, err)
}

func TestDeadWorker(t *testing.T) {
	for _, c := range []struct{ fake, message string }{
		{"crash", "died in info: exit status 3; it wrote:\nGGML_ASSERT(everything) failed"},
		{"babble", "begins with ok or error, got \"hello\\n\""},
		{"short", "unexpected EOF"},
		{"escape", "bad escape"},
	} {
		t.Run(c.fake, func(t *testing.T) {
			t.Setenv(fakeEnv, c.fake)
			w, err := Start(context.Background(), os.Args[0])
			require.NoError(t, err)
			_, err = w.Info()
			var exit *ExitError
			require.ErrorAs(t, err, &exit)
			assert.Contains(t, err.Error(), c.message)
			_, again := w.Memory()
			assert.Equal(t, err, again, "later calls say the same")
			assert.ErrorAs(t, w.Close(), &exit)
			assert.NoError(t, w.Close())
			_, err = w.Memory()
			assert.ErrorContains(t, err, "closed")
		})
	}
	_, err := Start(context.Background(), "/does/not/exist")
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestCancel(t *testing.T) {
	before := runtime.NumGoroutine()
	path, err := Path(Unmodified)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	w, err := Start(ctx, path)
	require.NoError(t, err)
	_, err = w.Open(Config{Model: gopher, Context: 1 << 16})
	require.NoError(t, err)
	time.AfterFunc(100*time.Millisecond, cancel)
	_, _, err = w.Greedy(0, 0, 1, 1<<15, false)
	var exit *ExitError
	require.ErrorAs(t, err, &exit)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Error(t, w.Close())
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	assert.LessOrEqual(t, runtime.NumGoroutine(), before, "goroutines are left")
}

func TestEscape(t *testing.T) {
	for _, s := range []string{"", "plain", "a b\n%=c\x00\xff", "日本"} {
		got, err := unescape(string(appendEscaped(nil, s)))
		require.NoError(t, err)
		assert.Equal(t, s, got)
	}
	for _, s := range []string{"%", "%1", "%g0", "a%"} {
		_, err := unescape(s)
		assert.Error(t, err, s)
	}
}

func argmax(row []float32) int32 {
	return int32(slices.Index(row, slices.Max(row)))
}
