package integration

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/devicetest"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// What apps do, with layers on devices.

var cacheOptions = map[string]llama.ModelOption{
	"off": lesskv.Disable(), "less": lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(41), Adapter: lesskv.NoAdapter}),
	"less on the device": lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(41), Adapter: lesskv.NoAdapter, OnDevice: true}),
}

// options puts a model on the device.
func (d device) options(t *testing.T, cache llama.ModelOption) []llama.ModelOption {
	t.Helper()
	return []llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cache, lesskv.RPC(strings.Split(d.RPC(t), ",")...)}
}

// A server that dies in the middle of a call is an error of that call and of those that still need it. The process lives, another model
// goes on, and the next load works.
func TestDevicesServerDies(t *testing.T) {
	devicetest.NeedServers(t)
	for name, cache := range cacheOptions {
		for which := range 2 {
			testServerDies(t, name, cache, which)
		}
	}
}

// testServerDies has two servers, of which one dies, the first or the second in the order of the layers.
func testServerDies(t *testing.T, name string, cache llama.ModelOption, which int) {
	t.Run(fmt.Sprintf("%s, server %d", name, which), func(t *testing.T) {
		first, second := devicetest.Serve(t, ""), devicetest.Serve(t, "")
		opts := []llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cache}
		on := func(s ...string) *llama.LLama {
			model, err := llama.New(gopher, append(opts, lesskv.RPC(s...))...)
			require.NoError(t, err)
			t.Cleanup(model.Free)
			return model
		}
		order := []string{first.Address, second.Address} // second is who dies
		if which == 0 {
			order[0], order[1] = order[1], order[0]
		}
		dies, stays := on(order...), on(first.Address)
		want := generate(t, stays, code, 20)

		n := 0
		_, err := dies.Predict(code, llama.SetThreads(1), llama.SetTokens(100), llama.IgnoreEOS, llama.SetTokenCallback(func(string) bool {
			if n++; n == 5 {
				second.Kill()
			}
			return true
		}))
		require.ErrorContains(t, err, "RPC server crashed")
		assert.Less(t, n, 100)
		asked(t, dies)
		_, err = dies.Predict(code, llama.SetThreads(1), llama.SetTokens(5))
		require.Error(t, err)
		assert.Equal(t, want, generate(t, stays, code, 20), "the other model's")
		_, err = llama.New(gopher, append(opts, lesskv.RPC(second.Address))...)
		require.ErrorContains(t, err, second.Address)

		devicetest.Serve(t, second.Address)
		assert.Equal(t, want, generate(t, on(second.Address), code, 20), "the next one's")
	})
}

// asked asks a model whose server has died what it holds: the answer or an error, not the end of the process. What the last call did is known.
func asked(t *testing.T, model *llama.LLama) {
	t.Helper()
	_, err := lesskv.LastTimings(model)
	require.NoError(t, err)
	stats, err := lesskv.Stats(model)
	if err != nil {
		require.ErrorIs(t, err, lesskv.ErrFailed)
	} else { // for which nobody had to ask the server
		assert.NotEmpty(t, stats.Model)
	}
}

// An app of its own, tied by patches -app with the backend: it puts its layers on the server that its environment names, and says what the
// same calls say here.
func TestDevicesApp(t *testing.T) {
	devicetest.NeedServers(t)
	build, err := layout.Find(".")
	require.NoError(t, err)
	checkout, err := filepath.Abs("..")
	require.NoError(t, err)
	app := t.TempDir()
	sums, err := os.ReadFile(filepath.Join(checkout, "go.sum"))
	require.NoError(t, err)
	for name, text := range map[string]string{
		"go.sum": string(sums),
		"go.mod": "module app\n\ngo 1.24.0\n\nrequire (\n\t" + pins.GoLlama.Path + " " + pins.GoLlama.Version + "\n\t" + pins.Self + " v0.0.0\n)\n\nreplace " + pins.Self + " => " + checkout + "\n",
		"main.go": `package main

import (
	"fmt"
	"log"
	"os"

	llama "github.com/go-skynet/go-llama.cpp"
	lesskv "github.com/lesskv/lesskv/plugin"
)

func main() {
	model, err := llama.New(os.Args[1], llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(99),
		lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(41), Adapter: lesskv.NoAdapter}))
	if err != nil {
		log.Fatal(err)
	}
	defer model.Free()
	text, err := model.Predict(os.Args[2], llama.SetThreads(1), llama.SetTemperature(0), llama.SetPenalty(1), llama.SetTokens(20), llama.IgnoreEOS)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(text)
}
`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(app, name), []byte(text), 0o644))
	}
	out, err := goTool("..", "run", "./patches", "-app", app, "-build", string(build), "-backend", "cpu,rpc")
	require.NoError(t, err, out)
	assert.Contains(t, out, "uses it")
	program := filepath.Join(app, "program")
	out, err = goTool(app, "build", "-o", program, ".")
	require.NoError(t, err, out)

	says := func(env ...string) string {
		cmd := exec.Command(program, gopher, code)
		cmd.Env = append(os.Environ(), env...)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		require.NoError(t, err, "%s", errs.String())
		return string(out)
	}
	want, err := load(t, gopher, cacheOptions["less"]).Predict(code, llama.SetThreads(1), llama.SetTemperature(0), llama.SetPenalty(1), llama.SetTokens(20), llama.IgnoreEOS)
	require.NoError(t, err)
	assert.Equal(t, want, says("LESSKV_RPC="+devicetest.Serve(t, "").Address))
	refused, err := exec.Command(program, gopher, code).CombinedOutput()
	require.Error(t, err, "layers are asked for, and no server is named")
	assert.Contains(t, string(refused), "LESSKV_RPC")
}

// A server that serves another process answers when that has gone. Until then the load waits for it, and nobody else of this process.
func TestDevicesServerOfAnother(t *testing.T) {
	devicetest.NeedServers(t)
	busy, free := devicetest.Serve(t, ""), devicetest.Serve(t, "")
	other := start(t, worker.Patched)
	_, err := other.Open(worker.Config{Model: gopher, Context: 256, GPULayers: allLayers, RPC: busy.Address})
	require.NoError(t, err)
	opts := []llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cacheOptions["less"]}

	waits := make(chan error, 1)
	go func() {
		model, err := llama.New(gopher, append(opts[:len(opts):len(opts)], lesskv.RPC(busy.Address))...)
		if err == nil {
			model.Free()
		}
		waits <- err
	}()
	serves := make(chan error, 1)
	go func() {
		for range 20 { // the other one waits by then
			model, err := llama.New(gopher, append(opts[:len(opts):len(opts)], lesskv.RPC(free.Address))...)
			if err == nil {
				_, err = model.Predict(code, llama.SetThreads(1), llama.SetTokens(5))
				model.Free()
			}
			if err != nil {
				serves <- err
				return
			}
		}
		serves <- nil
	}()
	select {
	case err := <-serves:
		require.NoError(t, err)
	case <-time.After(2 * time.Minute):
		assert.Fail(t, "a model on a free server waits for the busy one")
	}
	select {
	case err := <-waits:
		assert.Fail(t, "the busy server was not waited for", "%v", err)
	default:
	}
	require.NoError(t, other.CloseModel())
	select {
	case err := <-waits:
		require.NoError(t, err)
	case <-time.After(2 * time.Minute):
		require.Fail(t, "the server that has become free does not answer")
	}
}

// Every other call, too, ends with an error where a server has died, and leaves no part of a file. The server's death is known by then:
// another model that was there has been freed.
func TestDevicesServerDiedBeforeTheCall(t *testing.T) {
	devicetest.NeedServers(t)
	home := load(t, gopher) // on no server
	speculative := func(model, draft *llama.LLama) error {
		_, err := model.SpeculativeSampling(draft, code, llama.SetThreads(1), llama.SetTokens(8), llama.SetNDraft(4))
		return err
	}
	for name, cache := range cacheOptions {
		var saved, fails string // of each call
		for call, do := range map[string]func(*llama.LLama) error{
			"Eval":       func(m *llama.LLama) error { return m.Eval(code, llama.SetThreads(1)) },
			"Embeddings": func(m *llama.LLama) error { _, err := m.Embeddings(code, llama.SetThreads(1)); return err },
			"TokenEmbeddings": func(m *llama.LLama) error {
				_, err := m.TokenEmbeddings([]int{5, 6, 7}, llama.SetThreads(1))
				return err
			},
			"SpeculativeSampling":            func(m *llama.LLama) error { return speculative(m, home) },
			"SpeculativeSampling, its draft": func(m *llama.LLama) error { return speculative(home, m) },
			"SaveState":                      func(m *llama.LLama) error { return m.SaveState(fails) },
			"LoadState":                      func(m *llama.LLama) error { return m.LoadState(saved) },
		} {
			t.Run(name+", "+call, func(t *testing.T) {
				dir := t.TempDir()
				saved, fails = filepath.Join(dir, "saved"), filepath.Join(dir, "fails")
				server := devicetest.Serve(t, "")
				opts := []llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), llama.EnableEmbeddings, cache, lesskv.RPC(server.Address)}
				var models []*llama.LLama
				for range 2 {
					model, err := llama.New(gopher, opts...)
					require.NoError(t, err)
					t.Cleanup(model.Free)
					generate(t, model, code, 20)
					models = append(models, model)
				}
				require.NoError(t, models[0].SaveState(saved))
				server.Kill()
				models[1].Free()
				require.ErrorContains(t, do(models[0]), "ggml-rpc") // crashed, or does not answer
				asked(t, models[0])
				left, err := filepath.Glob(fails + "*")
				require.NoError(t, err)
				assert.Empty(t, left)
				require.Error(t, do(models[0]), "again")
				models[0].Free()

				devicetest.Serve(t, server.Address)
				model, err := llama.New(gopher, opts...)
				require.NoError(t, err)
				t.Cleanup(model.Free)
				require.NoError(t, do(model), "the next one's")
				model.Free()
			})
		}
	}
}

// A server that dies at any point of a load is an error of llama.New.
func TestDevicesServerDiesWhileLoading(t *testing.T) {
	devicetest.NeedServers(t)
	for name, cache := range cacheOptions {
		for _, at := range []string{"using device", "offloaded", "RPC", "constructing llama_context"} {
			t.Run(name+", "+at, func(t *testing.T) {
				first, second := devicetest.Serve(t, ""), devicetest.Serve(t, "")
				opts := []llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cache, lesskv.RPC(first.Address, second.Address)}
				log := captureLog(t, slog.LevelInfo)
				died := false
				log.line = func(line string) {
					if !died && strings.Contains(line, at) {
						died = true
						second.Kill()
					}
				}
				_, err := llama.New(gopher, opts...)
				require.True(t, died, log)
				require.Error(t, err)
				log.line = nil
				devicetest.Serve(t, second.Address)
				model, err := llama.New(gopher, opts...)
				require.NoError(t, err)
				defer model.Free()
				assert.Equal(t, generate(t, load(t, gopher, cache), code, 20), generate(t, model, code, 20))
			})
		}
	}
}

// A state that was saved with layers on devices is read without, and the other way round, and by another model on devices: the text goes
// on as it would have, where both compute the same bits. Of a hybrid the devices hold the recurrent states.
func TestDevicesState(t *testing.T) {
	paths := map[string]string{"gopher-5m": gopher}
	for _, name := range []string{"qwen35", "nemotron_h", "falcon-h1"} {
		paths[name] = tiny(t, name)
	}
	text := strings.Repeat(code+"\n", 6) // LESS evicts some of it
	for _, d := range devices(t) {
		for name, path := range paths {
			for cacheName, cache := range cacheOptions {
				t.Run(d.Name+", "+name+", "+cacheName, func(t *testing.T) {
					on, other, off := load(t, path, d.options(t, cache)...), load(t, path, d.options(t, cache)...), load(t, path, cache)
					for _, way := range []struct {
						from, to *llama.LLama
						rounds   bool
					}{{on, off, d.Rounds()}, {off, on, d.Rounds()}, {on, other, false}} {
						require.NoError(t, way.from.Eval(text, llama.SetThreads(1)))
						file := filepath.Join(t.TempDir(), "state")
						require.NoError(t, way.from.SaveState(file))
						want := generate(t, way.from, text+code, 30)
						require.NoError(t, way.to.LoadState(file))
						got := generate(t, way.to, text+code, 30)
						if !way.rounds {
							assert.Equal(t, want, got)
						}
						timings, err := lesskv.LastTimings(way.to)
						require.NoError(t, err)
						assert.Positive(t, timings.Cached, "tokens of the state")
						assert.Positive(t, timings.Evaluated)
					}
				})
			}
		}
	}
}

// Several models share the devices and compute at the same time, each what it does alone, and one of them can be freed while it serves: its
// call returns what there is.
func TestDevicesSeveralModels(t *testing.T) {
	for _, d := range devices(t) {
		for name, cache := range cacheOptions {
			t.Run(d.Name+" "+name, func(t *testing.T) {
				opts := d.options(t, cache)
				var models []*llama.LLama
				for range 3 {
					model, err := llama.New(gopher, opts...)
					require.NoError(t, err)
					t.Cleanup(model.Free)
					models = append(models, model)
				}
				alone := []llama.ModelOption{cache}
				if d.Rounds() {
					alone = opts
				}
				want := generate(t, load(t, gopher, alone...), code, 60)

				var n atomic.Int64
				started, ended := make(chan bool), make(chan error, 1)
				serve := func(model *llama.LLama) {
					_, err := model.Predict(code, llama.SetThreads(1), llama.SetTokens(100000), llama.IgnoreEOS, llama.SetTokenCallback(func(string) bool {
						if n.Add(1) == 3 {
							close(started)
						}
						return true
					}))
					ended <- err
				}
				end := func() {
					select {
					case err := <-ended:
						require.NoError(t, err, "a call that is interrupted returns what there is")
					case <-time.After(time.Minute):
						require.Fail(t, "the call does not end")
					}
				}
				begin := func(model *llama.LLama) {
					go serve(model)
					select {
					case <-started:
					case err := <-ended:
						require.Fail(t, "the call ended at once", "%v", err)
					}
				}

				begin(models[0])
				models[0].Free()
				before := n.Load()
				end()
				assert.LessOrEqual(t, n.Load(), before+2, "the token that it was at, and not those up to an end of its own")
				_, err := models[0].Predict(code)
				require.ErrorIs(t, err, lesskv.ErrArgument, "it has been freed")

				n.Store(0)
				started = make(chan bool)
				begin(models[1])
				assert.Equal(t, want, generate(t, models[2], code, 60), "beside another")
				lesskv.Interrupt(models[1])
				end()
				assert.Equal(t, want, generate(t, models[1], code, 60))
				assert.Equal(t, want, generate(t, models[2], code, 60))
			})
		}
	}
}

// A device that is not there is an error that says so.
func TestDevicesThatAreNotThere(t *testing.T) {
	for _, d := range devices(t) {
		opts := d.options(t, cacheOptions["less"])
		for want, more := range map[string][]llama.ModelOption{
			"main GPU \"15\": there ": {llama.SetMainGPU("15")},
			"a share for device 15":   {llama.SetTensorSplit("1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1")},
			"host:port":               {lesskv.RPC("127.0.0.1")},
			"127.0.0.1:1":             {lesskv.RPC("127.0.0.1:1")}, // nobody listens
		} {
			if d.Servers == 0 && strings.Contains(want, "0.1:1") {
				continue // may be without the backend
			}
			_, err := llama.New(gopher, append(opts[:len(opts):len(opts)], more...)...)
			require.ErrorContains(t, err, want)
		}
		if d.Servers == 0 || runtime.GOOS != "linux" {
			continue
		}
		descriptors := func() int {
			all, err := os.ReadDir("/proc/self/fd")
			require.NoError(t, err)
			return len(all)
		}
		before := descriptors()
		for range 40 {
			_, err := llama.New(gopher, append(opts[:len(opts):len(opts)], lesskv.RPC("127.0.0.1:1"))...)
			require.Error(t, err)
		}
		assert.Less(t, descriptors(), before+20, "who tries again and again keeps no descriptor")
	}
}
