package integration

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/integration/devicetest"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// leave bounds what a server may take to so many bytes beside what it has mapped; below 0 it is not bounded.
func leave(t *testing.T, s *devicetest.Server, bytes int64) {
	t.Helper()
	limit := uint64(unix.RLIM_INFINITY)
	if bytes >= 0 {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Process.Pid))
		require.NoError(t, err)
		kib, err := strconv.ParseInt(string(regexp.MustCompile(`VmSize:\s+(\d+) kB`).FindSubmatch(status)[1]), 10, 64)
		require.NoError(t, err)
		limit = uint64(kib<<10 + bytes)
	}
	require.NoError(t, unix.Prlimit(s.Process.Pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: limit, Max: unix.RLIM_INFINITY}, nil))
}

// A device whose memory is too small for the weights is an error that says so, and so is one that is too small for the unmodified cache,
// where with LESS, whose cache is no device's, the same context has room. The server stays, and the next load works.
func TestDevicesTooSmall(t *testing.T) {
	switch d := devices(t)[0]; {
	case d.Software:
		t.Skip("its memory is main memory")
	case d.Servers == 0:
		testTooSmall(t)
		return
	}
	const tokens = 64 << 10 // 192 MiB of an f16 cache
	for name, cache := range cacheOptions {
		t.Run(name, func(t *testing.T) {
			server := devicetest.Serve(t, "")
			on := func(context int) (*llama.LLama, error) {
				return llama.New(gopher, llama.SetContext(context), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cache, lesskv.RPC(server.Address))
			}
			want := generate(t, load(t, gopher, cache), code, 20)
			leave(t, server, 2<<20)
			_, err := on(512)
			require.ErrorContains(t, err, "unable to allocate")
			leave(t, server, 96<<20)
			model, err := on(tokens)
			if name == "off" {
				require.ErrorContains(t, err, "failed to allocate buffer for kv cache")
				leave(t, server, -1)
				model, err = on(tokens)
			}
			require.NoError(t, err)
			defer model.Free()
			assert.Equal(t, want, generate(t, model, code, 20))
		})
	}
}

// testTooSmall is the same of this machine's own device, whose memory is as it is, so that the context is what has no room there.
func testTooSmall(t *testing.T) {
	all := []llama.ModelOption{llama.SetGPULayers(allLayers), llama.SetMainGPU("0")}
	log := captureLog(t, slog.LevelInfo)
	load(t, gopher, all...).Free()
	free := regexp.MustCompile(`using device .* - (\d+) MiB free`).FindStringSubmatch(log.String())
	require.NotNil(t, free, log)
	mib, err := strconv.Atoi(free[1])
	require.NoError(t, err)
	all = append(all, llama.SetContext(mib<<10/3*5/4)) // of 3 KiB a token
	_, err = llama.New(gopher, append(all[:len(all):len(all)], llama.EnableF16Memory, lesskv.Disable())...)
	require.ErrorContains(t, err, "failed to allocate buffer for kv cache")
	generate(t, load(t, gopher, append(all, cacheOptions["less"])...), code, 20)
}

// A device that has room for the weights and not for LESS's slots is an error that says so, before anything is computed.
func TestDevicesTooSmallForSlots(t *testing.T) {
	devicetest.NeedServers(t)
	const tokens = 64 << 10
	server := devicetest.Serve(t, "")
	leave(t, server, 96<<20)
	less := lesskv.Config{Budget: lesskv.Tokens(tokens), Adapter: lesskv.NoAdapter, OnDevice: true}
	opts := []llama.ModelOption{llama.SetContext(tokens), llama.EnableF16Memory, llama.SetGPULayers(allLayers), lesskv.RPC(server.Address)}
	_, err := llama.New(gopher, append(opts, lesskv.Enable(less))...)
	require.ErrorIs(t, err, lesskv.ErrFailed)
	require.ErrorContains(t, err, "a budget of 65536 slots takes 0.2 GiB of RPC")
	require.ErrorContains(t, err, "which has not as much")
	less.Budget = lesskv.Tokens(100)
	model, err := llama.New(gopher, append(opts, lesskv.Enable(less))...)
	require.NoError(t, err)
	model.Free()
}

// A connection is one end of a TCP connection, as /proc/net/tcp has it.
type connection struct {
	unread int64 // bytes that have arrived and that nobody has read
	timer  int64 // which runs; keepAlive is one
	left   time.Duration
}

const keepAlive = 2

// connections are those that are open with a server: its ends of them, and the clients'.
func connections(t *testing.T, s *devicetest.Server) (server, client []connection) {
	t.Helper()
	_, port, err := net.SplitHostPort(s.Address)
	require.NoError(t, err)
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	end := fmt.Sprintf(":%04X", number)
	table, err := os.ReadFile("/proc/net/tcp")
	require.NoError(t, err)
	hex := func(s string) int64 {
		n, err := strconv.ParseInt(s, 16, 64)
		require.NoError(t, err)
		return n
	}
	for _, line := range strings.Split(string(table), "\n")[1:] {
		f := strings.Fields(line) // number, local, remote, state, sent:unread, timer:left
		if len(f) < 6 || f[3] != "01" {
			continue // not established
		}
		_, unread, _ := strings.Cut(f[4], ":")
		timer, left, _ := strings.Cut(f[5], ":")
		c := connection{hex(unread), hex(timer), time.Duration(hex(left)) * time.Second / 100}
		switch {
		case strings.HasSuffix(f[1], end):
			server = append(server, c)
		case strings.HasSuffix(f[2], end):
			client = append(client, c)
		}
	}
	return server, client
}

// Both ends of a connection ask whether the other is still there, before half a minute of silence is over: a machine that vanishes closes
// nothing. The system's own time is two hours.
func TestDevicesVanishedPeersAreNoticed(t *testing.T) {
	devicetest.NeedServers(t)
	server := devicetest.Serve(t, "")
	model, err := llama.New(gopher, llama.SetGPULayers(allLayers), cacheOptions["less"], lesskv.RPC(server.Address))
	require.NoError(t, err)
	defer model.Free()
	generate(t, model, code, 5)
	require.Eventually(t, func() bool { // when nothing is on its way any more
		ends, others := connections(t, server)
		return len(ends) == 1 && len(others) == 1 && !slices.ContainsFunc(append(ends, others...), func(c connection) bool {
			return c.timer != keepAlive || c.left > 30*time.Second
		})
	}, 20*time.Second, 10*time.Millisecond, "no such timer runs")
}

// A server that dies while it computes, and the call waits for its answer, is an error of that call. The process lives, another model goes on,
// and the next load works.
func TestDevicesServerDiesWhileItComputes(t *testing.T) {
	devicetest.NeedServers(t)
	prompt := strings.Repeat(code+"\n", 12)
	for name, cache := range cacheOptions {
		t.Run(name, func(t *testing.T) {
			dies, stays := devicetest.Serve(t, ""), devicetest.Serve(t, "")
			on := func(s *devicetest.Server) *llama.LLama {
				model, err := llama.New(gopher, llama.SetContext(512), llama.EnableF16Memory, llama.SetGPULayers(allLayers), cache, lesskv.RPC(s.Address))
				require.NoError(t, err)
				t.Cleanup(model.Free)
				return model
			}
			model, other := on(dies), on(stays)
			want := generate(t, other, code, 20)
			require.NoError(t, dies.Process.Signal(unix.SIGSTOP))
			ended := make(chan error, 1)
			go func() {
				_, err := model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(5))
				ended <- err
			}()
			require.Eventually(t, func() bool {
				ends, _ := connections(t, dies)
				return len(ends) == 1 && ends[0].unread > 0
			}, time.Minute, 10*time.Millisecond, "nothing was sent")
			select {
			case err := <-ended:
				require.Fail(t, "the call did not wait", "%v", err)
			case <-time.After(100 * time.Millisecond):
			}
			dies.Kill()
			select {
			case err := <-ended:
				require.ErrorIs(t, err, lesskv.ErrFailed)
				require.ErrorContains(t, err, "RPC server crashed")
				asked(t, model)
			case <-time.After(time.Minute):
				require.Fail(t, "the call does not end")
			}
			assert.Equal(t, want, generate(t, other, code, 20), "the other model's")
			assert.Equal(t, want, generate(t, on(devicetest.Serve(t, dies.Address)), code, 20), "the next one's")
		})
	}
}
