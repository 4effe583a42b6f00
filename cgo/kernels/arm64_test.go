package kernels

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// onArm64 are the tests of what is compiled otherwise there: the loops with vector instructions, and what compares them with plain ones.
// The others ask the same C again; make soak-kernels has them all.
const onArm64 = "^Test(Differential|Products|Exp|Tanh|Gelu|F16.*|Q80|Q40|Levels|PhiPsi|OddNumbers|TrainIsInference)$"

// These tests on arm64, where there is none: cross-compiled, under an emulator. They judge results, not speed. Debian has what it
// takes in gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user.
func TestOnArm64(t *testing.T) {
	if testing.Short() || runtime.GOOS != "linux" || runtime.GOARCH == "arm64" {
		t.Skip("a minute or more, on Linux and another processor")
	}
	const compiler, emulator, libraries = "aarch64-linux-gnu-gcc", "qemu-aarch64", "/usr/aarch64-linux-gnu"
	for _, program := range []string{compiler, emulator} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	program := filepath.Join(t.TempDir(), "kernels.test")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=1", "GOARCH=arm64", "CC="+compiler, "CGO_CFLAGS=-O2 -march=armv8.2-a+dotprod+fp16")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	run := []string{"-L", libraries, program, "-test.short", "-test.v"}
	if os.Getenv("LESSKV_SOAK") == "" {
		run = append(run, "-test.run", onArm64)
	}
	out, err = exec.Command(emulator, run...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "\n--- PASS: TestDifferential")
}
