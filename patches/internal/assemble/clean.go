package assemble

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lesskv/lesskv/patches/internal/workspace"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/weights/lock"
)

// Clean unties the checkout and deletes the build folder: first the go.work, which must not name a missing folder.
func Clean(ctx context.Context, o Options) error {
	root, err := Root(o.Dir, "")
	if err != nil {
		return err
	}
	out := layout.Layout(filepath.Join(root, "build"))
	if o.Build != "" {
		dir, err := filepath.Abs(o.Build)
		if err != nil {
			return err
		}
		out = layout.Layout(dir)
	}
	changed, err := workspace.Undo(root)
	if err != nil {
		return err
	}
	for _, f := range changed {
		o.logf("%s no longer names the runtime", f)
	}
	if _, err := os.Stat(string(out)); errors.Is(err, fs.ErrNotExist) {
		o.logf("there is no %s", out)
		return nil
	}
	l, err := Acquire(ctx, out, func() { o.logf("another run is at work in %s; waiting for it", out) })
	if err != nil {
		return err
	}
	if err := remove(out, l); err != nil {
		return err
	}
	o.logf("%s is gone", out)
	return nil
}

// remove deletes a build folder whose lock is held, the lock last.
func remove(out layout.Layout, l *lock.Lock) error {
	if err := sweep(out); err != nil {
		return errors.Join(err, l.Release())
	}
	if err := l.Remove(); err != nil {
		return err
	}
	if err := os.Remove(string(out)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweep deletes everything in a build folder but its lock.
func sweep(out layout.Layout) error {
	entries, err := os.ReadDir(string(out))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if p := filepath.Join(string(out), e.Name()); p != out.Lock() {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Undo unlinks the module from the runtime. The runtime stays: other apps may use it.
func Undo(o Options) error {
	root, err := Root(o.Dir, o.App)
	if err != nil {
		return err
	}
	changed, err := workspace.Undo(root)
	for _, f := range changed {
		o.logf("%s no longer names the runtime", f)
	}
	if err == nil && len(changed) == 0 {
		o.logf("%s was not linked to the runtime", root)
	}
	return err
}
