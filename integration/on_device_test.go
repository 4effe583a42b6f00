package integration

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/devicetest"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// LESS on the device is judged by the plain reference (TestContract) and by LESS beside it, on the CPU here, on devices in
// TestDevicesLESSOnDevice.

// openOnDevice opens a model with LESS on the device.
func openOnDevice(t *testing.T, c worker.Config) *worker.Worker {
	t.Helper()
	less := *c.LESS
	less.OnDevice = true
	c.LESS = &less
	return open(t, worker.Patched, c)
}

// Where nothing is evicted LESS on the device is the unmodified runtime's attention to rounding, with micro-batches of any size: those whose
// tokens all stay, and others.
func TestOnDeviceNothingEvictedIsExact(t *testing.T) {
	const tokens = 200
	for _, m := range append(tinymodels.Supported(), tinymodels.Model{Name: "gopher-5m"}) {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			path, typ := gopher, "f16"
			if m.Architecture != "" {
				path, typ = write(t, m, gguf.F32), "f32"
			}
			c := worker.Config{Model: path, Context: 256, Ubatch: 64, TypeK: typ, TypeV: typ}
			info, err := open(t, worker.Unmodified, c).Info()
			require.NoError(t, err)
			want := chatter.decode(t, open(t, worker.Unmodified, c), randomTokens(tokens, info.Vocab))
			for _, heavy := range []int{10, 250} {
				c.LESS = &worker.LESS{Policy: "peak", Budget: 256, Heavy: worker.Int(heavy), TypeK: typ, TypeV: typ}
				got := compare(t, want, chatter.decode(t, openOnDevice(t, c), randomTokens(tokens, info.Vocab)))
				t.Logf("largest difference %.2g, mean KL %.2g", got.max, got.kl)
				if typ == "f32" {
					assert.Less(t, got.max, 1e-3)
				}
				assert.Less(t, got.kl, 1e-5)
				assert.Zero(t, got.flips)
			}
		})
	}
}

// evicting is a context of 512 tokens in which most are evicted, of a tiny model or gopher-5m (which names no architecture), and what its logits may
// differ by where they are computed in another way.
func evicting(t *testing.T, m tinymodels.Model, policy string) (c worker.Config, bound float64) {
	t.Helper()
	c = worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: &worker.LESS{Policy: policy, Budget: 40}}
	if m.Architecture != "" {
		c.Model = write(t, m, gguf.F32)
		return c, logitBound
	}
	if policy == "peak" {
		c.LESS = peak41()
	}
	return c, logitBoundF16
}

// With evictions LESS on the device computes what it does beside it, keeps and folds as much, and holds the same pairs but for some that are as
// good.
func TestOnDeviceLESS(t *testing.T) {
	for _, m := range append(tinymodels.Supported(), tinymodels.Model{Name: "gopher-5m"}) {
		for _, policy := range []string{"peak", "lambda"} {
			t.Run(m.Name+", "+policy, func(t *testing.T) {
				t.Parallel()
				c, bound := evicting(t, m, policy)
				on := openOnDevice(t, c)
				beside := open(t, worker.Patched, c)
				info, err := on.Info()
				require.NoError(t, err)
				n := sameButForTies(t, beside, on, randomTokens(300, info.Vocab), m.Experts, bound, 1e-5)
				assert.GreaterOrEqual(t, n, leastCompared(m.Experts))
			})
		}
	}
}

// The same with budgets by head, which differ in a layer and between layers, some below a micro-batch and one of a single slot; with peak and phi and psi,
// that of layers that share a cache too.
func TestOnDeviceByHead(t *testing.T) {
	for _, m := range append(tinymodels.Supported(), tinymodels.Model{Name: "gopher-5m"}) {
		for _, policy := range []string{"peak", "lambda"} {
			t.Run(m.Name+", "+policy, func(t *testing.T) {
				t.Parallel()
				c, bound := evicting(t, m, policy)
				beside := open(t, worker.Patched, c)
				heads, err := beside.Heads()
				require.NoError(t, err)
				if len(heads) == 0 {
					return // windows alone
				}
				require.NoError(t, beside.CloseModel())
				for i := range heads {
					c.LESS.Slots = append(c.LESS.Slots, 1+(61*i+39)%90)
				}
				if len(heads) > 1 {
					c.LESS.Slots[len(heads)-1] = 1
				}
				c.LESS.Budget = 0
				if m.Architecture != "" && policy == "peak" {
					base, err := weights.ReadModel(c.Model)
					require.NoError(t, err)
					c.LESS.Adapter = filepath.Join(t.TempDir(), "a.gguf")
					require.NoError(t, unequal(base, weights.Trained{Policy: policy, Heavy: 10, Recent: 30, Ubatch: 32, Context: 512}, 1).Write(c.LESS.Adapter))
				}
				on := openOnDevice(t, c)
				info, err := beside.Open(c)
				require.NoError(t, err)
				n := sameButForTies(t, beside, on, randomTokens(300, info.Vocab), m.Experts, bound, 1e-5)
				assert.GreaterOrEqual(t, n, 24, "nothing is evicted before")
			})
		}
	}
}

// What LESS on the device does not cover is refused while the context is made, saying so.
func TestOnDeviceRefused(t *testing.T) {
	t.Parallel()
	w := start(t, worker.Patched)
	for says, less := range map[string]worker.LESS{
		"slots of type q8_0": {TypeK: "q8_0"},
		"slots of type q4_0": {TypeV: "q4_0"},
		"the kernels":        {Reference: true},
	} {
		less.OnDevice = true
		_, err := w.Open(worker.Config{Model: gopher, Context: 2048, LESS: &less})
		refusedWith(t, err, says)
		refusedWith(t, err, "cache in main memory")
	}
	_, err := w.Open(worker.Config{Model: gopher, Context: 2048, KeepCache: true, LESS: &worker.LESS{OnDevice: true}})
	refusedWith(t, err, "offload_kqv = false")
	_, err = w.Open(worker.Config{Model: gopher, Context: 2048, LESS: &worker.LESS{TypeK: "default", TypeV: "default", OnDevice: true}})
	require.NoError(t, err, "f16 is the default there")
}

// Of an operation that a device lacks the log warns once, and the CPU computes it, for which each layer goes there and back; one that writes a
// tensor there must be the device's.
func TestOnDeviceLacksOperation(t *testing.T) {
	t.Parallel()
	c := worker.Config{Model: gopher, Context: 512, Ubatch: 32, GPULayers: 99, Pretend: "TEST", LESS: peak41()}
	c.LESS.OnDevice = true
	tokens := randomTokens(100, 384)
	w := open(t, worker.Patched, c)
	want := chatter.decode(t, w, tokens)
	log, err := w.Log()
	require.NoError(t, err)
	assert.NotContains(t, log, "cannot compute")
	info, err := w.Info()
	require.NoError(t, err)
	whole, err := w.Splits(1)
	require.NoError(t, err)

	c.Lacks = "POOL_2D"
	w = open(t, worker.Patched, c)
	sameBits(t, want, chatter.decode(t, w, tokens))
	log, err = w.Log()
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(log, "cannot compute POOL_2D"), log)
	parts, err := w.Splits(1)
	require.NoError(t, err)
	assert.Equal(t, whole.Parts+2*info.Layers, parts.Parts)
	for name, s := range map[string]worker.Splits{"all": whole, "all but POOL_2D": parts} {
		t.Logf("a device with %s: %d parts, %d copies, %d bytes a token", name, s.Parts, s.Copies, s.Bytes)
	}

	c.Lacks = "SET_ROWS"
	_, err = start(t, worker.Patched).Open(c)
	refusedWith(t, err, "cannot compute SET_ROWS")
}

// Metal is refused, whose products have not been judged, and Vulkan where these are of half precision, also without layers there: it computes a
// prompt's products of the CPU's layers.
func TestOnDeviceNotInHalfPrecision(t *testing.T) {
	on := func(backend string, layers int) worker.Config {
		return worker.Config{Model: gopher, Context: 512, GPULayers: layers, Pretend: backend, LESS: &worker.LESS{OnDevice: true}}
	}
	for _, name := range devicetest.Float32 {
		t.Setenv(name, "1")
	}
	open(t, worker.Patched, on("Vulkan", 2))
	refused := func(backend, says string) {
		for _, layers := range []int{0, 2} {
			c := on(backend, layers)
			_, err := start(t, worker.Patched).Open(c)
			refusedWith(t, err, says)
			c.LESS.OnDevice = false
			open(t, worker.Patched, c)
		}
	}
	refused("MTL", "does not cover Metal")
	for _, name := range devicetest.Float32 {
		require.NoError(t, os.Unsetenv(name))
		refused("Vulkan", name+"=1")
		require.NoError(t, os.Setenv(name, "1"))
	}
}

// A state that was saved beside the device goes on on it, and the other way round: it is one format.
func TestOnDeviceStateOfBeside(t *testing.T) {
	besideAndOn(t, func(t *testing.T, less *worker.LESS) {
		w, tokens := openSequencesWith(t, less)
		_, err := w.Feed(0, 0, tokens[:200], worker.None)
		require.NoError(t, err)
		state, err := w.Save(0)
		require.NoError(t, err)
		elsewhere := *less
		elsewhere.OnDevice = !less.OnDevice
		other, _ := openSequencesWith(t, &elsewhere)
		_, err = other.Load(0, state)
		require.NoError(t, err)
		n := goOnAlike(t, w, other, 200, tokens[200:], false, logitBoundF16, 1e-5)
		assert.GreaterOrEqual(t, n, 32, "a tie may be behind the first micro-batch")
	})
}

// What a state says of positions and scores is data: none makes an operation write outside its tensors, with micro-batches whose tokens all stay
// and others.
func TestOnDeviceStateOfAnything(t *testing.T) {
	t.Parallel()
	for name, less := range map[string]*worker.LESS{"one budget": {Policy: "peak", Budget: 41}, "by head": {Policy: "peak", Slots: byHead}} {
		t.Run(name, func(t *testing.T) {
			less.OnDevice = true
			stateOfAnything(t, less)
		})
	}
}

func stateOfAnything(t *testing.T, less *worker.LESS) {
	t.Helper()
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 512, Ubatch: 32, Sequences: 2, LESS: less})
	tokens := heldOut(t, w, 200)
	_, err := w.Feed(0, 0, tokens[:100], worker.None)
	require.NoError(t, err)
	state, err := w.Save(0)
	require.NoError(t, err)
	for name, change := range map[string]func(pos, score []byte){
		"high scores":        func(_, score []byte) { fillWords(score, math.Float32bits(1e30)) },
		"low scores":         func(_, score []byte) { fillWords(score, math.Float32bits(-1e30)) },
		"scores at the edge": func(_, score []byte) { fillWords(score, math.Float32bits(1e12)) },
		"one position":       func(pos, _ []byte) { fillWords(pos, 99) },
		"the first position": func(pos, _ []byte) { fillWords(pos, 0) },
	} {
		changed := changeSlots(state, 64, change)
		require.NotEqual(t, state, changed)
		for _, n := range []int{1, 8, 32} {
			_, err := w.Load(1, changed)
			require.NoError(t, err, name)
			for pos := 100; pos < 164; pos += n {
				out, err := w.Decode(1, pos, tokens[pos:pos+n], worker.Last)
				require.NoError(t, err, name)
				assert.False(t, math.IsNaN(float64(out.Row(0)[0])), name)
			}
			_, err = w.Save(1)
			assert.NoError(t, err, name)
		}
	}
}

func fillWords(words []byte, with uint32) {
	for i := 0; i < len(words); i += 4 {
		binary.LittleEndian.PutUint32(words[i:], with)
	}
}

// changeSlots changes the positions and scores of every head of a saved sequence with f16 slots and without kernels, whose heads have keys and
// values of size; the checksums are right again.
func changeSlots(state []byte, size int, change func(pos, score []byte)) []byte {
	state = bytes.Clone(state)
	begin := []byte("lesskv\x00\x02")
	for at := bytes.Index(state, begin); ; {
		blob := state[at:][:binary.LittleEndian.Uint64(state[at-8:])]
		heads, head := int(binary.LittleEndian.Uint32(blob[28:])), blob[64:]
		for range heads {
			n := int(binary.LittleEndian.Uint32(head[8:]))
			pos := head[32+n*2*2*size:]
			change(pos[:4*n], pos[4*n:8*n])
			head = pos[8*n:]
		}
		sum := uint64(0xcbf29ce484222325)
		for i := 0; i < len(blob)-8; i += 8 {
			var word [8]byte
			copy(word[:], blob[i:len(blob)-8])
			sum = (sum ^ binary.LittleEndian.Uint64(word[:])) * 0x100000001b3
			sum ^= sum >> 32
		}
		binary.LittleEndian.PutUint64(blob[len(blob)-8:], sum)
		next := bytes.Index(state[at+len(blob):], begin)
		if next < 0 {
			return state
		}
		at += len(blob) + next
	}
}

// More sequences than the context was made for take turns on the device, and each goes on as if it had been there all the time.
func TestOnDeviceSequencesTakeTurns(t *testing.T) {
	t.Parallel()
	less := peak41()
	less.OnDevice = true
	w := open(t, worker.Patched, worker.Config{Model: gopher, Context: 512, Ubatch: 32, Sequences: 2, Unified: true, LESS: less})
	tokens := heldOut(t, w, 128)
	want := atOnce.decode(t, w, tokens)
	require.NoError(t, w.Clear())
	for pos := 0; pos < len(tokens); pos += 32 {
		for seq := range 4 {
			out, err := w.Decode(seq, pos, tokens[pos:pos+32], worker.All)
			require.NoError(t, err)
			sameBits(t, &worker.Output{Width: want.Width, Values: want.Values[pos*want.Width : (pos+32)*want.Width]}, out)
		}
	}
}

// The bytes that are reported stand still from the first token on, and are those of the formula and of what "LESS on the device" adds to it.
func TestOnDeviceMemory(t *testing.T) {
	t.Parallel()
	beside, tokens := openSequencesWith(t, peak41())
	_, err := beside.Feed(0, 0, tokens[:50], worker.None)
	require.NoError(t, err)
	formula, err := beside.LESS()
	require.NoError(t, err)

	less := peak41()
	less.OnDevice = true
	w, _ := openSequencesWith(t, less)
	info, err := w.Info()
	require.NoError(t, err)
	before, err := w.LESS()
	require.NoError(t, err)
	const seats, ubatch, size = 4, 32, 2 * 2 * 64 // of a pair of f16
	spare := int64(info.Layers * info.HeadsKV * ubatch * size)
	assert.Equal(t, seats*(formula.SlotBytes+spare), before.SlotBytes)
	assert.Equal(t, seats*formula.StateBytes, before.StateBytes)
	_, err = w.Feed(0, 0, tokens, worker.None)
	require.NoError(t, err)
	after, err := w.LESS()
	require.NoError(t, err)
	before.Sequences, before.ScratchBytes = 1, formula.SlotBytes+formula.StateBytes
	assert.Equal(t, before, after)
}

// With budgets by head each head of a layer takes as many slots as the one with most has, and what a slot is used for takes 4 bytes. A budget in bytes
// counts that.
func TestOnDeviceMemoryByHead(t *testing.T) {
	t.Parallel()
	const seats, ubatch, heads, size = 2, 32, 2, 2 * 2 * 64
	base, err := weights.ReadModel(gopher)
	require.NoError(t, err)
	a := weights.New(base, weights.Trained{Policy: "peak", Heavy: 10, Recent: 31, Ubatch: ubatch, Context: 512})
	for i := range base.Layers * heads {
		a.Budget = append(a.Budget, float32(1+i*i%7))
	}
	path := filepath.Join(t.TempDir(), "a.gguf")
	require.NoError(t, a.Write(path))

	w := start(t, worker.Patched)
	slotBytes := func(less worker.LESS) int64 {
		less.OnDevice, less.Adapter = true, path
		_, err := w.Open(worker.Config{Model: gopher, Context: 512 * seats, Ubatch: ubatch, Sequences: seats, LESS: &less})
		require.NoError(t, err)
		got, err := w.LESS()
		require.NoError(t, err)
		all, err := w.Heads()
		require.NoError(t, err)
		want := int64(0)
		for il := range base.Layers {
			most := max(all[heads*il].Budget, all[heads*il+1].Budget)
			want += int64(seats*heads*((most+ubatch)*size+12*most) + 4*(most+2*ubatch+heads))
		}
		assert.Equal(t, want, got.SlotBytes)
		require.NoError(t, w.CloseModel())
		return want
	}
	least := slotBytes(worker.LESS{Budget: 41})
	more := slotBytes(worker.LESS{Budget: 42})
	require.Greater(t, more, least)
	for asked, want := range map[int64]int64{least: least, more - 1: least, more: more} {
		assert.Equal(t, want, slotBytes(worker.LESS{BudgetBytes: asked}), "of %d bytes", asked)
	}
}

// A budget in bytes is that of all sequences that the device has room for, a share of the full cache's one of theirs.
func TestOnDeviceBudgetInBytes(t *testing.T) {
	t.Parallel()
	const seats, ubatch, size = 3, 32, 2 * 2 * 64
	for _, unified := range []bool{false, true} {
		full := 6 * 2 * size * 512
		if !unified {
			full *= seats // n_ctx is that of each
		}
		for _, less := range []worker.LESS{{Policy: "peak", BudgetBytes: int64(full / 4)}, {Policy: "peak", BudgetFull: .25}} {
			less.OnDevice = true
			context := 512
			if !unified {
				context *= seats
			}
			w := open(t, worker.Patched, worker.Config{Model: gopher, Context: context, Ubatch: ubatch, Sequences: seats, Unified: unified, LESS: &less})
			info, err := w.LESS()
			require.NoError(t, err)
			assert.LessOrEqual(t, info.SlotBytes, int64(full/4))
			assert.Greater(t, info.SlotBytes, int64(full/4-6*2*seats*(size+8)), "one more would not fit")
			assert.Positive(t, info.Budget)
		}
	}
}

// Decoding one token after another uses the graph of the one before.
func TestOnDeviceGraphReuse(t *testing.T) {
	c := worker.Config{Model: tiny(t, "llama"), Context: 512, Ubatch: 64, LESS: &worker.LESS{Budget: 64, OnDevice: true}}
	w := open(t, worker.Patched, c)
	byOne.decode(t, w, randomTokens(100, 384))
	info, err := w.Info()
	require.NoError(t, err)
	assert.Greater(t, info.GraphsReused, 90)
}

// LESS on the device of layers on devices: splits are the unmodified runtime's, but for caches that layers of several devices share, and what it computes is
// what it does on the CPU.
func TestDevicesLESSOnDevice(t *testing.T) {
	for _, d := range devices(t) {
		models := deviceModels(t, tinymodels.Supported(), d.matrices())
		models["gopher-5m, by head"] = gopher
		for name, path := range models {
			t.Run(d.Name+", "+name, func(t *testing.T) {
				t.Parallel()
				c := worker.Config{Model: path, Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: 40}}
				switch name {
				case "gopher-5m":
					c.LESS = peak41()
				case "gopher-5m, by head":
					c.LESS = peak41()
					c.LESS.Budget, c.LESS.Slots = 0, byHead
				}
				m, _ := tinymodels.Find(name)
				cpu := openOnDevice(t, c)
				info, err := cpu.Info()
				require.NoError(t, err)
				tokens := randomTokens(300, info.Vocab)
				c.LESS.OnDevice = true
				dev, _ := d.open(t, worker.Patched, c)
				d.sameLESS(t, cpu, dev, tokens, m.Experts, "f16")
				s, err := dev.Splits(1)
				require.NoError(t, err)
				assert.Positive(t, s.Cache)
				c.LESS = nil
				unmodified, _ := d.open(t, worker.Unmodified, c)
				without, err := unmodified.Splits(1)
				require.NoError(t, err)
				if m.Shared > 0 { // the owners, of windows and of the others, are at work again behind their last sharers
					assert.GreaterOrEqual(t, s.Parts, without.Parts, "splits")
					assert.LessOrEqual(t, s.Parts, without.Parts+4, "splits")
				} else {
					assert.Equal(t, without.Parts, s.Parts, "splits")
				}
				t.Logf("%d parts, %d copies, %d bytes a token; unmodified %d, %d, %d", s.Parts, s.Copies, s.Bytes, without.Parts, without.Copies, without.Bytes)
			})
		}
	}
}

// On the device positions are numbers of f32: up to the last one that it counts LESS is what it is in main memory, and the next is refused.
func TestOnDeviceLastPositions(t *testing.T) {
	t.Parallel()
	const end = 1 << 23
	c := worker.Config{Model: tiny(t, "gemma2"), Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: 64}}
	w := open(t, worker.Patched, c)
	on := *c.LESS
	on.OnDevice = true
	c.LESS = &on
	dev := open(t, worker.Patched, c)
	info, err := dev.Info()
	require.NoError(t, err)
	tokens := randomTokens(150, info.Vocab)
	want, err := w.Feed(0, end-len(tokens), tokens, worker.All)
	require.NoError(t, err)
	got, err := dev.Feed(0, end-len(tokens), tokens, worker.All)
	require.NoError(t, err)
	d := compare(t, want, got)
	t.Logf("largest difference %.2g, mean KL %.2g", d.max, d.kl)
	assert.Less(t, d.max, logitBound)
	_, err = dev.Decode(0, end, tokens[:1], worker.Last)
	refusedWith(t, err, "counts 8388608 positions")
}
