package assemble

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/internal/workspace"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/weights/lock"
)

// abandoned is how long a runtime in the user's cache directory stays that no known app is tied to, and from which none was built; and
// a release of llama.cpp that another version of this program uses.
const abandoned = 30 * 24 * time.Hour

// cacheDir is the folder of the runtimes that serve apps, one a folder, among other things.
func cacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "lesskv"), err
}

// runtimeName is what find calls such a folder.
var runtimeName = regexp.MustCompile(`^[0-9a-f]{16}$`)

// appsFile is the list of the apps that were tied to a runtime, in its folder.
func appsFile(out layout.Layout) string { return filepath.Join(string(out), ".apps.json") }

// apps returns those of the list that are tied still. known is false where there is no list.
func apps(out layout.Layout) (tied []string, known bool) {
	data, err := os.ReadFile(appsFile(out))
	var all []string
	if err != nil || json.Unmarshal(data, &all) != nil {
		return nil, false
	}
	for _, dir := range all {
		if workspace.Uses(dir, out.Package()) {
			tied = append(tied, dir)
		}
	}
	return tied, true
}

// note puts the app on the runtime's list. The caller holds the lock.
func (a *assembly) note() error {
	tied, _ := apps(a.out)
	if !slices.Contains(tied, a.root) {
		tied = append(tied, a.root)
	}
	data, err := json.Marshal(tied)
	if err != nil {
		return err
	}
	return tree.WriteFile(appsFile(a.out), data)
}

// Prune deletes the runtimes in the user's cache directory to which no app is tied, as far as can be known, and the releases of
// llama.cpp there that this version does not use.
func Prune(ctx context.Context, o Options) error {
	dir, err := cacheDir()
	if err != nil {
		return err
	}
	if err := o.prune(dir, "", 0); err != nil {
		return err
	}
	sources, err := o.released()
	if err != nil {
		return err
	}
	return source.Prune(ctx, sources, 0)
}

// prune deletes the runtimes in dir to which no known app is tied, and which nothing has read for so long; with age, only those of
// which the apps are known. One that a run is at work in stays, and so does but.
func (o *Options) prune(dir string, but layout.Layout, age time.Duration) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		out := layout.Layout(filepath.Join(dir, e.Name()))
		if !e.IsDir() || !runtimeName.MatchString(e.Name()) || out == but {
			continue
		}
		if _, err := os.Stat(out.Lock()); err != nil {
			continue // not one of ours
		}
		l, err := lock.Try(out.Lock())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // another run has just removed it
		case errors.Is(err, lock.ErrBusy):
			o.logf("%s stays: another run is at work in it", out)
			continue
		case err != nil:
			o.logf("%s stays: %v", out, err)
			continue
		}
		err = func() error {
			tied, known := apps(out)
			switch {
			case len(tied) > 0:
				if age == 0 {
					o.logf("%s stays: %s uses it", out, tied[0])
				}
				return l.Release()
			case age > 0 && (!known || time.Since(lastRead(out)) < age):
				return l.Release()
			}
			if err := remove(out, l); err != nil {
				return err
			}
			o.logf("%s is deleted: no app is linked to it", out)
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// lastRead is when a runtime was last made, tied to, or linked into a program, as far as the file system says.
func lastRead(out layout.Layout) (last time.Time) {
	var list, archive unix.Stat_t // this program reads the list of others, but not the archive
	if unix.Stat(appsFile(out), &list) == nil {
		last = time.Unix(list.Mtim.Unix())
	}
	if unix.Stat(filepath.Join(out.Package(), "libbinding.a"), &archive) == nil {
		for _, t := range []unix.Timespec{archive.Mtim, archive.Atim} {
			if at := time.Unix(t.Unix()); at.After(last) {
				last = at
			}
		}
	}
	return last
}
