package integration

import (
	"bytes"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/devicetest"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// A logged is llama.cpp's log of a test, each line of which it also hands to line, where that is set.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
	line func(string)
}

func (l *logged) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.line != nil {
		l.line(string(line))
	}
	return l.text.Write(line)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// captureLog catches the log from a level on until the test ends. The test has no parallel ones beside it.
func captureLog(t *testing.T, level slog.Level) *logged {
	l := &logged{}
	lesskv.SetLogOutput(l)
	lesskv.SetLogLevel(level)
	t.Cleanup(func() {
		lesskv.SetLogOutput(nil)
		lesskv.SetLogLevel(slog.LevelError)
	})
	return l
}

// A placement is where a model of some layers lies: on which server each of them, and behind them the output, as the number of the
// server (-1: the CPU), and the MiB of weights that each server holds.
type placement struct {
	layers  []int
	weights []float64
}

// placed loads gopher-5m and reads off the log where it lies.
func placed(t *testing.T, servers []string, opts ...llama.ModelOption) (*llama.LLama, placement) {
	t.Helper()
	log := captureLog(t, slog.LevelDebug)
	model := load(t, gopher, opts...)
	p := placement{weights: make([]float64, len(servers))}
	server := map[string]int{"CPU": -1} // by the device's name
	for _, m := range regexp.MustCompile(`using device (\S+) \(([^)]*)\)`).FindAllStringSubmatch(log.String(), -1) {
		server[m[1]] = slices.Index(servers, m[2])
	}
	for _, m := range regexp.MustCompile(`layer +\d+ assigned to device ([^,]+),`).FindAllStringSubmatch(log.String(), -1) {
		i, known := server[m[1]]
		require.True(t, known, m[0])
		p.layers = append(p.layers, i)
	}
	for _, m := range regexp.MustCompile(`RPC\d+\[(\S+)\] model buffer size = +([0-9.]+) MiB`).FindAllStringSubmatch(log.String(), -1) {
		mib, err := strconv.ParseFloat(m[2], 64)
		require.NoError(t, err)
		p.weights[slices.Index(servers, m[1])] += mib
	}
	return model, p
}

// Layers go where the options say: the last n, by shares, or all of them to one device. The text is that of a model on the CPU.
func TestDevicesPlacement(t *testing.T) {
	devicetest.NeedServers(t)
	const none, cpu = 0, -1
	all := llama.SetGPULayers(allLayers)
	for name, test := range map[string]struct {
		opts   []llama.ModelOption
		layers []int // of the six, and of the output
	}{
		"a share of 0":         {[]llama.ModelOption{all, llama.SetTensorSplit("3,1,0")}, []int{0, 0, 0, 0, 0, 0, 1}},
		"a share of 0 between": {[]llama.ModelOption{all, llama.SetTensorSplit("1/0/1")}, []int{0, 0, 0, 0, 2, 2, 2}},
		"a main GPU":           {[]llama.ModelOption{all, llama.SetMainGPU("1")}, []int{1, 1, 1, 1, 1, 1, 1}},
		"both":                 {[]llama.ModelOption{all, llama.SetMainGPU("1"), llama.SetTensorSplit("1,0,1")}, []int{0, 0, 0, 0, 2, 2, 2}},
		"three":                {[]llama.ModelOption{llama.SetGPULayers(3), llama.SetTensorSplit("1,1,0")}, []int{cpu, cpu, cpu, cpu, 0, 0, 1}},
		"the output":           {[]llama.ModelOption{llama.SetGPULayers(1), llama.SetMainGPU("2")}, []int{cpu, cpu, cpu, cpu, cpu, cpu, 2}},
	} {
		for cacheName, cache := range cacheOptions {
			t.Run(name+", "+cacheName, func(t *testing.T) {
				servers := strings.Split(devicetest.Servers(t, 3), ",")
				model, p := placed(t, servers, append(test.opts[:len(test.opts):len(test.opts)], cache, lesskv.RPC(servers...))...)
				assert.Equal(t, test.layers, p.layers)
				for i, mib := range p.weights {
					if n := count(test.layers, i); n == none {
						assert.Zero(t, mib, "server %d", i)
					} else { // of 1.3 MiB a layer, and 2 of the output
						assert.InDelta(t, 1.3*float64(n), mib, .8, "server %d", i)
					}
				}
				assert.Equal(t, generate(t, load(t, gopher, cache), code, 60), generate(t, model, code, 60))
			})
		}
	}
}

func count(list []int, x int) (n int) {
	for _, y := range list {
		if y == x {
			n++
		}
	}
	return n
}

// LESSKV_RPC names the servers where no option does. Without layers for them they are not used, which the log says; without servers,
// in a runtime that has no other devices, layers on devices are refused.
func TestDevicesOfTheEnvironment(t *testing.T) {
	devicetest.NeedServers(t)
	all := llama.SetGPULayers(allLayers)
	_, err := llama.New(gopher, all)
	require.ErrorContains(t, err, "name servers (LESSKV_RPC=host:port)")
	require.ErrorIs(t, err, lesskv.ErrMissing)

	list := devicetest.Servers(t, 2)
	servers := strings.Split(list, ",")
	t.Setenv("LESSKV_RPC", list)
	model, p := placed(t, servers, all, llama.SetTensorSplit("1,1"), cacheOptions["less"])
	assert.Equal(t, []int{0, 0, 0, 0, 1, 1, 1}, p.layers)
	model.Free()
	log := captureLog(t, slog.LevelWarn)
	load(t, gopher)
	assert.Contains(t, log.String(), "the RPC servers "+list+" are not used")

	t.Setenv("LESSKV_RPC", "127.0.0.1:1") // nobody listens
	_, err = llama.New(gopher, all)
	require.ErrorContains(t, err, "127.0.0.1:1")
	_, p = placed(t, servers, all, llama.SetMainGPU("1"), lesskv.RPC(servers...))
	assert.Equal(t, []int{1, 1, 1, 1, 1, 1, 1}, p.layers, "the option goes first")
}
