package kernels

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestInterleavings does to two sequences of a layer what can be done to them, in any order, and compares them after each step with a
// plain model of what must hold: algorithm.md in Go and double precision, which follows the cache where two pairs are worth the same to
// rounding. $LESSKV_INTERLEAVINGS is their number.
func TestInterleavings(t *testing.T) {
	n := 150
	if s := os.Getenv("LESSKV_INTERLEAVINGS"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err)
	}
	counts := map[string]int{}
	for seed := range n {
		l := drawInterleaving(uint64(seed))
		if err := l.play(l.steps, counts); err != nil {
			shortest, err := l.shrink(err)
			t.Fatalf("seed %d, %s: %v, after\n%s", seed, l.c.name, err, strings.Join(shortest, "\n"))
		}
	}
	t.Logf("%d interleavings: %v", n, counts)
	for _, s := range steps {
		require.Positive(t, counts[s.name], "never done: %s", s.name)
	}
}

// An interleaving is a layer, and what is done in which order.
type interleaving struct {
	c     testCase
	seed  uint64
	steps []draw
}

// A draw is one step; what it draws itself depends on its own seed alone, so that steps can be left out.
type draw struct {
	step int // of steps
	seq  int // that it is done to
	seed uint64
}

// A step does one thing to a sequence and says what of it does not hold.
var steps = []struct {
	name  string
	often int
	do    func(p *played, s *sequence, rng *rand.Rand) (done string, err error)
}{
	{"decode", 12, (*played).decode},
	{"interrupt", 2, (*played).interrupt},
	{"fail", 1, (*played).fail},
	{"clear", 1, (*played).clear},
	{"copy", 2, (*played).copy},
	{"cut", 4, (*played).cut},
	{"save", 3, (*played).save},
	{"load", 3, (*played).load},
	{"load damaged", 2, (*played).loadDamaged},
}

func drawInterleaving(seed uint64) *interleaving {
	rng := rand.New(rand.NewPCG(77, seed))
	l := &interleaving{seed: seed}
	c, y := &l.c, &l.c.layer
	n, policies := int(seed), PolicyNames()
	y.Policy = policies[n%len(policies)] // all of them, and all types, with all of the others in turn
	y.KeyType = []Type{F32, F16, Q80, Q40}[n/len(policies)%4]
	y.ValueType = []Type{F32, F16, Q80, Q40}[n/len(policies)/4%4]
	y.HeadsKV = 1 + rng.IntN(2)
	y.Heads = y.HeadsKV * (1 + rng.IntN(3))
	y.KeySize, y.ValueSize = pick(rng, 8, 16, 20, 32), pick(rng, 8, 16, 20, 32)
	if y.KeyType == Q80 || y.KeyType == Q40 {
		y.KeySize = 32
	}
	if y.ValueType == Q80 || y.ValueType == Q40 {
		y.ValueSize = 32
	}
	y.Budget = 1 + rng.IntN(24)
	y.Heavy = rng.IntN(y.Budget + 1)
	y.Pinned = rng.IntN(min(y.Heavy, 3) + 1)
	if rng.IntN(3) > 0 { // each KV head with its own, as they are allocated
		for range y.HeadsKV {
			b := max(1, y.Pinned) + rng.IntN(24)
			y.Budgets = append(y.Budgets, Budget{b, y.Pinned + rng.IntN(b-y.Pinned+1)})
		}
	}
	c.kernelType = F32
	if rng.IntN(4) > 0 {
		c.rank, c.hidden = 1+rng.IntN(6), 1+rng.IntN(8)
	}
	if n%9 == 8 {
		y.Window, c.rank = 1+rng.IntN(20), 0
	}
	c.softCap = pick[float32](rng, 0, 0, 10)
	c.sinks = rng.IntN(6) == 0
	c.scaled = rng.IntN(3) == 0
	c.name = fmt.Sprintf("%s, keys %v, values %v, %d of %d heavy, by head %v, %d pinned, window %d, rank %d", y.Policy, y.KeyType, y.ValueType, y.Heavy, y.Budget, y.Budgets, y.Pinned, y.Window, c.rank)
	var bag []int
	for i, s := range steps {
		bag = append(bag, slices.Repeat([]int{i}, s.often)...)
	}
	for range 8 + rng.IntN(30) {
		l.steps = append(l.steps, draw{bag[rng.IntN(len(bag))], rng.IntN(2), rng.Uint64()})
	}
	return l
}

// A sequence is a cache, and the model of what it holds.
type sequence struct {
	cache   *Cache
	layer   *Layer
	model   *contract
	seen    int // pairs committed and not cut off
	last    int // position, -1 if there is none
	evicted int // highest position evicted, -1 if none was
}

// played is an interleaving on its way.
type played struct {
	c      *testCase
	seqs   [2]*sequence
	empty  *sequence // without a cache
	spare  *Cache    // of the same layer
	other  *Cache    // of another
	saved  []savedSequence
	counts map[string]int
}

type savedSequence struct {
	data []byte
	as   sequence // without the cache
}

// play does the steps and returns what does not hold first.
func (l *interleaving) play(list []draw, counts map[string]int) (err error) {
	done := make([]string, 0, len(list))
	_, err = l.follow(list, counts, done)
	return err
}

// follow is play; it also returns the steps in words.
func (l *interleaving) follow(list []draw, counts map[string]int, done []string) ([]string, error) {
	c := l.c
	rng := rand.New(rand.NewPCG(78, l.seed))
	phi, psi := c.mats(rng)
	scale := c.scales(rng)
	if c.rank > 0 {
		y := &c.layer
		k, err := NewKernels(Shape{y.Heads, y.HeadsKV, y.KeySize, c.rank, c.hidden}, phi, psi, scale)
		if err != nil {
			return done, err
		}
		defer k.Close()
		y.Kernels = k
	}
	endless := c // the contract of a layer that evicts nothing: what goes is follow's
	endless.layer.Budget, endless.layer.Budgets = 1<<30, nil
	p := &played{c: &c, counts: counts}
	var caches []*Cache
	defer func() {
		for _, cache := range caches {
			cache.Close()
		}
	}()
	another := c.layer
	another.Budget, another.Window = another.Budget+1, max(another.Window, 0)
	if another.Budgets = slices.Clone(another.Budgets); another.Budgets != nil {
		another.Budgets[another.HeadsKV-1].Slots++
	}
	if another.Window > 0 {
		another.Window++
	}
	for _, layer := range []Layer{c.layer, c.layer, c.layer, another} {
		cache, err := NewCache(layer)
		if err != nil {
			return done, err
		}
		caches = append(caches, cache)
	}
	for i := range p.seqs {
		p.seqs[i] = &sequence{cache: caches[i], model: newContract(&endless, phi, psi, scale), layer: &c.layer, last: -1, evicted: -1}
	}
	p.spare, p.other = caches[2], caches[3]
	p.empty = &sequence{model: newContract(&endless, phi, psi, scale), layer: &c.layer, last: -1, evicted: -1}
	for _, d := range list {
		s := p.seqs[d.seq]
		what, err := steps[d.step].do(p, s, rand.New(rand.NewPCG(79, d.seed)))
		counts[steps[d.step].name]++
		done = append(done, fmt.Sprintf("  sequence %d: %s", d.seq, what))
		if err == nil {
			for i := range p.seqs {
				if err = p.seqs[i].check(); err != nil {
					err = fmt.Errorf("sequence %d: %w", i, err)
					break
				}
			}
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// shrink leaves out steps as long as something does not hold, and returns the rest in words, and what does not hold then.
func (l *interleaving) shrink(err error) ([]string, error) {
	list := slices.Clone(l.steps)
	for again := true; again; {
		again = false
		for i := len(list) - 1; i >= 0; i-- {
			fewer := slices.Delete(slices.Clone(list), i, i+1)
			if l.play(fewer, map[string]int{}) != nil {
				list, again = fewer, true
			}
		}
	}
	done, last := l.follow(list, map[string]int{}, nil)
	if last == nil {
		last = err
	}
	return done, last
}

// check compares what can be asked of a cache with the model.
func (s *sequence) check() error {
	l := s.layer
	stats := s.cache.Stats()
	want := Stats{Seen: s.seen, PosMin: -1, PosMax: s.last}
	width := 0
	for j, pairs := range s.model.pairs {
		want.Kept, want.Folded = max(want.Kept, len(pairs)), max(want.Folded, s.seen-len(pairs))
		width += l.BudgetOf(j).Slots
	}
	if want.Folded > 0 {
		want.PosMin = s.evicted + 1
	} else if want.Kept > 0 {
		want.PosMin = slices.MinFunc(s.model.pairs[0], func(a, b pair) int { return a.pos - b.pos }).pos
	}
	if stats != want {
		return fmt.Errorf("%+v, want %+v", stats, want)
	}
	for j, pairs := range s.model.pairs {
		pos, score := s.cache.Slots(j)
		if len(pos) != len(pairs) || len(pos) > l.BudgetOf(j).Slots {
			return fmt.Errorf("KV head %d holds %v, want %d pairs", j, pos, len(pairs))
		}
		for _, a := range pairs {
			i := slices.Index(pos, int32(a.pos))
			if i < 0 {
				return fmt.Errorf("KV head %d holds %v, want %d too", j, pos, a.pos)
			}
			if !(math.Abs(float64(score[i])-a.score) <= 2e-5*max(1, a.score)) {
				return fmt.Errorf("KV head %d, position %d: score %v, want %v", j, a.pos, score[i], a.score)
			}
		}
	}
	slots, state, err := l.Bytes()
	slot := l.KeyType.RowSize(l.KeySize) + l.ValueType.RowSize(l.ValueSize) + 8
	if err != nil || slots != width*slot || state != l.HeadsKV*s.model.c.rank*(l.ValueSize+1)*4 {
		return fmt.Errorf("%d bytes of slots and %d of state (%v), want what the formula says", slots, state, err)
	}
	return nil
}

func (p *played) decode(s *sequence, rng *rand.Rand) (string, error) {
	tokens := pick(rng, 1, 1, 2, 1+rng.IntN(12), 1+rng.IntN(40))
	threads := 1 + rng.IntN(3)
	u := p.c.ubatch(rng, tokens, s.last+1)
	done := fmt.Sprintf("decodes %d tokens at %d in %d threads", tokens, u.Pos, threads)
	want := s.model.step(u)

	// with another number of threads first, which is to make no difference
	if err := p.spare.CopyFrom(s.cache); err != nil {
		return done, err
	}
	if err := errors.Join(p.spare.Attend(u, threads%3+1), p.spare.Commit(u, threads%3+1)); err != nil {
		return done, err
	}
	other := slices.Clone(u.Out)
	if err := errors.Join(s.cache.Attend(u, threads), s.cache.Commit(u, threads)); err != nil {
		return done, err
	}
	if !bytes.Equal(s.cache.Save(), p.spare.Save()) {
		return done, errors.New("another number of threads makes another cache")
	}
	for i, x := range u.Out {
		if math.Float32bits(x) != math.Float32bits(other[i]) {
			return done, fmt.Errorf("output %d is %v, and %v with another number of threads", i, x, other[i])
		}
		if !(math.Abs(want[i]-float64(x)) <= 1e-4) {
			return done, fmt.Errorf("output %d is %v, want %v", i, x, want[i])
		}
	}
	s.seen += tokens
	s.last += tokens
	for j := range s.model.pairs {
		if err := s.follow(j); err != nil {
			return done, err
		}
	}
	return done, nil
}

// follow takes over which pairs of a KV head stay, if step 3 allows that, and folds the others.
func (s *sequence) follow(j int) error {
	l, all := s.layer, s.model.pairs[j]
	slices.SortFunc(all, func(x, y pair) int { return x.pos - y.pos })
	pos, _ := s.cache.Slots(j)
	if l.Window > 0 { // the newest
		all = all[max(0, len(all)-(l.Window-1)):]
		oldest := s.last + 1 - len(all)
		for i, a := range all {
			if a.pos != oldest+i {
				return fmt.Errorf("KV head %d: the model's window begins at %d and has %d as %d", j, oldest, a.pos, i)
			}
		}
		s.model.pairs[j] = all // which check compares
		s.evicted = max(s.evicted, oldest-1)
		return nil
	}
	b := l.BudgetOf(j)
	if want := min(b.Slots, len(all)); len(pos) != want {
		return fmt.Errorf("KV head %d holds %d pairs of %d, want %d", j, len(pos), len(all), want)
	}
	var kept, gone []pair
	worst, best := math.Inf(1), math.Inf(-1) // of those that stay for their score, and of those that go
	for i, a := range all {
		recent := i >= len(all)-(b.Slots-b.Heavy)
		first := i < b.Heavy && (!l.scored() || a.pos < l.Pinned)
		switch {
		case slices.Contains(pos, int32(a.pos)):
			kept = append(kept, a)
			if !recent && !first {
				if worst = min(worst, a.score); !l.scored() && len(all) > b.Slots {
					return fmt.Errorf("KV head %d keeps %d, which is neither among the oldest nor among the newest", j, a.pos)
				}
			}
		case recent || first:
			return fmt.Errorf("KV head %d does not keep %d", j, a.pos)
		default:
			gone = append(gone, a)
			best = max(best, a.score)
			s.evicted = max(s.evicted, a.pos)
		}
	}
	if len(kept) != len(pos) {
		return fmt.Errorf("KV head %d holds %v: some of them twice, or never seen", j, pos)
	}
	if best > worst+2e-5*max(1, best) {
		return fmt.Errorf("KV head %d keeps a pair of score %v and not one of %v", j, worst, best)
	}
	s.model.pairs[j] = kept
	s.fold(j, gone)
	return nil
}

// fold is step 4.
func (s *sequence) fold(j int, gone []pair) {
	m := s.model
	if m.c.rank == 0 {
		return
	}
	for _, a := range gone { // in position order
		for r, x := range m.psiOf(j, a.k) {
			for c := range a.v {
				m.H[j][r*len(a.v)+c] += x * a.v[c]
			}
			m.z[j][r] += x
		}
	}
}

// interrupt attends and does not commit, as a decode that is stopped between the two.
func (p *played) interrupt(s *sequence, rng *rand.Rand) (string, error) {
	u := p.c.ubatch(rng, 1+rng.IntN(20), s.last+1)
	done := fmt.Sprintf("is interrupted in %d tokens", u.Tokens)
	return done, p.unchanged(s, func() error { return s.cache.Attend(u, 2) })
}

// fail asks for what makes no sense.
func (p *played) fail(s *sequence, rng *rand.Rand) (string, error) {
	return "is asked for what makes no sense", p.unchanged(s, func() error {
		u := p.c.ubatch(rng, 3, s.last+1)
		u.K = u.K[:len(u.K)/2]
		for name, err := range map[string]error{
			"short keys": s.cache.Attend(u, 1), "short keys, committed": s.cache.Commit(u, 1),
			"a copy of another layer's": s.cache.CopyFrom(p.other),
		} {
			if !errors.Is(err, ErrArgument) {
				return fmt.Errorf("%s: %v, want %v", name, err, ErrArgument)
			}
		}
		if err := s.cache.Load(p.other.Save()); !errors.Is(err, ErrFormat) {
			return fmt.Errorf("another layer's state: %v, want %v", err, ErrFormat)
		}
		return nil
	})
}

// unchanged does f, after which a sequence is to be what it was, bit for bit.
func (p *played) unchanged(s *sequence, f func() error) error {
	before := s.cache.Save()
	if err := f(); err != nil {
		return err
	}
	if !bytes.Equal(before, s.cache.Save()) {
		return errors.New("the cache has changed")
	}
	return nil
}

func (p *played) clear(s *sequence, _ *rand.Rand) (string, error) {
	s.cache.Clear()
	s.become(p.empty)
	return "is cleared", nil
}

// become takes over what another sequence holds.
func (s *sequence) become(from *sequence) {
	s.seen, s.last, s.evicted = from.seen, from.last, from.evicted
	m := *s.model
	m.pairs, m.H, m.z = nil, nil, nil
	for j := range from.model.pairs {
		m.pairs = append(m.pairs, slices.Clone(from.model.pairs[j]))
		m.H = append(m.H, slices.Clone(from.model.H[j]))
		m.z = append(m.z, slices.Clone(from.model.z[j]))
	}
	s.model = &m
}

func (p *played) copy(s *sequence, rng *rand.Rand) (string, error) {
	from := p.seqs[rng.IntN(2)]
	if err := s.cache.CopyFrom(from.cache); err != nil {
		return "is copied to", err
	}
	s.become(from)
	if !bytes.Equal(s.cache.Save(), from.cache.Save()) {
		return "is copied to", errors.New("a copy is another cache")
	}
	return "is made a copy", nil
}

func (p *played) cut(s *sequence, rng *rand.Rand) (string, error) {
	l := &p.c.layer
	pos := max(0, s.last+2-pick(rng, rng.IntN(6), rng.IntN(6), rng.IntN(s.last+3)))
	done := fmt.Sprintf("is cut at %d of %d, highest evicted %d", pos, s.last+1, s.evicted)
	needs := pos - 1 // what must not be gone above
	if l.Window > 0 {
		needs = pos - l.Window
	}
	if pos <= s.last && s.evicted >= 0 && s.evicted > needs {
		return done, p.unchanged(s, func() error {
			if err := s.cache.Cut(pos); !errors.Is(err, ErrFolded) {
				return fmt.Errorf("%v, want %v", err, ErrFolded)
			}
			return nil
		})
	}
	if err := s.cache.Cut(pos); err != nil || pos > s.last {
		return done, err
	}
	for j := range s.model.pairs {
		s.model.pairs[j] = slices.DeleteFunc(slices.Clone(s.model.pairs[j]), func(a pair) bool { return a.pos >= pos })
	}
	s.seen -= s.last + 1 - pos
	if s.last = pos - 1; s.seen == 0 {
		s.last = -1
	}
	return done, nil
}

func (p *played) save(s *sequence, _ *rand.Rand) (string, error) {
	return "is saved", p.unchanged(s, func() error {
		saved := savedSequence{data: s.cache.Save(), as: sequence{model: s.model}}
		saved.as.become(s)
		p.saved = append(p.saved, saved)
		return nil
	})
}

func (p *played) load(s *sequence, rng *rand.Rand) (string, error) {
	if len(p.saved) == 0 {
		return "has nothing to load", nil
	}
	from := p.saved[rng.IntN(len(p.saved))]
	done := fmt.Sprintf("loads a state of %d tokens", from.as.seen)
	if err := s.cache.Load(from.data); err != nil {
		return done, err
	}
	s.become(&from.as)
	if !bytes.Equal(from.data, s.cache.Save()) {
		return done, errors.New("what was loaded is saved as another state")
	}
	return done, nil
}

func (p *played) loadDamaged(s *sequence, rng *rand.Rand) (string, error) {
	b := p.seqs[rng.IntN(2)].cache.Save()
	i := rng.IntN(len(b))
	done := fmt.Sprintf("loads a state with byte %d of %d changed", i, len(b))
	if rng.IntN(3) == 0 {
		b, done = b[:i], fmt.Sprintf("loads the first %d of %d bytes of a state", i, len(b))
	} else {
		b[i] ^= byte(1 + rng.IntN(255))
	}
	return done, p.unchanged(s, func() error {
		if err := s.cache.Load(b); !errors.Is(err, ErrFormat) {
			return fmt.Errorf("%v, want %v", err, ErrFormat)
		}
		return nil
	})
}
