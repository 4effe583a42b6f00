//go:build cgo

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/devicetest"
)

// onDevices sets LESSKV_RPC to as many servers, unless the devices are this machine's.
func onDevices(t *testing.T, servers int) {
	t.Helper()
	if devicetest.All(t)[0].Servers > 0 {
		t.Setenv("LESSKV_RPC", devicetest.Servers(t, servers))
	}
}

func TestDevicesRun(t *testing.T) {
	onDevices(t, 2)
	status, want, stderr := greedy("", "-n40", "func main() {")
	require.Equal(t, exitOK, status, stderr)
	if os.Getenv("LESSKV_RPC") != "" {
		assert.Contains(t, stderr, "LESSKV_RPC are not used")
	}
	status, text, stderr := greedy("", "-n40", "-v", "--gpu-layers=3", "func main() {")
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, stderr, "offloaded 3/7 layers to GPU")
	if os.Getenv("LESSKV_RPC") != "" {
		assert.Equal(t, want, text)
	}
}

// Where there is no driver, and no server is named, layers on a device are an error, and are not computed on the CPU instead.
func TestDevicesRunWithoutDevice(t *testing.T) {
	want := "look for the GPU's driver"
	if devicetest.All(t)[0].Servers > 0 {
		want = "name servers (LESSKV_RPC=host:port)"
	}
	cmd := exec.Command(os.Args[0], "run", "-n4", "--gpu-layers=99", "func main() {")
	cmd.Env = append(os.Environ(), playCommand+"=1", "CUDA_VISIBLE_DEVICES=-1", "VK_DRIVER_FILES=/no/driver.json", "VK_LOADER_DRIVERS_SELECT=")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "the runtime finds none: ")
	assert.Contains(t, string(out), want)
}

// Each method has a process and servers of its own.
func TestDevicesBench(t *testing.T) {
	onDevices(t, 2)
	file := filepath.Join(t.TempDir(), "result.json")
	status, out, stderr := command("", "bench", "-q", "-t1", "-r1", "-c", "0", "--method", "f16,less", "--gpu-layers=99", "-o", file, "--dir", t.TempDir(), "gopher-5m")
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "99 layers on a device")
	result, err := bench.Read(file)
	require.NoError(t, err)
	assert.Equal(t, 99, result.GPU)

	if os.Getenv("LESSKV_RPC") == "" {
		return
	}
	status, _, stderr = command("", "bench", "-q", "-c", "0", "--method", "f16,q8_0-fa,less", "--gpu-layers=99", "gopher-5m")
	assert.Equal(t, exitUsage, status, stderr)
	assert.Contains(t, stderr, "2 RPC servers for 3 processes")
}

func TestDevicesVerify(t *testing.T) {
	onDevices(t, 2)
	dir, flags := verifyFiles(t)
	flags = append(flags, "--gpu-layers=99", "-q")
	status, _, stderr := command("", append(flags, "--require", "kl <= 9")...) // the build's own checks among them
	require.Equal(t, exitOK, status, stderr)
	data, err := os.ReadFile(filepath.Join(dir, "model.verify", "report.json"))
	require.NoError(t, err)
	var report struct {
		GPU int `json:"gpu_layers"`
	}
	require.NoError(t, json.Unmarshal(data, &report))
	assert.Equal(t, 99, report.GPU)

	if os.Getenv("LESSKV_RPC") == "" {
		return
	}
	t.Setenv("LESSKV_RPC", "127.0.0.1:1")
	status, _, stderr = command("", flags...)
	assert.Equal(t, exitUsage, status, stderr)
	assert.Contains(t, stderr, "1 RPC servers for 2 processes")
}
