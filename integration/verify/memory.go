package verify

import (
	"fmt"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
)

// bytesOf is what a LESS cache takes, as its worker says.
func bytesOf(i worker.LESSInfo) Bytes {
	return Bytes{i.SlotBytes, i.StateBytes, i.KernelBytes, i.CacheBytes()}
}

// overhead is what a process takes beside model, cache and computing.
const overhead = 16 << 20

// available is four fifths of the memory that is free for the taking; where the system does not say, 8 GiB.
func available() int64 {
	if free, ok := limits.Memory(); ok {
		return free / 5 * 4
	}
	return 8 << 30
}

// chunk is how many tokens are decoded and compared at a time: whole micro-batches, and not too many logits.
func (v *verifier) chunk(ubatch int) int {
	n := min(max((4<<20)/v.vocab, 32), 256)
	return max(n/ubatch, 1) * ubatch
}

// process is what one worker will take beside the model's file, which all of them map: an upper bound.
func (v *verifier) process(r *run) int64 {
	logits := int64(v.chunk(r.config.Ubatch)) * int64(v.vocab) * 4
	return overhead + r.bytes + 2*logits + v.compute(r)
}

// compute is what the results of a micro-batch's operations take of it.
func (v *verifier) compute(r *run) int64 {
	c := r.config
	seen := int64(c.Context)
	if c.LESS != nil {
		seen = int64(c.LESS.Budget + c.Ubatch)
	}
	scores := 2 * seen * int64(c.Ubatch) * int64(v.model.Max(func(s weights.Shape) int { return s.Heads })) * 4
	return scores + int64(c.Ubatch)*int64(v.vocab+32*v.model.Max(func(s weights.Shape) int { return s.Heads * s.KeyLength }))*4
}

// ours is what this process takes for a batch of so many methods: logits and probabilities of the full cache, now and for
// the next chunk, and the logits of each method.
func (v *verifier) ours(ubatch, methods int) int64 {
	logits := int64(v.chunk(ubatch)) * int64(v.vocab) * 4
	return overhead + 6*logits + int64(methods)*logits
}

// admit refuses what would not fit, before anything runs.
func (v *verifier) admit(groups []*group) error {
	for _, g := range groups {
		for _, r := range g.runs {
			if need := v.info.Bytes + v.process(g.full) + v.process(r) + v.ours(g.ubatch, 1); need > v.plan.Memory {
				return fmt.Errorf("verify: %s beside the full cache takes %s (model %s, full cache %s, this one %s, the rest is computing), and the bound is %s: set a larger one, or a smaller context or micro-batch: %w",
					r.describe(), memory.Size(need), memory.Size(v.info.Bytes), memory.Size(g.full.bytes), memory.Size(r.bytes), memory.Size(v.plan.Memory), ErrMemory)
			}
			if !v.fitsDevices(g, []*run{r}) {
				return fmt.Errorf("verify: on the devices %s takes %s and the full cache %s (weights %s of each, the rest is caches and computing), and the bound there is %s: put fewer layers there, or take a smaller context or micro-batch: %w",
					r.describe(), memory.Size(v.device(r)), memory.Size(v.device(g.full)), memory.Size(v.devices.weights), memory.Size(v.devices.free[0]), ErrMemory)
			}
		}
	}
	for _, context := range v.plan.Peaks {
		c := *groups[0].full
		c.config.Context, c.bytes = context, v.fullBytes[context]
		if need := v.info.Bytes + v.process(&c); need > v.plan.Memory {
			return fmt.Errorf("verify: peak memory at a context of %d takes %s, and the bound is %s: %w", context, memory.Size(need), memory.Size(v.plan.Memory), ErrMemory)
		}
		if need := v.device(&c); v.plan.GPULayers > 0 && need > v.devices.free[0] {
			return fmt.Errorf("verify: peak memory at a context of %d takes %s of the devices', and the bound there is %s: %w", context, memory.Size(need), memory.Size(v.devices.free[0]), ErrMemory)
		}
	}
	return nil
}

// batch returns how many of the runs fit beside the full cache at once: eight at most, since more spare little, and one where the
// layers are on servers.
func (v *verifier) batch(g *group, runs []*run) int {
	need := v.info.Bytes + v.process(g.full)
	n, most := 0, 8
	if v.plan.RPC != "" {
		most = 1
	}
	for ; n < min(len(runs), most); n++ {
		if need += v.process(runs[n]); need+v.ours(g.ubatch, n+1) > v.plan.Memory || !v.fitsDevices(g, runs[:n+1]) {
			break
		}
	}
	return max(n, 1)
}

// check asks the workers what they do take.
func (v *verifier) check(workers []*worker.Worker) error {
	total := v.info.Bytes
	for _, w := range workers {
		m, err := w.Memory()
		if err != nil {
			return err
		}
		if m.Anon < 0 {
			m.Anon = max(m.Resident-v.info.Bytes, 0)
		}
		total += m.Anon
	}
	if total > v.plan.Memory {
		return fmt.Errorf("verify: %d processes take %s, and the bound is %s: %w", len(workers), memory.Size(total), memory.Size(v.plan.Memory), ErrMemory)
	}
	return nil
}
