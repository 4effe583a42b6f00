package lock_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/weights/lock"
)

func never(t *testing.T) func() { return func() { t.Error("waited for a free lock") } }

func TestSecondWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".lock")
	first, err := lock.Wait(t.Context(), path, never(t))
	require.NoError(t, err)

	waiting, got := make(chan bool), make(chan error)
	go func() {
		second, err := lock.Wait(context.Background(), path, func() { close(waiting) })
		if err == nil {
			err = second.Release()
		}
		got <- err
	}()
	<-waiting
	_, err = lock.Try(path)
	require.ErrorIs(t, err, lock.ErrBusy)
	require.ErrorContains(t, err, path)
	select {
	case <-got:
		t.Fatal("both hold the lock")
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, first.Release())
	require.NoError(t, <-got)
}

func TestRemovedWhileWaiting(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".lock")
	first, err := lock.Wait(t.Context(), path, never(t))
	require.NoError(t, err)
	waiting := make(chan bool)
	got := make(chan *lock.Lock)
	go func() {
		second, err := lock.Wait(context.Background(), path, func() { close(waiting) })
		if err != nil {
			t.Error(err)
		}
		got <- second
	}()
	<-waiting
	require.NoError(t, first.Remove())
	second := <-got
	require.FileExists(t, path, "the second must hold the lock that a third would see")

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = lock.Wait(ctx, path, func() {})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, second.Release())
}

// A folder that is not there is not made: another may just have removed it.
func TestNoFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	_, err := lock.Try(filepath.Join(dir, ".lock"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoDirExists(t, dir)
}
