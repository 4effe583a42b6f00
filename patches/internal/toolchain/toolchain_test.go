package toolchain_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/fake"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/quoted"
)

func TestMissing(t *testing.T) {
	for variable, pkg := range map[string]string{"CC": "gcc", "CXX": "g++", "AR": "binutils"} {
		t.Run(variable, func(t *testing.T) {
			fake.Toolchain(t)
			t.Setenv(variable, "no-such-tool -m64")
			_, err := toolchain.Find(t.Context())
			var missing *toolchain.MissingError
			require.ErrorAs(t, err, &missing)
			require.Equal(t, "no-such-tool", missing.Tool)
			require.ErrorContains(t, err, "apt-get install "+pkg)
			require.ErrorContains(t, err, variable)
		})
	}
}

func TestWordsOfACommand(t *testing.T) {
	fake.Toolchain(t)
	cc := os.Getenv("CC")
	t.Setenv("CC", cc+" -m64")
	tools, err := toolchain.Find(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{cc, "-m64"}, tools.CC)
}

// What cgo takes: a word in quotation marks may hold spaces, and a mark inside a word is none.
func TestQuotedCommand(t *testing.T) {
	fake.Toolchain(t)
	cc := filepath.Join(t.TempDir(), "my gcc", "g'cc")
	require.NoError(t, os.Mkdir(filepath.Dir(cc), 0o755))
	require.NoError(t, os.Symlink(os.Getenv("CC"), cc))
	for command, want := range map[string][]string{
		`"` + cc + `" -m64`:                     {cc, "-m64"},
		"\t\"" + cc + "\"\n'-DA=b c' \"\" ":     {cc, "-DA=b c", ""},
		`"` + cc + `"-m64 -DX="y z"`:            {cc, "-m64", `-DX="y`, `z"`},
		os.Getenv("CXX") + ` -DX='1'  "-I a b"`: {os.Getenv("CXX"), `-DX='1'`, "-I a b"},
	} {
		t.Setenv("CC", command)
		tools, err := toolchain.Find(t.Context())
		require.NoError(t, err, command)
		require.Equal(t, want, tools.CC)
	}
	t.Setenv("CC", `"`+cc+` -m64`)
	_, err := toolchain.Find(t.Context())
	require.ErrorIs(t, err, quoted.ErrUnterminated)
	require.ErrorContains(t, err, "CC is ")
}

func TestCheckTarget(t *testing.T) {
	require.NoError(t, toolchain.CheckTarget("linux", "amd64"))
	require.NoError(t, toolchain.CheckTarget("darwin", "arm64"))
	require.ErrorContains(t, toolchain.CheckTarget("windows", "amd64"), "windows is not supported")
	require.ErrorContains(t, toolchain.CheckTarget("linux", "riscv64"), "linux/riscv64 is not supported")
}

func TestISA(t *testing.T) {
	for _, test := range []struct {
		goos, goarch, preset, march, want string
	}{
		{"linux", "amd64", "portable", "", "-march=x86-64-v3"},
		{"linux", "arm64", "portable", "", "-march=armv8.2-a+dotprod+fp16"},
		{"darwin", "arm64", "portable", "", "-mcpu=apple-m1"},
		{"linux", "amd64", "native", "znver4", "-march=znver4"},
	} {
		tools := toolchain.Toolchain{GOOS: test.goos, GOARCH: test.goarch}
		flags, err := tools.ISA(test.preset, test.march)
		require.NoError(t, err)
		require.Equal(t, []string{test.want}, flags)
	}
	_, err := (&toolchain.Toolchain{GOOS: "plan9", GOARCH: "amd64"}).ISA("native", "")
	require.ErrorContains(t, err, "-preset portable")
	_, err = (&toolchain.Toolchain{}).ISA("fast", "")
	require.ErrorContains(t, err, `"fast"`)
}

func TestFeatures(t *testing.T) {
	fake.Toolchain(t)
	tools, err := toolchain.Find(t.Context())
	require.NoError(t, err)
	tools.GOARCH = "amd64"
	features, err := tools.Features(t.Context(), []string{"-march=x86-64-v3"})
	require.NoError(t, err)
	require.Equal(t, []string{"avx2"}, features)
	features, err = tools.Features(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, features)
}

func TestIdentity(t *testing.T) {
	fake.Toolchain(t)
	tools, err := toolchain.Find(t.Context())
	require.NoError(t, err)
	plain, err := tools.Identity(t.Context(), toolchain.CXX, nil)
	require.NoError(t, err)
	native, err := tools.Identity(t.Context(), toolchain.CXX, []string{"-march=native"})
	require.NoError(t, err)
	require.NotEqual(t, plain, native, "the same flag on another CPU must be another identity")

	broken := filepath.Join(t.TempDir(), "cc")
	require.NoError(t, os.WriteFile(broken, []byte("#!/bin/sh\necho stdio.h: not found >&2\nexit 1\n"), 0o755))
	tools.CC = []string{broken}
	_, err = tools.Identity(t.Context(), toolchain.C, nil)
	require.ErrorContains(t, err, "stdio.h: not found")
	require.ErrorContains(t, err, "apt-get install g++")
}

// A compiler that is asked while the user interrupts is not one that can't be used, and what it has started does not outlive it.
func TestInterruptedIdentity(t *testing.T) {
	fake.Toolchain(t)
	tools, err := toolchain.Find(t.Context())
	require.NoError(t, err)
	dir := t.TempDir()
	slow, asked := filepath.Join(dir, "cc"), filepath.Join(dir, "asked")
	require.NoError(t, os.WriteFile(slow, []byte("#!/bin/sh\ntouch '"+asked+"'\nsleep 60\n"), 0o755))
	tools.CC = []string{slow}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := tools.Identity(ctx, toolchain.C, nil)
		done <- err
	}()
	require.Eventually(t, func() bool { _, err := os.Stat(asked); return err == nil }, time.Minute, 5*time.Millisecond)
	cancel()
	select {
	case err = <-done:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(30 * time.Second): // half of what the compiler takes
		t.Fatal("what the compiler has started outlived the interruption")
	}
}
