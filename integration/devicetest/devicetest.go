// Package devicetest is for tests with layers on devices (make test-devices). LESSKV_TEST_DEVICES says which: rpc, servers on this
// machine's loopback, which are processes of their own that take part in everything but speed; local, what this machine has (CUDA,
// Metal, Vulkan); software, likewise, of a driver that computes on the CPU and in main memory (Mesa's for Vulkan); or blas, OpenBLAS beside
// the CPU's own products, which is no device that layers can be put on.
package devicetest

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
)

// A Device is where a test's layers go: to how many servers, or (0) to this machine's own, which may be one in software.
type Device struct {
	Name     string
	Servers  int
	Software bool
}

// Rounds says that the device computes other bits than this machine's CPU: a GPU does, and a server of these tests is a CPU.
func (d Device) Rounds() bool { return d.Servers == 0 }

// Float32 are the variables of the environment with which Vulkan multiplies f32 as such: neither in half precision nor by matrix cores, whose
// factors are f16.
var Float32 = []string{"GGML_VK_DISABLE_F16", "GGML_VK_DISABLE_COOPMAT", "GGML_VK_DISABLE_COOPMAT2"}

// All returns what LESSKV_TEST_DEVICES asks for. Without it the test is skipped.
func All(t testing.TB) []Device {
	t.Helper()
	switch kind := os.Getenv("LESSKV_TEST_DEVICES"); kind {
	case "", "blas":
		t.Skip("no devices: LESSKV_TEST_DEVICES=" + kind + "; make test-devices")
	case "rpc":
		return []Device{{Name: "two servers", Servers: 2}, {Name: "three servers", Servers: 3}}
	case "local", "software":
		// CUDA multiplies f32 as TF32, and Vulkan as f16, both of 10 bits, unless they are told not to, and the unmodified attention with it.
		t.Setenv("NVIDIA_TF32_OVERRIDE", "0")
		for _, name := range Float32 {
			t.Setenv(name, "1")
		}
		// Layers that are the CPU's are computed there alone. A prompt's products of 32 tokens or more would be the device's.
		t.Setenv("GGML_OP_OFFLOAD_MIN_BATCH", "1000000")
		return []Device{{Name: "this machine's", Software: kind == "software"}}
	default:
		require.Fail(t, "LESSKV_TEST_DEVICES="+kind+": want rpc, local, software or blas")
	}
	return nil
}

// NeedServers skips a test of servers where the devices are none.
func NeedServers(t testing.TB) {
	t.Helper()
	if All(t)[0].Servers == 0 {
		t.Skip("these devices are no servers")
	}
}

// RPC starts the device's servers and returns their addresses, with commas between them. A server has one client at a time: each process
// gets its own.
func (d Device) RPC(t testing.TB) string {
	t.Helper()
	return Servers(t, d.Servers)
}

// Servers starts so many servers and returns their addresses, with commas between them.
func Servers(t testing.TB, n int) string {
	t.Helper()
	var list []string
	for range n {
		list = append(list, Serve(t, "").Address)
	}
	return strings.Join(list, ",")
}

// A Server is a process that serves the CPU as a device.
type Server struct {
	*exec.Cmd
	Address string
}

// given are the ports that this process has had from free. The system may name one again before the server that asked for it listens there:
// two tests then had one server, and the first that ended took it from the other.
var given sync.Map

// free returns an address of this machine at which nothing listens, another one each time.
func free(t testing.TB) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		address := l.Addr().String()
		require.NoError(t, l.Close())
		if _, again := given.LoadOrStore(address, true); !again {
			return address
		}
	}
}

// Serve starts llama.cpp's RPC server, at a free port or at the address of one that is gone, until the test ends.
func Serve(t testing.TB, address string) *Server {
	t.Helper()
	build, err := layout.Find(".")
	require.NoError(t, err)
	if address == "" {
		address = free(t)
	}
	host, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	s := &Server{exec.Command(build.RPCServer(), "-H", host, "-p", port, "-t", "1"), address}
	require.NoError(t, s.Start())
	t.Cleanup(s.Kill)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close() // it goes on to the next
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond, "the server does not listen")
	return s
}

// Kill ends the server as a crash would.
func (s *Server) Kill() {
	s.Process.Kill()
	s.Wait()
}
