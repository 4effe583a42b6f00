//go:build cgo

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
	for _, test := range []struct {
		args []string
		says string
	}{
		{nil, "0 arguments: want one model's file"},
		{[]string{"a", "b"}, "2 arguments: want one model's file"},
		{[]string{"--contexts=many", "gopher-5m"}, "--contexts many: want a number of tokens"},
		{[]string{"--contexts=3M", "gopher-5m"}, "--contexts 3M: want a number of tokens"},
		{[]string{"--methods=magic", "gopher-5m"}, `no method "magic"`},
		{[]string{"--budget=5", "gopher-5m"}, "--budget 5: want a share"},
		{[]string{"--kernels=q4_0", "gopher-5m"}, "--kernels q4_0: want f16 or q8_0"},
		{[]string{"--growth=-1", "gopher-5m"}, "--growth -1: want a number of tokens"},
		{[]string{"--prompt-limit=x", "gopher-5m"}, "--prompt-limit x: want a number of tokens"},
		{[]string{"--quant=Q9", "smollm2-135m"}, "matrices in Q9: want one of F32, F16"},
		{[]string{"--policy=magic", "smollm2-135m"}, "magic"},
		{[]string{"--type=q9", "smollm2-135m"}, "q9"},
		{[]string{"no-such-shape"}, `no shape "no-such-shape"`},
	} {
		status, _, stderr := command("", append([]string{"bench", "-q"}, test.args...)...)
		assert.Equal(t, exitUsage, status, "%v: %s", test.args, stderr)
		assert.Contains(t, stderr, test.says)
	}
}
