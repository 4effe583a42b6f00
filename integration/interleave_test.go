package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	lesskv "github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// TestInterleavings does to two sequences of a context what llama.cpp lets a caller do, in any order, allocations that fail and decodes
// that are aborted among it, and compares them after each step with a plain model of what must hold ("What cannot be undone" and
// "Memory" in algorithm.md). What a sequence computes in the end must be, bit for bit, what a fresh one does that is taken
// the same way. $LESSKV_INTERLEAVINGS is their number.
func TestInterleavings(t *testing.T) {
	n := 104
	if s := os.Getenv("LESSKV_INTERLEAVINGS"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	w := failingWorker(t)
	settings := interleavingSettings(t)
	counts := map[string]int{}
	last := -1
	for i := range n {
		at := i * len(settings) / n // one after the other, since opening a model takes longer than playing; of all kinds if there are fewer
		s := &settings[at]
		if at != last {
			require.NoError(t, w.open(s), s.name)
			last = at
		}
		p := &player{failing: w, setting: s, counts: counts}
		steps := drawSteps(uint64(i))
		if done, err := p.play(steps); err != nil {
			steps, done, err = p.shrink(steps, done, err)
			t.Fatalf("seed %d, %s: %v, after %d steps:\n%s", i, s.name, err, len(steps), strings.Join(done, "\n"))
		}
	}
	t.Logf("%d interleavings: %v", n, counts)
	for _, k := range kinds {
		require.Positive(t, counts[k.name], "never done: %s", k.name)
	}
	for _, outcome := range []string{"poisoned by an abort", "poisoned beside another", "aborted between micro-batches", "no memory to decode", "no memory to compute", "no memory to copy", "no memory to load", "cut refused", "replayed"} {
		require.Positive(t, counts[outcome], "never happened: %s", outcome)
	}
}

// failing is a worker whose LESS caches ask a file for each allocation whether it fails.
type failing struct {
	*worker.Worker
	file   *os.File
	info   worker.Info
	opened bool
}

// failingWorker builds one and starts it.
func failingWorker(t *testing.T) *failing {
	t.Helper()
	build, err := layout.Find(".")
	require.NoError(t, err)
	dir := t.TempDir()
	less := filepath.Join(build.Sources(), "less")
	var sources []string
	for _, name := range []string{"cache.c", "attend.c", "commit.c"} { // the last two allocate in their plain loops
		sources = append(sources, filepath.Join(less, name))
	}
	objects := compile(t, build, dir, sources, "-O2", "-Dmalloc=lesskv_failing_malloc")
	objects = append(objects, compile(t, build, dir, append(workerSources(t, build), "testdata/failing/malloc.c"), "-O1")...)
	path := filepath.Join(dir, "worker")
	link := append([]string{"-o", path}, objects...)
	require.NoError(t, execute(t, tool("CXX", "g++"), append(link, filepath.Join(build.Package(), "libbinding.a"), "-pthread", "-lm", "-ldl")...))

	f := &failing{}
	f.file, err = os.Create(filepath.Join(dir, "failing"))
	require.NoError(t, err)
	t.Cleanup(func() { f.file.Close() })
	require.NoError(t, f.after(-1))
	t.Setenv("LESSKV_FAILING", f.file.Name())
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Hour)
	f.Worker, err = worker.Start(ctx, path)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, f.Close())
		cancel()
	})
	return f
}

// after lets n allocations succeed and the next one fail; below 0, all succeed.
func (f *failing) after(n int) error {
	_, err := f.file.WriteAt(binary.NativeEndian.AppendUint32(nil, uint32(int32(n))), 0)
	return err
}

// happened reports whether the allocation has failed, and lets all that follow succeed.
func (f *failing) happened() (bool, error) {
	var b [4]byte
	if _, err := f.file.ReadAt(b[:], 0); err != nil {
		return false, err
	}
	return int32(binary.NativeEndian.Uint32(b[:])) < 0, f.after(-1)
}

const (
	playUbatch  = 8
	playContext = 1024
	replaySeq   = 2
	fillerSeq   = 3 // beside that one where a graph had two
)

// A setting is a model with a LESS cache.
type setting struct {
	name   string
	config worker.Config
	window int   // of the layers that have one; 0: none
	bytes  int64 // of a sequence, by the formula
	state  int64
	caches []slotted
	hybrid bool // other layers are recurrent, with the state of the end of a sequence and no other
}

// slotted is a layer that has a cache.
type slotted struct {
	window bool
	slots  []int // of each KV head
}

// add gives a setting a layer whose KV heads have so many slots each, of so many bytes.
func (s *setting) add(window bool, slots []int, size int64) {
	s.caches = append(s.caches, slotted{window, slots})
	for _, n := range slots {
		s.bytes += int64(n) * size
	}
}

// interleavingSettings are all policies, with all types of slots, with and without kernels and windows, budgets by head, layers that
// share and differ, the plain loops, LESS on the device, and some hybrids.
func interleavingSettings(t *testing.T) (all []setting) {
	t.Helper()
	types := []string{"f16", "f32", "q8_0", "q4_0"}
	size := map[string]int64{"f32": 4 * 32, "f16": 2 * 32, "q8_0": 34, "q4_0": 18} // of a head of 32
	dir, policies := t.TempDir(), lesskv.PolicyNames()
	find := func(model string) (tinymodels.Model, string) {
		m, err := tinymodels.Find(model)
		require.NoError(t, err)
		path, err := m.WriteIn(dir, gguf.F32, 1)
		require.NoError(t, err)
		return m, path
	}
	config := func(path string, l *worker.LESS) worker.Config {
		return worker.Config{Model: path, Context: playContext, Batch: 64, Ubatch: playUbatch, Sequences: 4, LESS: l}
	}
	for i, model := range []string{"qwen3", "gemma2"} {
		m, path := find(model)
		read, err := weights.ReadModel(path)
		require.NoError(t, err)
		require.Equal(t, 32, read.KeyLength)
		for j, policy := range policies {
			a := unequal(read, weights.Trained{Policy: policy, Heavy: 3, Recent: 3, Ubatch: playUbatch, Context: playContext}, 1)
			adapter := filepath.Join(dir, fmt.Sprintf("%s.%s.gguf", model, policy))
			require.NoError(t, a.Write(adapter))
			for k, key := range types {
				for v, value := range types {
					s := setting{window: m.Window}
					l := &worker.LESS{Policy: policy, Budget: 5 + 9*((i+j+k+v)%3), TypeK: key, TypeV: value}
					if (j+k+v)%3 > 0 {
						l.Adapter = adapter
					}
					s.config = config(path, l)
					s.name = fmt.Sprintf("%s, %s, keys %s, values %s, budget %d, phi and psi: %v", model, policy, key, value, l.Budget, l.Adapter != "")
					for il := range read.Layers {
						window, slots := m.Window > 0 && il%2 == 0, l.Budget // every other one, from the first on
						if window {
							slots = m.Window - 1
						} else if l.Adapter != "" {
							s.state += int64(read.HeadsKV) * int64(a.Kernels[il].Rank) * 33 * 4
						}
						s.add(window, slices.Repeat([]int{slots}, read.HeadsKV), size[key]+size[value]+8)
					}
					all = append(all, s)
					if k == j%len(types) && v == (k+1)%len(types) { // once for each model and policy: the second layer has the two the other way round
						turned := *l
						turned.TypeK, turned.TypeV = key+",1="+value, value+",1="+key
						by := s
						by.name, by.config.LESS = s.name+", in layer 1 the other way round", &turned
						all = append(all, by)
					}
					if k == j%len(types) && v == k { // once for each model and policy
						plain := *l
						plain.Reference = true
						s.name, s.config.LESS = s.name+", the plain loops", &plain
						all = append(all, s)
					}
					if k == j%2 && v == k { // those types that it takes
						on := *l
						on.OnDevice = true
						s.name, s.config.LESS = s.name+", on the device", &on
						all = append(all, s)
					}
				}
			}
		}
	}
	for i, model := range []string{"qwen35", "lfm2-window", "falcon-h1", "jamba"} {
		m, path := find(model)
		l := &worker.LESS{Policy: policies[i%len(policies)], Budget: 5 + 9*(i%3)}
		s := setting{name: model, window: m.Window, hybrid: true}
		s.config = config(path, l)
		dim, slots := int64(16), l.Budget
		if model == "qwen35" {
			dim = 64
		}
		if m.Window > 0 {
			slots = m.Window - 1
		}
		for range m.Attends {
			s.add(m.Window > 0, []int{slots, slots}, 2*2*dim+8)
		}
		all = append(all, s)
	}
	for _, model := range []string{"qwen3", "gemma3n", "gemma4", "openelm"} {
		m, path := find(model)
		read, err := weights.ReadModel(path)
		require.NoError(t, err)
		window, err := windowed(m, path, read.Layers)
		require.NoError(t, err)
		l := &worker.LESS{Policy: "peak"}
		s := setting{name: model + ", budgets by head", window: m.Window}
		for il := range read.Layers - m.Shared {
			shape := read.Layer(il)
			slots := slices.Repeat([]int{m.Window - 1}, shape.HeadsKV)
			if !window[il] {
				for j := range slots {
					slots[j] = 1 + (5*il+7*j)%23
				}
				l.Slots = append(l.Slots, slots...)
			}
			s.add(window[il], slots, int64(2*(shape.KeyLength+shape.ValueLength)+8))
		}
		s.config = config(path, l)
		all = append(all, s)
		on := *l
		on.OnDevice = true
		s.name, s.config.LESS = s.name+", on the device", &on
		all = append(all, s)
	}
	return all
}

func (f *failing) open(s *setting) (err error) {
	if f.opened {
		if err := f.CloseModel(); err != nil {
			return err
		}
	}
	f.info, err = f.Open(s.config)
	f.opened = true
	return err
}

// What is done to a sequence is kept: its contents are what a fresh sequence has of the same.
type event struct {
	tokens []int32 // decoded in one call; nil: cut
	cut    int
	row    int // 1 or 2: where it was in a graph that the other sequence had a token in too; 0: it was alone
}

// A modelled sequence is what is known of one without asking it.
type modelled struct {
	events []event
	length int     // tokens
	kept   [][]int // pairs of each layer's KV heads; nil: none
	holds  bool    // memory
	poison bool
}

func (m *modelled) clone() modelled {
	c := *m
	c.events = slices.Clone(m.events)
	c.kept = slices.Clone(m.kept)
	for i := range c.kept {
		c.kept[i] = slices.Clone(c.kept[i])
	}
	return c
}

// decoded notes tokens of one call.
func (m *modelled) decoded(s *setting, tokens []int32) { m.decodedIn(s, 0, tokens...) }

// decodedIn notes a token that was a row of a graph of two sequences, or with row 0 tokens of one.
func (m *modelled) decodedIn(s *setting, row int, tokens ...int32) {
	if len(tokens) == 0 {
		return
	}
	m.events = append(m.events, event{tokens: tokens, row: row})
	m.length += len(tokens)
	m.holds = true
	if m.kept == nil {
		for _, c := range s.caches {
			m.kept = append(m.kept, make([]int, len(c.slots)))
		}
	}
	for i, c := range s.caches {
		for j, slots := range c.slots {
			m.kept[i][j] = min(m.kept[i][j]+len(tokens), slots)
		}
	}
}

// cutAt notes that the tokens from a position on, all of them slots, are gone.
func (m *modelled) cutAt(at int) {
	if at == 0 {
		*m = modelled{}
		return
	}
	for _, kept := range m.kept {
		for i := range kept {
			kept[i] = max(0, kept[i]-(m.length-at))
		}
	}
	m.events = append(m.events, event{cut: at})
	m.length = at
}

// A player plays steps.
type player struct {
	*failing
	setting *setting
	counts  map[string]int
	seqs    [2]modelled
	saved   []savedState
}

type savedState struct {
	data []byte
	as   modelled
}

// A kind of step does something to a sequence, says what, and what of it does not hold.
var kinds = []struct {
	name  string
	often int
	do    func(p *player, seq int, rng *rand.Rand) (string, error)
}{
	{"decode", 10, (*player).decode},
	{"decode together", 5, (*player).together},
	{"abort", 2, (*player).abort},
	{"fail", 2, (*player).fail},
	{"clear", 1, (*player).clear},
	{"copy", 2, (*player).copy},
	{"copy a part", 1, (*player).copyPart},
	{"shift", 1, (*player).shift},
	{"cut", 3, (*player).cut},
	{"save", 3, (*player).save},
	{"load", 3, (*player).load},
	{"load damaged", 1, (*player).loadDamaged},
}

// A move is a step to be done. Its own draws depend on its seed alone: others can be left out.
type move struct {
	kind, seq int
	seed      uint64
}

func drawSteps(seed uint64) (steps []move) {
	rng := rand.New(rand.NewPCG(91, seed))
	var bag []int
	for i, k := range kinds {
		bag = append(bag, slices.Repeat([]int{i}, k.often)...)
	}
	for range 6 + rng.IntN(20) {
		steps = append(steps, move{bag[rng.IntN(len(bag))], rng.IntN(2), rng.Uint64()})
	}
	return steps
}

// play does steps from an empty context on, and returns them in words with what does not hold.
func (p *player) play(steps []move) (done []string, err error) {
	p.seqs, p.saved = [2]modelled{}, nil
	if err := p.Clear(); err != nil {
		return nil, err
	}
	for _, s := range steps {
		what, err := kinds[s.kind].do(p, s.seq, rand.New(rand.NewPCG(92, s.seed)))
		p.counts[kinds[s.kind].name]++
		done = append(done, fmt.Sprintf("  sequence %d: %s", s.seq, what))
		if err == nil {
			err = p.check()
		}
		if err != nil {
			return done, err
		}
	}
	for i := range p.seqs {
		if err := p.replay(i); err != nil {
			return done, fmt.Errorf("sequence %d: %w", i, err)
		}
	}
	return done, nil
}

// shrink leaves out steps as long as something does not hold.
func (p *player) shrink(steps []move, done []string, err error) ([]move, []string, error) {
	for again := true; again; {
		again = false
		for i := len(steps) - 1; i >= 0; i-- {
			fewer := slices.Delete(slices.Clone(steps), i, i+1)
			if d, e := p.play(fewer); e != nil {
				var dead *worker.ExitError
				if errors.As(e, &dead) {
					return fewer, d, e
				}
				steps, done, err, again = fewer, d, e, true
			}
		}
	}
	return steps, done, err
}

// poisoned reports whether an error says that a sequence refuses to decode.
func poisoned(err error) bool {
	var e *worker.Error
	return errors.As(err, &e) && strings.Contains(e.Message, "until it is cleared")
}

// check compares what can be asked of the sequences with the model.
func (p *player) check() error {
	holding := int64(0)
	for i := range p.seqs {
		if err := p.checkSequence(i); err != nil {
			return fmt.Errorf("sequence %d: %w", i, err)
		}
		if p.seqs[i].holds {
			holding++
		}
	}
	info, err := p.LESS()
	if err != nil {
		return err
	}
	if p.setting.config.LESS.OnDevice { // where room is taken at once
		return nil
	}
	if s := p.setting; info.Sequences != int(holding) || info.SlotBytes != holding*s.bytes || info.StateBytes != holding*s.state {
		return fmt.Errorf("%d sequences of %d and %d bytes, want %d of %d and %d each", info.Sequences, info.SlotBytes, info.StateBytes, holding, s.bytes, s.state)
	}
	return nil
}

func (p *player) checkSequence(seq int) error {
	m := &p.seqs[seq]
	lo, hi, err := p.SeqPos(seq)
	if err != nil {
		return err
	}
	if m.poison {
		if lo != -1 || hi != -1 {
			return fmt.Errorf("a poisoned one says that it has positions %d to %d", lo, hi)
		}
		if _, err := p.Save(seq); !poisoned(err) {
			return fmt.Errorf("a poisoned one is saved: %v", err)
		}
		return nil
	}
	if hi != m.length-1 {
		return fmt.Errorf("its last position is %d, want %d", hi, m.length-1)
	}
	want, _, err := p.lowest(seq)
	if err != nil {
		return err
	}
	if lo != want {
		return fmt.Errorf("seq_pos_min is %d, want %d", lo, want)
	}
	return nil
}

// lowest is what seq_pos_min is to be, and the position from which on a sequence can be cut, from what its slots hold, which is
// compared with the model on the way.
func (p *player) lowest(seq int) (posMin, cut int, err error) {
	m := &p.seqs[seq]
	if m.length == 0 {
		return -1, 0, nil
	}
	layers, err := p.Layers(seq)
	if err != nil {
		return 0, 0, err
	}
	if len(layers) != len(p.setting.caches) {
		return 0, 0, fmt.Errorf("%d layers have caches, want %d", len(layers), len(p.setting.caches))
	}
	for i, l := range layers {
		kept := m.kept[i]
		if l.Window != p.setting.caches[i].window || int(l.Kept) != slices.Max(kept) || int(l.Seen) != m.length || int(l.Folded) != m.length-slices.Min(kept) {
			return 0, 0, fmt.Errorf("layer %d has seen %d and keeps %d, %d are folded, want %d and %v", l.Layer, l.Seen, l.Kept, l.Folded, m.length, kept)
		}
		gone := -1 // highest position that is no slot any more
		for head, n := range kept {
			pos, _, err := p.Slots(seq, l.Layer, head)
			if err != nil {
				return 0, 0, err
			}
			pos = slices.Sorted(slices.Values(pos))
			if len(pos) != n || len(slices.Compact(slices.Clone(pos))) != len(pos) {
				return 0, 0, fmt.Errorf("layer %d, head %d holds %v, want %d", l.Layer, head, pos, n)
			}
			top := m.length - 1
			for i := len(pos) - 1; i >= 0 && int(pos[i]) == top; i-- {
				top--
			}
			gone = max(gone, top)
		}
		switch {
		case gone >= 0 && l.Window: // what the query there sees is to be held
			cut = max(cut, gone+p.setting.window)
			posMin = max(posMin, min(m.length-1, gone+p.setting.window))
		case gone >= 0:
			cut, posMin = max(cut, gone+1), max(posMin, min(m.length-1, gone+1)) // the newest itself may be gone
		}
	}
	if p.setting.hybrid {
		return m.length - 1, m.length, nil
	}
	return posMin, cut, nil
}

// unchanged does f, after which a sequence is what it was, bit for bit.
func (p *player) unchanged(seq int, f func() error) error {
	if p.seqs[seq].poison {
		return f()
	}
	before, err := p.Save(seq)
	if err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	after, err := p.Save(seq)
	if err == nil && !bytes.Equal(before, after) {
		err = errors.New("it has changed")
	}
	return err
}

// refused wants an *Error, of a code where that is not 0.
func refused(err error, code int) error {
	var e *worker.Error
	if !errors.As(err, &e) || code != 0 && e.Code != code {
		return fmt.Errorf("%v, want it refused with code %d", err, code)
	}
	return nil
}

func (p *player) tokens(rng *rand.Rand) []int32 {
	tokens := make([]int32, []int{1, 1, 2, 1 + rng.IntN(8), 1 + rng.IntN(30)}[rng.IntN(5)])
	for i := range tokens {
		tokens[i] = rng.Int32N(int32(p.info.Vocab))
	}
	return tokens
}

func (p *player) decode(seq int, rng *rand.Rand) (string, error) {
	m := &p.seqs[seq]
	tokens := p.tokens(rng)
	done := fmt.Sprintf("decodes %d tokens at %d", len(tokens), m.length)
	none := !m.holds && !m.poison && rng.IntN(4) == 0 // a sequence's memory is taken with its first token
	within := !none && m.holds && !m.poison && p.setting.config.LESS.Reference && rng.IntN(4) == 0
	if none || within {
		n := 2 // of a layer's cache
		if within {
			n = 2 + 4 // that attending and committing take
		}
		if err := p.after(rng.IntN(n * len(p.setting.caches))); err != nil {
			return done, err
		}
		done += ", with an allocation that fails"
	}
	out, err := p.Decode(seq, m.length, tokens, worker.Last)
	switch {
	case m.poison:
		if !poisoned(err) {
			return done, fmt.Errorf("a poisoned one decodes: %v", err)
		}
	case none:
		happened, err2 := p.happened()
		if err2 != nil || !happened {
			return done, fmt.Errorf("no allocation has failed: %v", err2)
		}
		p.counts["no memory to decode"]++
		return done, refused(err, 1)
	case within:
		happened, err2 := p.happened()
		if err2 != nil || !happened {
			return done, fmt.Errorf("no allocation has failed: %v", err2)
		}
		p.counts["no memory to compute"]++
		m.poison = true // what is half done cannot be undone
		return done, refused(err, 0)
	case err != nil:
		return done, err
	default:
		m.decoded(p.setting, tokens)
		return done, finite(out)
	}
	return done, nil
}

func finite(out *worker.Output) error {
	for i, x := range out.Values {
		if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
			return fmt.Errorf("logit %d is %v", i, x)
		}
	}
	return nil
}

// together decodes a token of both sequences in one batch, now and then with an end to it in its middle. On the device and in hybrids they
// have a graph each.
func (p *player) together(seq int, rng *rand.Rand) (string, error) {
	order := [2]int{seq, 1 - seq}
	var batch []worker.Token
	for _, i := range order {
		batch = append(batch, worker.Token{ID: rng.Int32N(int32(p.info.Vocab)), Pos: int32(p.seqs[i].length), Seq: int32(i), Row: true})
	}
	a, b := &p.seqs[seq], &p.seqs[1-seq]
	done := fmt.Sprintf("decodes a token at %d, together with the other one's at %d", a.length, b.length)
	if a.poison || b.poison {
		return done, p.unchanged(seq, func() error {
			return p.unchanged(1-seq, func() error {
				if _, err := p.DecodeEach(batch); !poisoned(err) {
					return fmt.Errorf("a poisoned one decodes: %v", err)
				}
				return nil
			})
		})
	}
	within := a.holds && b.holds && p.setting.config.LESS.Reference && rng.IntN(2) == 0
	aborted := !within && !p.setting.config.LESS.OnDevice && (!p.setting.hybrid || a.holds && b.holds) && rng.IntN(4) == 0
	rows := [2]int{1, 2}
	if p.setting.hybrid {
		rows = [2]int{}
	}
	if within {
		if err := p.after(rng.IntN((2 + 4) * 2 * len(p.setting.caches))); err != nil {
			return done, err
		}
		done += ", with an allocation that fails"
	}
	if aborted {
		nodes := rng.IntN(400)
		if err := p.AbortAfter(nodes); err != nil {
			return done, err
		}
		done += fmt.Sprintf(", and is aborted after %d nodes", nodes)
	}
	out, err := p.DecodeEach(batch)
	if err2 := p.AbortAfter(-1); err2 != nil {
		return done, err2
	}
	if within {
		happened, err2 := p.happened()
		if err2 != nil || !happened {
			return done, fmt.Errorf("no allocation has failed: %v", err2)
		}
	}
	if err == nil && !within {
		for i, token := range batch {
			p.seqs[order[i]].decodedIn(p.setting, rows[i], token.ID)
		}
		return done, finite(out)
	}
	if !within && !aborted {
		return done, err
	}
	if err := refused(err, 0); err != nil {
		return done, err
	}
	gone := 0
	for i, token := range batch {
		m := &p.seqs[order[i]]
		if _, err := p.Save(order[i]); err != nil {
			if !poisoned(err) {
				return done, err
			}
			m.poison, m.holds = true, true
			gone++
			continue
		}
		_, hi, err := p.SeqPos(order[i])
		if err != nil {
			return done, err
		}
		at := m.length
		if p.setting.hybrid {
			if hi == at { // its graph was done before the other's failed
				m.decodedIn(p.setting, rows[i], token.ID)
			}
			continue
		}
		if within { // it was done, or it would be poisoned
			m.decodedIn(p.setting, rows[i], token.ID)
		}
		if within && hi == at-1 { // and taken back
			m.cutAt(at)
		}
	}
	if within && gone != 1 {
		return done, fmt.Errorf("one allocation has failed, and %d sequences are poisoned", gone)
	}
	if within {
		p.counts["poisoned beside another"]++
	}
	return done, nil
}

// abort stops a decode after some nodes of its graph. Whole micro-batches stay, half a one poisons.
func (p *player) abort(seq int, rng *rand.Rand) (string, error) {
	m := &p.seqs[seq]
	tokens, nodes := p.tokens(rng), rng.IntN(400)
	done := fmt.Sprintf("is aborted after %d nodes in %d tokens at %d", nodes, len(tokens), m.length)
	if m.poison {
		return "would be aborted, and is poisoned", nil
	}
	if err := p.AbortAfter(nodes); err != nil {
		return done, err
	}
	_, err := p.Decode(seq, m.length, tokens, worker.Last)
	if err2 := p.AbortAfter(-1); err2 != nil {
		return done, err2
	}
	if err == nil { // it was done before
		m.decoded(p.setting, tokens)
		return done, nil
	}
	if err := refused(err, 2); err != nil {
		return done, err
	}
	if _, err := p.Save(seq); err != nil {
		if !poisoned(err) {
			return done, err
		}
		p.counts["poisoned by an abort"]++
		m.poison, m.holds = true, true
		return done + ", which poisons it", nil
	}
	_, hi, err := p.SeqPos(seq)
	if err != nil {
		return done, err
	}
	n := hi + 1 - m.length
	if n < 0 || n >= len(tokens) || n%playUbatch != 0 {
		return done, fmt.Errorf("%d of its %d tokens stay", n, len(tokens))
	}
	p.counts["aborted between micro-batches"]++
	m.decoded(p.setting, tokens[:n])
	return done + fmt.Sprintf(", of which %d stay", n), nil
}

// fail asks for what can't be decoded.
func (p *player) fail(seq int, rng *rand.Rand) (string, error) {
	m := &p.seqs[seq]
	pos := int32(m.length)
	batch := [][]worker.Token{
		{{ID: 5, Pos: pos, Seq: int32(seq), Row: true, Also: []int32{int32(1 - seq)}}},
		{{ID: 5, Pos: pos + 1, Seq: int32(seq)}, {ID: 5, Pos: pos, Seq: int32(seq), Row: true}},
		{{ID: 5, Pos: pos, Seq: int32(seq)}, {ID: 5, Pos: pos + 2, Seq: int32(seq), Row: true}},
	}[rng.IntN(3)]
	done := fmt.Sprintf("is to decode %+v", batch)
	return done, p.unchanged(seq, func() error {
		_, err := p.DecodeEach(batch)
		return refused(err, 0)
	})
}

func (p *player) clear(seq int, _ *rand.Rand) (string, error) {
	p.seqs[seq] = modelled{}
	return "is cleared", p.SeqRemove(seq, 0, worker.End)
}

func (p *player) copy(seq int, rng *rand.Rand) (string, error) {
	from := 1 - seq
	m, f := &p.seqs[seq], &p.seqs[from]
	done := "is made a copy"
	none := f.holds && f.length > 0 && !f.poison && rng.IntN(4) == 0
	if none {
		if err := p.after(rng.IntN(2 * len(p.setting.caches))); err != nil {
			return done, err
		}
		done += ", with an allocation that fails"
	}
	if err := p.SeqCopy(from, seq, worker.End, worker.End); err != nil {
		return done, err
	}
	switch {
	case f.poison:
		m.poison = true
	case none:
		happened, err := p.happened()
		if err != nil || !happened {
			return done, fmt.Errorf("no allocation has failed: %v", err)
		}
		p.counts["no memory to copy"]++
		m.poison = true
	case f.length == 0:
		*m = modelled{}
	default:
		*m = f.clone()
	}
	return done, nil
}

func (p *player) copyPart(seq int, rng *rand.Rand) (string, error) {
	from := 1 - seq
	f := &p.seqs[from]
	if f.poison || f.length < 2 {
		return "would be made a copy in part of one that is poisoned or too short", nil
	}
	end := 1 + rng.IntN(f.length-1)
	p.seqs[seq].poison = true
	return fmt.Sprintf("is made a copy of %d of %d tokens", end, f.length), p.SeqCopy(from, seq, 0, end)
}

func (p *player) shift(seq int, rng *rand.Rand) (string, error) {
	m := &p.seqs[seq]
	if m.length == 0 && !m.poison {
		return "is empty and shifted", p.SeqAdd(seq, 0, worker.End, 1)
	}
	m.poison = true
	if rng.IntN(2) == 0 {
		return "is divided", p.SeqDivide(seq, 0, worker.End, 2)
	}
	return "is shifted", p.SeqAdd(seq, 0, worker.End, 1)
}

func (p *player) cut(seq int, rng *rand.Rand) (string, error) {
	m := &p.seqs[seq]
	if m.poison {
		return "would be cut, and is poisoned", nil
	}
	at := max(0, m.length+1-[]int{rng.IntN(4), rng.IntN(12), rng.IntN(m.length + 2)}[rng.IntN(3)])
	done := fmt.Sprintf("is cut at %d of %d", at, m.length)
	_, lowest, err := p.lowest(seq)
	if err != nil {
		return done, err
	}
	switch {
	case at >= m.length && m.length > 0 || m.length == 0:
		return done, p.unchanged(seq, func() error { return p.SeqRemove(seq, at, worker.End) })
	case at > 0 && at < lowest:
		p.counts["cut refused"]++
		return done, p.unchanged(seq, func() error { return refused(p.SeqRemove(seq, at, worker.End), 0) })
	}
	m.cutAt(at)
	return done, p.SeqRemove(seq, at, worker.End)
}

func (p *player) save(seq int, _ *rand.Rand) (string, error) {
	if p.seqs[seq].poison {
		return "would be saved, and is poisoned", nil
	}
	return "is saved", p.unchanged(seq, func() error {
		data, err := p.Save(seq)
		p.saved = append(p.saved, savedState{data, p.seqs[seq].clone()})
		return err
	})
}

func (p *player) load(seq int, rng *rand.Rand) (string, error) {
	if len(p.saved) == 0 {
		return "has nothing to load", nil
	}
	from := p.saved[rng.IntN(len(p.saved))]
	done := fmt.Sprintf("loads a state of %d tokens", from.as.length)
	if from.as.length > 0 && rng.IntN(4) == 0 {
		p.counts["no memory to load"]++
		return done + ", with an allocation that fails", p.unchanged(seq, func() error {
			if err := p.after(rng.IntN(2 * len(p.setting.caches))); err != nil {
				return err
			}
			_, err := p.Load(seq, from.data)
			happened, err2 := p.happened()
			if err2 != nil || !happened {
				return fmt.Errorf("no allocation has failed: %v", err2)
			}
			return refused(err, 0)
		})
	}
	if _, err := p.Load(seq, from.data); err != nil {
		return done, err
	}
	p.seqs[seq] = from.as.clone()
	return done, nil
}

func (p *player) loadDamaged(seq int, rng *rand.Rand) (string, error) {
	if len(p.saved) == 0 {
		return "has nothing to load", nil
	}
	b := bytes.Clone(p.saved[rng.IntN(len(p.saved))].data)
	i := rng.IntN(len(b))
	done := fmt.Sprintf("loads the first %d of %d bytes of a state", i, len(b))
	b = b[:i]
	return done, p.unchanged(seq, func() error {
		_, err := p.Load(seq, b)
		return refused(err, 0)
	})
}

// replay takes a fresh sequence the way of another: both go on in the same way, bit for bit.
func (p *player) replay(seq int) error {
	m := &p.seqs[seq]
	if m.poison || m.length == 0 {
		return nil
	}
	if err := p.SeqRemove(replaySeq, 0, worker.End); err != nil {
		return err
	}
	pos := 0
	for _, e := range m.events {
		var err error
		switch {
		case e.tokens == nil:
			pos, err = e.cut, p.SeqRemove(replaySeq, e.cut, worker.End)
		case e.row == 0:
			_, err = p.Decode(replaySeq, pos, e.tokens, worker.Last)
		default: // beside anything
			batch := []worker.Token{{ID: e.tokens[0], Pos: int32(pos), Seq: replaySeq, Row: true}, {ID: 9, Seq: fillerSeq, Row: true}}
			if e.row == 2 {
				slices.Reverse(batch)
			}
			if _, err = p.DecodeEach(batch); err == nil {
				err = p.SeqRemove(fillerSeq, 0, worker.End)
			}
		}
		pos += len(e.tokens)
		if err != nil {
			return fmt.Errorf("taking a fresh one its way: %w", err)
		}
	}
	tokens := []int32{7, 11, 13}
	want, err := p.Decode(replaySeq, pos, tokens, worker.All)
	if err != nil {
		return err
	}
	got, err := p.Decode(seq, pos, tokens, worker.All)
	if err != nil {
		return err
	}
	for i := range want.Values {
		if math.Float32bits(want.Values[i]) != math.Float32bits(got.Values[i]) {
			return fmt.Errorf("logit %d of row %d is %v, that of a fresh one taken its way %v", i%want.Width, i/want.Width, got.Values[i], want.Values[i])
		}
	}
	p.counts["replayed"]++
	return p.SeqRemove(replaySeq, 0, worker.End)
}
