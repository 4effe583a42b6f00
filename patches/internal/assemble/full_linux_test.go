package assemble_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFullDisk(t *testing.T) {
	b := newBench(t)
	b.o.Build = t.TempDir()
	if err := syscall.Mount("tmpfs", b.o.Build, "tmpfs", 0, "size=24k"); err != nil {
		t.Skip("mounting a tiny file system:", err)
	}
	t.Cleanup(func() { syscall.Unmount(b.o.Build, 0) })
	require.ErrorIs(t, b.fail(""), syscall.ENOSPC)
	require.NoFileExists(t, filepath.Join(b.dir, "go.work"))

	require.NoError(t, syscall.Mount("tmpfs", b.o.Build, "tmpfs", syscall.MS_REMOUNT, "size=4m"))
	b.run()
}
