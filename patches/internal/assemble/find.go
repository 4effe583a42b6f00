package assemble

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/mod/modfile"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/weights/lock"
)

// find finds the module that is linked, and the build folder.
func (a *assembly) find() error {
	var err error
	if a.root, err = Root(a.Dir, a.App); err != nil {
		return err
	}
	dir := a.Build
	switch {
	case dir != "":
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
	case a.App == "":
		dir = filepath.Join(a.root, "build")
	default:
		cache, err := cacheDir()
		if err != nil {
			return err
		}
		dir = filepath.Join(cache, a.inputs(patched)[:16])
	}
	a.out = layout.Layout(dir)
	if slices.Contains(a.kinds(), patched) {
		return checkPath(a.out.Package())
	}
	return nil
}

// A PathError is a build folder whose path cgo refuses in a #cgo line, where the package names its own folder.
type PathError struct {
	Path string
	Char rune // the first that cgo does not take
}

func (e *PathError) Error() string {
	return fmt.Sprintf("%s holds %q, and cgo takes no package from there (of ASCII, letters, digits, spaces and %s are fine): choose another folder with -build DIR, or move the checkout",
		e.Path, e.Char, pathMarks)
}

// pathMarks are what cgo takes in a path beside letters, digits, spaces and whatever is not ASCII.
const pathMarks = "+-.,/=_:$@%!~^"

// checkPath returns a *PathError for a path that cgo does not take.
func checkPath(path string) error {
	for _, c := range path {
		if c < utf8.RuneSelf && !strings.ContainsRune(pathMarks, c) && c != ' ' && !('0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z') {
			return &PathError{path, c}
		}
	}
	return nil
}

// Root returns the folder of the go.mod that is to be linked: the app's, or that of the checkout of this module around dir.
func Root(dir, app string) (string, error) {
	if app != "" {
		root, err := filepath.Abs(app)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
			return "", fmt.Errorf("-app wants the folder of the app's go.mod: %w", err)
		}
		return root, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for d := abs; ; d = filepath.Dir(d) {
		data, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && modfile.ModulePath(data) == pins.Self {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not in a checkout of %s: name your app's folder with -app DIR", abs, pins.Self)
		}
	}
}

// lock takes the build folder. A folder that holds other things is refused: it would be swept.
func (a *assembly) lock(ctx context.Context) (*lock.Lock, error) {
	return Acquire(ctx, a.out, func() { a.logf("another run is at work in %s; waiting for it", a.out) })
}

// Acquire takes the lock of a build folder, which it makes.
func Acquire(ctx context.Context, out layout.Layout, waiting func()) (*lock.Lock, error) {
	if entries, err := os.ReadDir(string(out)); err == nil && len(entries) > 0 {
		if _, err := os.Stat(out.Lock()); err != nil {
			return nil, fmt.Errorf("%s is not empty and was not made by this program: name another folder with -build", out)
		}
	}
	for {
		if err := os.MkdirAll(string(out), 0o755); err != nil {
			return nil, err
		}
		l, err := lock.Wait(ctx, out.Lock(), waiting)
		if !errors.Is(err, fs.ErrNotExist) {
			return l, err
		} // the holder has removed the folder
	}
}
