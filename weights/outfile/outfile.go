// Package outfile writes the files that commands make: one is there whole or not at all, and what was there before stays until
// everything is on the disk.
package outfile

import (
	"bufio"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Write makes the file at path, or replaces it, by what fill writes. Where it fails, the old one is untouched. A link stays one: the
// file behind it is replaced. What is no file, such as /dev/stdout, is written to.
func Write(path string, fill func(w io.Writer) error) error {
	switch info, err := os.Stat(path); {
	case err != nil: // there is none yet, or making it will say why not
	case !info.Mode().IsRegular():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := buffered(f, fill); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	default:
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o644), renameio.WithExistingPermissions())
	if err != nil {
		return named(path, err)
	}
	defer f.Cleanup()
	if err := buffered(f, fill); err != nil {
		return named(path, err)
	}
	return named(path, f.CloseAtomicallyReplace())
}

// WriteBytes is Write of data.
func WriteBytes(path string, data []byte) error {
	return Write(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func buffered(w io.Writer, fill func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 1<<16)
	if err := fill(b); err != nil {
		return err
	}
	return b.Flush()
}

// named makes an error about the temporary file one about the file that was asked for.
func named(path string, err error) error {
	if e, ok := err.(*fs.PathError); ok {
		return &fs.PathError{Op: e.Op, Path: path, Err: e.Err}
	}
	return err
}
