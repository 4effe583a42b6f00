package lesskv_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// Whether the model's file is mapped, and whether it is locked, as the kernel has it.
func TestMapAndLock(t *testing.T) {
	path := copied(t, map[string]string{"mapped.gguf": testdata.Model}) + "/mapped.gguf"
	look := func(opts ...llama.ModelOption) (mapped, locked bool) {
		model, err := llama.New(path, opts...)
		require.NoError(t, err)
		defer model.Free()
		maps, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		status, err := os.ReadFile("/proc/self/status")
		require.NoError(t, err)
		_, locks, _ := strings.Cut(string(status), "VmLck:")
		locks, _, _ = strings.Cut(locks, "kB")
		return strings.Contains(string(maps), path), strings.TrimSpace(locks) != "0"
	}
	mapped, locked := look()
	assert.True(t, mapped, "as upstream has it")
	assert.False(t, locked)
	mapped, _ = look(llama.SetMMap(false))
	assert.False(t, mapped)
	mapped, locked = look(llama.EnableMLock)
	assert.True(t, mapped)
	if !locked {
		t.Skip("this system locks no memory for us: llama.cpp warns and goes on")
	}
}

// LoadState takes the memory of what it reads once beside what is there, at its peak: with LESS a state is taken whole or not at all, and
// nothing is kept for the case that it fails.
func TestLoadStatePeak(t *testing.T) {
	const slots = 4096
	model := open(t, llama.SetContext(2*slots), lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(slots), Adapter: lesskv.NoAdapter, Keys: lesskv.F32, Values: lesskv.F32}))
	text, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	require.NoError(t, model.Eval(string(text[:10000]), llama.SetThreads(1), llama.SetBatch(512)))
	path := t.TempDir() + "/state"
	require.NoError(t, model.SaveState(path))
	stat, err := os.Stat(path)
	require.NoError(t, err)
	require.Greater(t, stat.Size(), int64(8<<20), "large beside what else comes and goes")
	require.NoError(t, model.LoadState(path)) // what is made once

	grown, err := fuzztest.Peak(func() { require.NoError(t, model.LoadState(path)) })
	if err != nil {
		t.Skip(err)
	}
	t.Logf("a state of %d KiB, the peak grew by %d", stat.Size()>>10, grown>>10)
	assert.Less(t, grown, stat.Size()*5/4)
}

// A checkpoint is restored into the place of the cache and not beside it, and a new one takes the place of the oldest.
func TestCheckpointPeak(t *testing.T) {
	if !alone(t) {
		return
	}
	const slots = 4096
	model := open(t, llama.SetContext(2*slots), lesskv.Enable(lesskv.Config{
		Budget: lesskv.Tokens(slots), Adapter: lesskv.NoAdapter, Keys: lesskv.F32, Values: lesskv.F32, Checkpoints: 1}))
	data, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	text := string(data[:10000])
	evaluated := func() int {
		require.NoError(t, model.Eval(text, llama.SetThreads(1), llama.SetBatch(512)))
		return timings(t, model).Evaluated
	}
	require.Positive(t, evaluated())
	s := stats(t, model)
	require.Greater(t, s.SlotBytes, uint64(8<<20), "large beside what else comes and goes")
	assert.InEpsilon(t, s.SlotBytes, s.CheckpointBytes, 0.25)
	require.Zero(t, evaluated()) // what is made once

	grown, err := fuzztest.Peak(func() {
		for range 5 {
			require.Zero(t, evaluated())
			text += "\nx"
			require.Positive(t, evaluated()) // another copy, in the place of the last
		}
	})
	if err != nil {
		t.Skip(err)
	}
	t.Logf("a cache of %d KiB, the peak grew by %d", s.SlotBytes>>10, grown>>10)
	assert.Less(t, grown, int64(s.SlotBytes/2))
}

// alone runs a test again in a process of its own, whose heap no other test has left pieces of, and reports whether this is that one.
func alone(t *testing.T) bool {
	t.Helper()
	const child = "LESSKV_TEST_ALONE"
	if os.Getenv(child) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), child+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if strings.Contains(string(out), "--- SKIP: "+t.Name()) {
		t.Skipf("%s", out)
	}
	return false
}
