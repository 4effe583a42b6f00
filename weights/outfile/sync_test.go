package outfile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A file is on the disk before it has its name, and then its name is.
func TestSync(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var synced []string
	var folder error
	defer func(before func(*os.File) error) { sync = before }(sync)
	sync = func(f *os.File) error {
		synced = append(synced, f.Name())
		if f.Name() == dir {
			require.NoFileExists(t, Part(path))
			return folder
		}
		return f.Sync()
	}
	for _, test := range []struct{ folder, want error }{
		{nil, nil},
		{&os.PathError{Op: "sync", Path: dir, Err: syscall.EINVAL}, nil}, // a file system that doesn't
		{&os.PathError{Op: "sync", Path: dir, Err: syscall.ENOTSUP}, nil},
		{&os.PathError{Op: "sync", Path: dir, Err: syscall.EIO}, syscall.EIO},
	} {
		synced, folder = nil, test.folder
		require.ErrorIs(t, WriteBytes(path, []byte("text")), test.want)
		require.Equal(t, []string{Part(path), dir}, synced)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "text", string(data))
	}
}
