package outfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// Is reports whether an entry of a folder is no folder, and its name, all of it, is one of those.
func Is(e fs.DirEntry, names *regexp.Regexp) bool {
	return !e.IsDir() && names.FindString(e.Name()) == e.Name()
}

// RemoveFolder deletes the files of those names in a folder, and the folder if nothing else is in it: what somebody has put beside
// them stays.
func RemoveFolder(dir string, names *regexp.Regexp) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	others := false
	for _, e := range entries {
		if Is(e, names) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		} else {
			others = true
		}
	}
	if err != nil || others {
		return err
	}
	return os.Remove(dir)
}
