package assemble_test

import (
	"fmt"
	"maps"
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
	mount(t, b.o.Build, 1)
	work := filepath.Join(b.dir, "go.work")
	failed := 0
	for pages := 1; ; pages += 7 {
		remount(t, b.o.Build, pages)
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
	remount(t, b.o.Build, 0)
	require.ErrorIs(t, assemble.Run(t.Context(), b.o), syscall.EROFS)
	remount(t, b.o.Build, plenty)
	b.run()
	require.Contains(t, b.read(b.o.Build, "llama.cpp/less/select.c"), "long")
}

// What is written beside the build folder: the app's go.work, or with -replace its go.mod, and the list of what git ignores there. Each stays as
// it was, with no half beside it, and so it does where the tie is taken out; both are done once there is room.
func TestTieOnFullAndReadOnlyDisks(t *testing.T) {
	for name, replace := range map[string]bool{"go.work": false, "go.mod": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.forApp(filepath.Join(t.TempDir(), "app"))
			b.o.Replace = replace
			mount(t, b.o.App, plenty)
			untied := map[string]string{
				filepath.Join(b.o.App, "go.mod"):            "module example.com/app\n\ngo 1.22\n",
				filepath.Join(b.o.App, ".git/info/exclude"): "# mine\n",
			}
			for path, text := range untied {
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				b.write(path, text)
			}
			b.run()
			tied := b.all(b.o.App)
			require.NotEqual(t, untied, tied)
			require.NoError(t, assemble.Undo(b.o))
			require.Equal(t, untied, b.all(b.o.App))

			pages := len(untied) // what the files take
			fails := func(what func() error, reason error, want map[string]string) {
				t.Helper()
				err := what()
				require.ErrorIs(t, err, reason)
				require.ErrorContains(t, err, b.o.App, "the file is named")
				require.Equal(t, want, b.all(b.o.App))
			}
			run, undo := func() error { return assemble.Run(t.Context(), b.o) }, func() error { return assemble.Undo(b.o) }
			remount(t, b.o.App, pages)
			fails(run, syscall.ENOSPC, untied)
			remount(t, b.o.App, 0)
			fails(run, syscall.EROFS, untied)
			if !replace { // room for the go.work alone
				half := maps.Clone(tied)
				half[filepath.Join(b.o.App, ".git/info/exclude")] = "# mine\n"
				remount(t, b.o.App, pages+1)
				fails(run, syscall.ENOSPC, half)
			}
			remount(t, b.o.App, plenty)
			b.run()
			require.Equal(t, tied, b.all(b.o.App))

			remount(t, b.o.App, 0)
			fails(undo, syscall.EROFS, tied)
			remount(t, b.o.App, plenty)
			require.NoError(t, undo())
			require.Equal(t, untied, b.all(b.o.App))
		})
	}
}

// The folder in the user's cache directory that keeps llama.cpp: where it is full nothing half stays for the next run, and where it may only be
// read it serves if the release is in it.
func TestSourcesOnFullAndReadOnlyDisks(t *testing.T) {
	b := newBench(t)
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	disk := filepath.Join(cache, "lesskv")
	mount(t, disk, 1)
	remount(t, disk, 0)
	require.ErrorIs(t, b.fail(disk), syscall.EROFS)
	failed := 0
	for pages := 1; ; pages += 7 {
		remount(t, disk, pages)
		if assemble.Run(t.Context(), b.o) == nil {
			break
		}
		failed++
		require.NoFileExists(t, filepath.Join(b.dir, "go.work"))
		left, err := filepath.Glob(filepath.Join(disk, "sources", "*"))
		require.NoError(t, err)
		require.Subset(t, []string{filepath.Join(disk, "sources", "lock")}, left)
	}
	require.Greater(t, failed, 3)

	b.code["kernels/select.c"].Data = []byte("long select;\n")
	remount(t, disk, 0)
	b.run()
	require.Contains(t, b.read(b.layout().Sources(), "less/select.c"), "long")
}

// mount gives a folder that it makes a disk of so many pages, until the test ends.
func mount(t *testing.T, dir string, pages int) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, size(pages)); err != nil {
		t.Skipf("mounting a disk of its own takes root: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
}

// plenty is room for everything.
const plenty = 1024

// remount gives a disk another size; 0: it may only be read.
func remount(t *testing.T, dir string, pages int) {
	t.Helper()
	if pages == 0 {
		require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		return
	}
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT, size(pages)))
}

func size(pages int) string { return fmt.Sprintf("size=%d", pages*os.Getpagesize()) }
