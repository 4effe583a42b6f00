package verify

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// Processes on one device share its memory, those on servers have one each. A LESS cache takes none of it.
func TestFitsDevices(t *testing.T) {
	v := &verifier{model: &weights.Model{Geometry: weights.Geometry{Layers: 1, Heads: 1, HeadsKV: 1}}, vocab: 10}
	v.plan.GPULayers = 99
	v.devices = onDevices{weights: 40 << 20, free: [2]int64{150 << 20, 100 << 20}}
	config := worker.Config{Context: 64, Ubatch: 1}
	g := &group{full: &run{config: config, bytes: 50 << 20}}
	full, less := &run{config: config, bytes: 50 << 20}, &run{config: config, bytes: 50 << 20}
	less.config.LESS = &worker.LESS{Budget: 8}

	assert.True(t, v.fitsDevices(g, []*run{less}))
	assert.False(t, v.fitsDevices(g, []*run{full}))
	assert.False(t, v.fitsDevices(g, []*run{less, less}))
	v.devices.servers = true
	assert.True(t, v.fitsDevices(g, []*run{full}))
	assert.True(t, v.fitsDevices(g, []*run{less, less}))
	assert.False(t, v.fitsDevices(g, []*run{full, full}))
	v.devices.free[0] = 80 << 20
	assert.False(t, v.fitsDevices(g, []*run{less}), "the full cache's server")
	v.plan.GPULayers = 0
	assert.True(t, v.fitsDevices(g, []*run{full, full}))
}
