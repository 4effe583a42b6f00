package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestBench(t *testing.T) {
	status, out, stderr := command("", "bench", "-q", "-t1", "-r1", "-c", "0", "-m", "f16,less", "--dir", t.TempDir(), "gopher-5m")
	assert.Equal(t, exitOK, status, stderr)
	assert.Contains(t, out, "decoding, tokens/s")
	assert.NotContains(t, out, "prompt,")
	assert.Empty(t, stderr)
}

func TestBenchUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"a", "b"}, {"--contexts=many", "gopher-5m"}, {"--contexts=3M", "gopher-5m"}, {"--methods=magic", "gopher-5m"}, {"--budget=5", "gopher-5m"},
		{"--kernels=q4_0", "gopher-5m"}, {"--growth=-1", "gopher-5m"}, {"--prompt-limit=x", "gopher-5m"}, {"no-such-shape"},
	} {
		status, _, stderr := command("", append([]string{"bench", "-q"}, args...)...)
		assert.Equal(t, exitUsage, status, "%v: %s", args, stderr)
	}
}
