package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Where the disk is full, or may only be read, the program that was there stays, with no half beside it.
func TestInstallOnFullAndReadOnlyDisks(t *testing.T) {
	dir, disk := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module hello\n\ngo 1.24.0\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() { println(\"hello\") }\n"), 0o644))
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("mounting a disk of its own takes root: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(disk, unix.MNT_DETACH)) }()
	target := filepath.Join(disk, "hello")
	require.NoError(t, os.WriteFile(target, []byte("the one before"), 0o755))
	install := func() error {
		return installProgram(t.Context(), dir, []string{"GOWORK=off", "GOFLAGS="}, ".", target)
	}
	for _, reason := range []error{syscall.ENOSPC, syscall.EROFS} {
		if reason == syscall.EROFS {
			require.NoError(t, unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}
		err := install()
		require.ErrorContains(t, err, reason.Error())
		require.ErrorContains(t, err, target)
		data, err := os.ReadFile(target)
		require.NoError(t, err)
		require.Equal(t, "the one before", string(data))
		entries, err := os.ReadDir(disk)
		require.NoError(t, err)
		require.Len(t, entries, 1)
	}
	require.NoError(t, unix.Mount("", disk, "", unix.MS_REMOUNT, "size=16m"))
	require.NoError(t, install())
	kept := filepath.Join(disk, "kept") // a link stays one, as with all files that this project writes
	require.NoError(t, os.Rename(target, kept))
	require.NoError(t, os.Symlink(kept, target))
	require.NoError(t, install())
	info, err := os.Lstat(target)
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeSymlink)
	out, err := exec.Command(target).CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "hello\n", string(out))
}
