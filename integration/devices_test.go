package integration

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/devicetest"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights/gguf"
)

// meanKLOnGPU bounds the mean KL of a row, in nats, where a GPU computes: with nothing evicted from the unmodified runtime on it, and with
// evictions from LESS on the CPU. (Logits: logitBoundF16.)
const meanKLOnGPU = 1e-4

// allLayers is more than any model here has.
const allLayers = 99

// A device is where a test's layers go.
type device struct{ devicetest.Device }

// devices returns what LESSKV_TEST_DEVICES asks for.
func devices(t *testing.T) (all []device) {
	t.Helper()
	for _, d := range devicetest.All(t) {
		all = append(all, device{d})
	}
	return all
}

// open opens a model with all layers on the device, or as many as c says.
func (d device) open(t *testing.T, tree worker.Tree, c worker.Config) (*worker.Worker, worker.Info) {
	t.Helper()
	if c.GPULayers == 0 {
		c.GPULayers = allLayers
	}
	c.RPC = d.RPC(t)
	w := start(t, tree)
	info, err := w.Open(c)
	require.NoError(t, err)
	return w, info
}

// matrices is the type of those where what a device computes is compared with what the CPU does. What it multiplies with f16 the CPU rounds to
// f16, and a GPU need not: then it has f32.
func (d device) matrices() gguf.Type {
	if d.Rounds() {
		return gguf.F32
	}
	return gguf.F16
}

// deviceModels are all that a decoder can run, by name, the random ones with matrices of a type, gopher-5m among them.
func deviceModels(t *testing.T, models []tinymodels.Model, matrices gguf.Type) map[string]string {
	t.Helper()
	paths := map[string]string{"gopher-5m": gopher}
	for _, m := range models {
		if !m.NoDecode && m.Name != "t5" {
			paths[m.Name] = write(t, m, matrices)
		}
	}
	return paths
}

// With LESS off the patched runtime computes on devices what the unmodified one computes there, bit for bit.
func TestDevicesOff(t *testing.T) {
	for _, d := range devices(t) {
		for name, path := range deviceModels(t, tinymodels.All(), gguf.F16) {
			t.Run(d.Name+", "+name, func(t *testing.T) {
				t.Parallel()
				var outputs [2]*worker.Output
				for tree := range worker.Unmodified + 1 {
					w, info := d.open(t, tree, worker.Config{Model: path, Context: 256, Ubatch: 64})
					outputs[tree] = chatter.decode(t, w, randomTokens(240, info.Vocab))
					s, err := w.Splits(1)
					require.NoError(t, err)
					require.Positive(t, s.Weights, "nothing is on a device")
				}
				sameBits(t, outputs[worker.Unmodified], outputs[worker.Patched])
			})
		}
	}
}

// Where nothing is evicted, LESS beside offloaded layers is the unmodified runtime's attention on the same devices to rounding, within the
// bounds of TestNothingEvictedIsExact. A GPU's own attention rounds as it likes, so that another expert can be chosen.
func TestDevicesNothingEvictedIsExact(t *testing.T) {
	const tokens = 240
	for _, d := range devices(t) {
		for name, path := range deviceModels(t, tinymodels.Supported(), gguf.F32) {
			t.Run(d.Name+", "+name, func(t *testing.T) {
				t.Parallel()
				typ, most := "f32", 1e-3
				if name == "gopher-5m" { // whose matrices are f16, to which what they are applied to is rounded
					typ, most = "f16", logitBoundF16
				}
				c := worker.Config{Model: path, Context: 256, Ubatch: 64, TypeK: typ, TypeV: typ}
				w, info := d.open(t, worker.Unmodified, c)
				text := randomTokens(tokens, info.Vocab)
				c.LESS = &worker.LESS{Budget: 256, TypeK: typ, TypeV: typ}
				less, _ := d.open(t, worker.Patched, c)
				if d.Rounds() {
					m, _ := tinymodels.Find(name)
					n := sameButForTies(t, w, less, text, m.Experts, logitBoundF16, meanKLOnGPU)
					assert.GreaterOrEqual(t, n, leastCompared(m.Experts))
					return
				}
				got := compare(t, chatter.decode(t, w, text), chatter.decode(t, less, text))
				t.Logf("largest difference %.2g, mean KL %.2g", got.max, got.kl)
				assert.Less(t, got.max, most)
				assert.Less(t, got.kl, 1e-5)
				assert.Zero(t, got.flips)
			})
		}
	}
}

// sameLESS decodes tokens with LESS on the CPU and with layers on the device, with slots of a type, and compares what they compute and what each
// layer kept and folded.
func (d device) sameLESS(t *testing.T, cpu, dev *worker.Worker, tokens []int32, experts bool, slots string) {
	t.Helper()
	s, err := cpu.Splits(32)
	require.NoError(t, err)
	require.Equal(t, 1, s.Parts, "a device computes a prompt's products for it")
	if d.Rounds() {
		bound, kl := logitBoundF16, meanKLOnGPU
		if slots == "q8_0" { // rounding moves numbers to the next step of q8_0, a 127th of the largest: 0.16 were seen
			bound, kl = 2*bound, 4*kl // which grows with the square
		}
		n := sameButForTies(t, cpu, dev, tokens, experts, bound, kl)
		assert.GreaterOrEqual(t, n, leastCompared(experts))
	} else {
		got := compare(t, chatter.decode(t, cpu, tokens), chatter.decode(t, dev, tokens))
		t.Logf("largest difference %.2g, mean KL %.2g", got.max, got.kl)
		assert.Less(t, got.max, logitBound)
	}
	layers, err := cpu.Layers(0)
	require.NoError(t, err)
	on, err := dev.Layers(0)
	require.NoError(t, err)
	assert.Equal(t, layers, on)
}

// LESS beside offloaded layers evicts and computes what it does with all of them on the CPU, and its cache is in main memory.
func TestDevicesLESS(t *testing.T) {
	for _, d := range devices(t) {
		for name, path := range deviceModels(t, tinymodels.Supported(), d.matrices()) {
			for _, typ := range []string{"f16", "q8_0"} {
				if typ == "q8_0" && name != "gopher-5m" {
					continue // heads of 64
				}
				t.Run(d.Name+", "+name+", "+typ, func(t *testing.T) {
					t.Parallel()
					c := worker.Config{Model: path, Context: 512, Ubatch: 32, LESS: &worker.LESS{Budget: 40, TypeK: typ, TypeV: typ}}
					if name == "gopher-5m" {
						c.LESS = peak41()
						c.LESS.TypeK, c.LESS.TypeV = typ, typ
					}
					w := open(t, worker.Patched, c)
					info, err := w.Info()
					require.NoError(t, err)
					tokens := randomTokens(300, info.Vocab)
					dev, _ := d.open(t, worker.Patched, c)
					m, _ := tinymodels.Find(name)
					d.sameLESS(t, w, dev, tokens, m.Experts, typ)
					s, err := dev.Splits(1)
					require.NoError(t, err)
					assert.Positive(t, s.Weights)
					less, err := dev.LESS()
					require.NoError(t, err)
					assert.Equal(t, less.RecurrentBytes, s.Cache, "bytes of the cache on the device: the recurrent states")
					t.Logf("%d parts, %d copies, %d bytes a token", s.Parts, s.Copies, s.Bytes)
				})
			}
		}
	}
}

// With some layers on devices and some not it is the same: off, the unmodified runtime's bits; with LESS, what it computes on the CPU.
func TestDevicesSomeLayers(t *testing.T) {
	for _, d := range devices(t) {
		t.Run(d.Name, func(t *testing.T) {
			var weights [2]int64
			cpu := open(t, worker.Patched, worker.Config{Model: gopher, Context: 512, Ubatch: 32, LESS: peak41()})
			t.Setenv("GGML_OP_OFFLOAD_MIN_BATCH", "32") // as it is in apps: for the CPU's layers, too, the device computes a prompt's products
			for i, layers := range []int{3, allLayers} {
				c := worker.Config{Model: gopher, Context: 512, Ubatch: 32, GPULayers: layers}
				w, info := d.open(t, worker.Unmodified, c)
				tokens := randomTokens(300, info.Vocab)
				unmodified := chatter.decode(t, w, tokens)
				w, _ = d.open(t, worker.Patched, c)
				sameBits(t, unmodified, chatter.decode(t, w, tokens))

				c.LESS = peak41()
				dev, _ := d.open(t, worker.Patched, c)
				s, err := dev.Splits(1)
				require.NoError(t, err)
				weights[i] = s.Weights
				assert.Zero(t, s.Cache)
				require.NoError(t, cpu.Clear())
				d.sameLESS(t, cpu, dev, tokens, false, "f16")
			}
			assert.Positive(t, weights[0])
			assert.Less(t, weights[0], weights[1])
		})
	}
}

// Where there is no device, layers on one are refused, whatever the runtime was built for.
func TestNoDevice(t *testing.T) {
	if kind := os.Getenv("LESSKV_TEST_DEVICES"); kind == "local" || kind == "software" {
		t.Skip("there is one")
	}
	for tree := range worker.Unmodified + 1 {
		_, err := start(t, tree).Open(worker.Config{Model: gopher, GPULayers: 1})
		require.ErrorContains(t, err, "gpu_layers=1: there is no device for them")
	}
}
