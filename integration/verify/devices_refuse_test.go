package verify_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/devicetest"
	"github.com/lesskv/lesskv/integration/verify"
)

// What the devices have no room for is refused before anything is measured, and the rest runs.
func TestDevicesMemory(t *testing.T) {
	d := devicetest.All(t)[0]
	p := small(t)
	p.GPULayers = 99
	p.Methods = []string{verify.LESS}
	d.Servers = min(d.Servers, 2)
	p.DeviceMemory = 1 << 20
	p.RPC = d.RPC(t)
	_, err := verify.Run(t.Context(), p)
	require.ErrorIs(t, err, verify.ErrMemory)
	require.ErrorContains(t, err, "and the bound there is 1 MiB: put fewer layers there")
	p.DeviceMemory = 0
	p.RPC = d.RPC(t)
	_, err = verify.Run(t.Context(), p)
	require.NoError(t, err)
}
