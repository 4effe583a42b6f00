package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/cpu"

	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/worker"
)

// A portable runtime has ggml's CPU backend twice, and LESSKV_LEVEL names the copy, as it does the kernels' inner loops. Each computes what
// the other does up to rounding, whatever weights it arranges for itself, and without LESS both trees use the same one.
func TestPortableLevels(t *testing.T) {
	program, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	if flags := provenance.Runtime(program).Flags; !strings.Contains(flags, " and -march=x86-64-v4") {
		t.Skipf("a runtime with %s has one level: make soak-machines has the portable one", flags)
	}
	if x := cpu.X86; !x.HasAVX512F || !x.HasAVX512BW || !x.HasAVX512CD || !x.HasAVX512DQ || !x.HasAVX512VL || !x.HasAVX512VNNI {
		t.Skip("this processor has no AVX-512 with VNNI")
	}
	// what quantised weights are applied to is rounded to 8 bits, and a step of that is larger than what the copies round otherwise
	for kind, most := range map[string]float64{"F32": 1e-5, "F16": 1e-5, "Q8_0": 1e-3, "Q4_0": 1e-3, "Q4_K_M": 1e-3} {
		t.Run(kind, func(t *testing.T) {
			const n = 512
			model := filepath.Join(t.TempDir(), "model.gguf")
			require.NoError(t, start(t, worker.Unmodified).Quantize(gopher, model, kind, 1))
			var plain, ours [2]*worker.Output
			for i, level := range []string{"x86-64-v3", "x86-64-v4"} {
				t.Setenv("LESSKV_LEVEL", level)
				c := worker.Config{Model: model, Context: n, Ubatch: 64}
				w := open(t, worker.Unmodified, c)
				tokens := heldOut(t, w, n)
				plain[i] = chatter.decode(t, w, tokens)
				sameBits(t, plain[i], chatter.decode(t, open(t, worker.Patched, c), tokens))
				c.LESS = &worker.LESS{Budget: n} // which evicts nothing
				w = open(t, worker.Patched, c)
				ours[i] = chatter.decode(t, w, tokens)
				info, err := w.LESS()
				require.NoError(t, err)
				assert.Equal(t, level, info.Level)
				assert.Equal(t, level, strings.TrimSuffix(info.GGMLLevel, " with VNNI"))
			}
			assert.Positive(t, compare(t, plain[0], plain[1]).max, "they are two")
			for name, out := range map[string][2]*worker.Output{"without LESS": plain, "with LESS": ours} {
				d := compare(t, out[0], out[1])
				t.Logf("%s: logits differ by %.2g at most, KL %.2g, %d of %d rows have a clear choice", name, d.max, d.kl, d.clearTop, d.rows)
				assert.Less(t, d.kl, most, name)
				assert.Zero(t, d.flips, name)
			}
		})
	}
}
