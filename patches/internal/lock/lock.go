// Package lock keeps two runs out of one build folder.
package lock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

const retry = 100 * time.Millisecond

// A Lock is held until Release or Remove, or until the process ends.
type Lock struct{ f *flock.Flock }

// Acquire takes the lock file at path, whose folder it makes. If another process holds it, it calls waiting once and
// waits until ctx ends.
func Acquire(ctx context.Context, path string, waiting func()) (*Lock, error) {
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		f := flock.New(path)
		ok, err := f.TryLock()
		if err == nil && !ok {
			waiting()
			waiting = func() {}
			ok, err = f.TryLockContext(ctx, retry)
		}
		if err != nil {
			f.Close()
			if errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
				continue // the holder removed the folder between MkdirAll and the opening
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if ok && current(f) {
			return &Lock{f}, nil
		}
		f.Close() // the holder removed the file: what was locked is no longer the one at path
	}
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
