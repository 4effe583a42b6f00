package integration

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lesskv "github.com/lesskv/lesskv/plugin"
)

// What apps do, with layers on devices.

var cacheOptions = map[string]llama.ModelOption{
	"off": lesskv.Disable(), "less": lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(41), Adapter: lesskv.NoAdapter}),
}

// options puts a model on the device.
func (d device) options(t *testing.T, cache llama.ModelOption) []llama.ModelOption {
	t.Helper()
	return []llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cache, lesskv.RPC(strings.Split(d.rpc(t), ",")...)}
}

// needServers skips a test that ends servers where the devices are none.
func needServers(t *testing.T) []device {
	t.Helper()
	all := devices(t)
	if all[0].servers == 0 {
		t.Skip("these devices are no servers")
	}
	return all
}

// A server that dies in the middle of a call is an error of that call and of those that still need it. The process lives, another model
// goes on, and the next load works.
func TestDevicesServerDies(t *testing.T) {
	needServers(t)
	for name, cache := range cacheOptions {
		t.Run(name, func(t *testing.T) {
			first, second := serve(t, ""), serve(t, "")
			opts := []llama.ModelOption{llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cache}
			on := func(s ...string) *llama.LLama {
				model, err := llama.New(gopher, append(opts, lesskv.RPC(s...))...)
				require.NoError(t, err)
				t.Cleanup(model.Free)
				return model
			}
			dies, stays := on(first.address, second.address), on(first.address)
			want := generate(t, stays, code, 20)

			n := 0
			_, err := dies.Predict(code, llama.SetThreads(1), llama.SetTokens(100), llama.IgnoreEOS, llama.SetTokenCallback(func(string) bool {
				if n++; n == 5 {
					second.kill()
				}
				return true
			}))
			require.ErrorContains(t, err, "RPC server crashed")
			assert.Less(t, n, 100)
			_, err = dies.Predict(code, llama.SetThreads(1), llama.SetTokens(5))
			require.Error(t, err)
			assert.Equal(t, want, generate(t, stays, code, 20), "the other model's")
			_, err = llama.New(gopher, append(opts, lesskv.RPC(second.address))...)
			require.ErrorContains(t, err, second.address)

			serve(t, second.address)
			assert.Equal(t, want, generate(t, on(second.address), code, 20), "the next one's")
		})
	}
}

// A state that was saved with layers on devices is read without, and the other way round: the text goes on as it would have.
func TestDevicesState(t *testing.T) {
	for _, d := range devices(t) {
		for name, cache := range cacheOptions {
			t.Run(d.name+", "+name, func(t *testing.T) {
				on, err := llama.New(gopher, d.options(t, cache)...)
				require.NoError(t, err)
				t.Cleanup(on.Free)
				off := load(t, gopher, cache)
				for from, to := range map[*llama.LLama]*llama.LLama{on: off, off: on} {
					text := code + strings.Join(generate(t, from, code, 60), "")
					file := filepath.Join(t.TempDir(), "state")
					require.NoError(t, from.SaveState(file))
					want := generate(t, from, text, 10)
					require.NoError(t, to.LoadState(file))
					assert.Equal(t, want, generate(t, to, text, 10))
				}
			})
		}
	}
}

// Several models share the devices and compute at the same time, each what it does alone, and one of them can be freed while it serves.
func TestDevicesSeveralModels(t *testing.T) {
	for _, d := range devices(t) {
		for name, cache := range cacheOptions {
			t.Run(d.name+" "+name, func(t *testing.T) {
				opts := d.options(t, cache)
				var models []*llama.LLama
				for range 3 {
					model, err := llama.New(gopher, opts...)
					require.NoError(t, err)
					t.Cleanup(model.Free)
					models = append(models, model)
				}
				want := generate(t, load(t, gopher, cache), code, 60)
				started, done := make(chan bool), make(chan error, 1)
				go func() {
					n := 0
					_, err := models[0].Predict(code, llama.SetThreads(1), llama.SetTokens(100000), llama.IgnoreEOS, llama.SetTokenCallback(func(string) bool {
						if n++; n == 3 {
							close(started)
						}
						return true
					}))
					done <- err
				}()
				select {
				case <-started:
				case err := <-done:
					require.Fail(t, "the call ended at once", "%v", err)
				}
				assert.Equal(t, want, generate(t, models[1], code, 60), "beside another")
				models[0].Free()
				select {
				case err := <-done:
					if err != nil {
						t.Log(err) // interrupted, or at the end of the context before
					}
				case <-time.After(time.Minute):
					require.Fail(t, "Free does not end the call")
				}
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
			if d.servers == 0 && strings.Contains(want, "0.1:1") {
				continue // may be without the backend
			}
			_, err := llama.New(gopher, append(opts[:len(opts):len(opts)], more...)...)
			require.ErrorContains(t, err, want)
		}
		if d.servers == 0 || runtime.GOOS != "linux" {
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
