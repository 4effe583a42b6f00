package outfile_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/outfile"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	require.NoError(t, outfile.WriteBytes(path, []byte("one")))
	require.Equal(t, "one", read(t, path))
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, outfile.WriteBytes(path, []byte("two")))
	require.Equal(t, "two", read(t, path))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode(), "who may read it is the user's choice")
	require.Equal(t, []string{"x"}, names(t, dir))
}

// What fails, early or late, leaves the file that was there, and nothing beside it.
func TestFailureKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	require.NoError(t, outfile.WriteBytes(path, []byte("old")))
	for _, n := range []int{0, 10, 1 << 20} {
		err := outfile.Write(path, func(w io.Writer) error {
			io.WriteString(w, strings.Repeat("x", n))
			return syscall.ENOSPC
		})
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.Equal(t, "old", read(t, path))
		require.Equal(t, []string{"x"}, names(t, dir))
	}
	err := outfile.WriteBytes(filepath.Join(dir, "none", "x"), nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, filepath.Join(dir, "none", "x")+":", "the error names what was asked for")
}

func TestLinksAndDevices(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(real, []byte("old"), 0o644))
	require.NoError(t, os.Symlink("real", link))
	require.NoError(t, outfile.WriteBytes(link, []byte("new")))
	require.Equal(t, "new", read(t, real))
	target, err := os.Readlink(link)
	require.NoError(t, err)
	require.Equal(t, "real", target)

	away := filepath.Join(dir, "away")
	require.NoError(t, os.Symlink("there", away))
	require.NoError(t, outfile.WriteBytes(away, []byte("made")))
	require.Equal(t, "made", read(t, filepath.Join(dir, "there")), "a link to what is not there yet")

	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	got := make(chan string)
	go func() {
		data, err := os.ReadFile(pipe)
		got <- string(data) + errors.Join(err, errors.New("")).Error()
	}()
	require.NoError(t, outfile.WriteBytes(pipe, []byte("through")))
	require.Equal(t, "through", strings.TrimSpace(<-got))
	require.Error(t, outfile.WriteBytes(dir, nil), "a folder")
}

// A new file has the permissions that the user's mask leaves.
func TestMask(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	old := syscall.Umask(0o077)
	err := outfile.WriteBytes(path, nil)
	syscall.Umask(old)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
}

// What a process that was killed has left is taken over.
func TestAfterAKill(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	require.NoError(t, os.WriteFile(outfile.Part(path), []byte("a longer half"), 0o644))
	require.NoError(t, outfile.WriteBytes(path, []byte("whole")))
	require.Equal(t, "whole", read(t, path))
	require.Equal(t, []string{"x"}, names(t, dir))
}

// Of several that write one file at once each is whole, and the last stays.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	errs := make(chan error)
	for i := range 8 {
		go func() { errs <- outfile.WriteBytes(path, []byte(strings.Repeat(string(rune('a'+i)), 1<<17))) }()
	}
	for range 8 {
		require.NoError(t, <-errs)
	}
	got := read(t, path)
	require.Equal(t, strings.Repeat(got[:1], 1<<17), got)
	require.Equal(t, []string{"x"}, names(t, dir))
}

// What another program writes under the name of Part is the file in the end, or nothing of it stays.
func TestMake(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	require.NoError(t, os.WriteFile(outfile.Part(path), []byte("half, of a run that was killed"), 0o644))
	write := func(text string, err error) func(string) error {
		return func(part string) error {
			require.NoFileExists(t, part)
			return errors.Join(os.WriteFile(part, []byte(text), 0o755), err)
		}
	}
	require.NoError(t, outfile.Make(path, write("one", nil)))
	require.Equal(t, "one", read(t, path))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&0o100, "a program stays one")

	require.ErrorIs(t, outfile.Make(path, write("two", syscall.ENOSPC)), syscall.ENOSPC)
	require.ErrorIs(t, outfile.Make(path, func(string) error { return nil }), os.ErrNotExist, "it wrote nothing")
	require.Equal(t, "one", read(t, path))
	require.Equal(t, []string{"x"}, names(t, dir))
}

// An error of what is read while a file is written names that.
func TestErrorOfAnInput(t *testing.T) {
	dir := t.TempDir()
	err := outfile.Write(filepath.Join(dir, "x"), func(io.Writer) error {
		_, err := os.ReadFile(filepath.Join(dir, "input"))
		return err
	})
	require.ErrorContains(t, err, filepath.Join(dir, "input")+":")
}
