package assemble_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/patches/internal/assemble"
)

// A build folder on a disk that is full after more and more pages, and one that is read-only: an error that says so, no tie to
// what is not whole, and the runtime once there is room.
func TestFullAndReadOnlyDisks(t *testing.T) {
	b := newBench(t)
	b.o.Build = filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(b.o.Build, 0o755))
	if err := unix.Mount("tmpfs", b.o.Build, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("mounting a disk of its own takes root: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(b.o.Build, unix.MNT_DETACH)) }()
	work := filepath.Join(b.dir, "go.work")
	failed := 0
	for pages := 1; ; pages += 7 {
		require.NoError(t, unix.Mount("", b.o.Build, "", unix.MS_REMOUNT, fmt.Sprintf("size=%dk", 4*pages)))
		err := assemble.Run(t.Context(), b.o)
		if err == nil {
			break
		}
		failed++
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.NoFileExists(t, work)
	}
	require.Greater(t, failed, 3)
	require.FileExists(t, work)

	b.code["kernels/select.c"].Data = []byte("long select;\n")
	require.NoError(t, unix.Mount("", b.o.Build, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	require.ErrorIs(t, assemble.Run(t.Context(), b.o), syscall.EROFS)
	require.NoError(t, unix.Mount("", b.o.Build, "", unix.MS_REMOUNT, "size=4m"))
	b.run()
	require.Contains(t, b.read(b.o.Build, "llama.cpp/less/select.c"), "long")
}
