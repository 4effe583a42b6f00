package lesskv_test

import (
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// Servers of the environment or of the option are refused by a runtime that has no backend for them, where layers are to go there;
// where none are, the log says that they are not used.
func TestServersWithoutTheirBackend(t *testing.T) {
	if lesskv.HasDevices() {
		t.Skip("this runtime was assembled with a backend for devices")
	}
	model, layers := file(t, testdata.Model), llama.SetGPULayers(3)
	_, err := llama.New(model, layers, lesskv.RPC("127.0.0.1:50052"))
	require.ErrorContains(t, err, "this runtime has no RPC backend: assemble it with -backend rpc")

	t.Setenv("LESSKV_RPC", "127.0.0.1:50052")
	_, err = llama.New(model, layers)
	require.ErrorContains(t, err, "this runtime has no RPC backend")
	_, err = llama.New(model, layers, lesskv.RPC("127.0.0.1", "127.0.0.1:50052"))
	require.ErrorContains(t, err, `RPC server "127.0.0.1": want host:port`, "the option goes first")

	lines := captureLog(t)
	open(t)
	assert.Contains(t, lines.String(), "the RPC servers 127.0.0.1:50052 are not used: no layers are to run on devices")
}
