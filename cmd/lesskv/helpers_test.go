//go:build cgo

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// buildWithoutCgo builds the command as it is without a C compiler and without the assembled runtime.
func buildWithoutCgo(t *testing.T) (run func(args ...string) (stdout, stderr string, err error)) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "lesskv")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "CC=none")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	return func(args ...string) (string, string, error) {
		var stdout, stderr bytes.Buffer
		c := exec.Command(program, args...)
		c.Stdout, c.Stderr = &stdout, &stderr
		err := c.Run()
		return stdout.String(), stderr.String(), err
	}
}

// scan reads a number.
func scan(t *testing.T, text string, to *float64) {
	t.Helper()
	_, err := fmt.Sscan(text, to)
	require.NoError(t, err)
}
