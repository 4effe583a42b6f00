package integration

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lesskv/lesskv/integration/worker"
)

// Where nothing is evicted quantised slots are the runtime's own quantised cache, whose vectors are rotated before they are
// rounded: much closer to it than it is to an f16 cache, or to itself without the rotation. What is left is what its flash attention
// rounds queries to.
func TestQuantisedSlotsAreTheRuntimes(t *testing.T) {
	for _, types := range [][2]string{{"q8_0", "q8_0"}, {"q4_0", "q8_0"}, {"q4_0", "q4_0"}} {
		t.Run(types[0]+","+types[1], func(t *testing.T) { testQuantisedSlots(t, types[0], types[1]) })
	}
}

func testQuantisedSlots(t *testing.T, keys, values string) {
	const n = 512
	for name, path := range map[string]string{"gopher-5m": gopher, "qwen35": tiny(t, "qwen35")} {
		t.Run(name, func(t *testing.T) {
			w := open(t, worker.Unmodified, worker.Config{Model: path, Context: n})
			asTheRuntimes(t, path, heldOut(t, w, n), keys, values)
		})
	}
}

// asTheRuntimes compares slots that evict nothing with the runtime's quantised cache.
func asTheRuntimes(t *testing.T, path string, tokens []int32, keys, values string) {
	t.Helper()
	n := len(tokens)
	c := worker.Config{Model: path, Context: n, Ubatch: 64, TypeK: keys, TypeV: values, FlashAttention: true}
	want := chatter.decode(t, open(t, worker.Unmodified, c), tokens)
	got := chatter.decode(t, open(t, worker.Patched, worker.Config{Model: path, Context: n, Ubatch: 64, LESS: &worker.LESS{Budget: n, TypeK: keys, TypeV: values}}), tokens)
	f16 := chatter.decode(t, open(t, worker.Unmodified, worker.Config{Model: path, Context: n, Ubatch: 64}), tokens)
	t.Setenv("LLAMA_ATTN_ROT_DISABLE", "1")
	unrotated := chatter.decode(t, open(t, worker.Unmodified, c), tokens)
	apart := compare(t, want, got)
	for name, other := range map[string]*worker.Output{"f16": f16, "itself without the rotation": unrotated} {
		d := compare(t, want, other)
		t.Logf("KL %.2g to the runtime's, which is %.2g from %s", apart.kl, d.kl, name)
		if name == "f16" && keys == "q8_0" {
			continue // from which it is about as far as rounded queries are from others
		}
		assert.Less(t, 2*apart.kl, d.kl, name)
	}
}
