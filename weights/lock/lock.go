// Package lock keeps two runs out of one file or folder.
package lock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// ErrBusy is what Try fails with where another holds the lock.
var ErrBusy = errors.New("in use by another run")

const retry = 20 * time.Millisecond

// A Lock is held until Release or Remove, or until the process ends.
type Lock struct{ f *flock.Flock }

// Try takes the lock file at path, which it makes if there is none, but not its folder.
func Try(path string) (*Lock, error) {
	for {
		f := flock.New(path, flock.SetPermissions(0o666))
		ok, err := f.TryLock()
		if err == nil && !ok {
			err = ErrBusy
		}
		if err != nil {
			return nil, failed(path, err)
		}
		if current(f) {
			return &Lock{f}, nil
		}
		f.Close() // the holder removed or renamed the file: what was locked is no longer the one at path
	}
}

// Wait is Try that waits, until ctx ends, for the one who holds the lock. It calls waiting, unless that is nil, once before it does.
func Wait(ctx context.Context, path string, waiting func()) (*Lock, error) {
	for {
		l, err := Try(path)
		if !errors.Is(err, ErrBusy) {
			return l, err
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, failed(path, ctx.Err())
		case <-time.After(retry):
		}
	}
}

// failed names the lock file, unless err does.
func failed(path string, err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return err
	}
	return &fs.PathError{Op: "lock", Path: path, Err: err}
}

// current reports whether the locked file is still the one at its path.
func current(f *flock.Flock) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(f.Path())
	return err == nil && os.SameFile(held, there)
}

// Release gives the lock back and leaves the file.
func (l *Lock) Release() error { return l.f.Close() }

// Remove deletes the file and gives the lock back.
func (l *Lock) Remove() error {
	return errors.Join(os.Remove(l.f.Path()), l.f.Close())
}
