package verify

import (
	"context"
	"fmt"

	"github.com/lesskv/lesskv/integration/worker"
)

// onDevices is what there is of the devices' memory where layers are put on them.
type onDevices struct {
	weights int64    // which each process has there
	free    [2]int64 // for the full cache's process, and for those beside it
	servers bool     // which have one process each: the two share nothing
}

// probeDevices asks the unmodified runtime for it, on which the layers find room, or do not.
func (v *verifier) probeDevices(ctx context.Context) error {
	if v.plan.GPULayers == 0 {
		return nil
	}
	servers, err := worker.Servers(v.plan.RPC, 2)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	w, err := worker.Start(ctx, v.paths[worker.Unmodified])
	if err != nil {
		return err
	}
	defer w.Close()
	v.devices.servers = v.plan.RPC != ""
	for i, list := range servers {
		v.devices.free[i] = v.plan.DeviceMemory
		if v.devices.free[i] == 0 {
			free, err := w.DeviceMemory(list)
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			v.devices.free[i] = free / 5 * 4
		}
	}
	if _, err := w.Open(worker.Config{Model: v.plan.Model, Context: 64, Batch: 32, Ubatch: 32, GPULayers: v.plan.GPULayers, RPC: servers[0]}); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	s, err := w.Splits(1)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	v.devices.weights = s.Weights
	return nil
}

// device is what one worker takes there, weights among it: an upper bound. A LESS cache is at home.
func (v *verifier) device(r *run) int64 {
	need := v.devices.weights + v.compute(r)
	if r.config.LESS == nil {
		need += r.bytes
	}
	return need
}

// fitsDevices says whether the full cache and some runs beside it find room on the devices at once.
func (v *verifier) fitsDevices(g *group, runs []*run) bool {
	if v.plan.GPULayers == 0 {
		return true
	}
	full, beside := v.device(g.full), int64(0)
	for _, r := range runs {
		beside += v.device(r)
	}
	if v.devices.servers {
		return full <= v.devices.free[0] && beside <= v.devices.free[1]
	}
	return full+beside <= v.devices.free[0]
}
