// Package outfile writes the files that commands make: one is there whole or not at all, and what was there before stays until
// everything is on the disk.
package outfile

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Write makes the file at path, or replaces it, by what fill writes. Where it fails, the old one is untouched. A link stays one: the
// file behind it is made or replaced. What is no file, such as /dev/stdout, is written to. Until it is whole a file has the name
// of Part, under a lock: what a process that was killed has left there is taken over by the next that writes the file.
func Write(path string, fill func(w io.Writer) error) (err error) {
	path = Resolve(path)
	old, err := os.Stat(path)
	if err == nil && !old.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(buffered(f, fill), f.Close())
	}
	replaces := err == nil // else there is none yet, or making it will say why not
	f, err := openPart(Part(path))
	if err != nil {
		return named(path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name()) // while it is locked
			f.Close()
			err = named(path, err)
		}
	}()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := buffered(f, fill); err != nil {
		return err
	}
	if replaces {
		if err := f.Chmod(old.Mode().Perm()); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.Close()
}

// WriteFrom is Write of all that data has, such as a picture.
func WriteFrom(path string, data io.WriterTo) error {
	return Write(path, func(w io.Writer) error {
		_, err := data.WriteTo(w)
		return err
	})
}

// WriteBytes is Write of data.
func WriteBytes(path string, data []byte) error {
	return WriteFrom(path, bytes.NewReader(data))
}

// Part is what the file at path, which is no link, is called until it is whole.
func Part(path string) string { return path + ".part.tmp" }

// Resolve follows links, also to where there is no file yet.
func Resolve(path string) string {
	for range 40 { // as many as Linux follows
		to, err := os.Readlink(path)
		if err != nil {
			break // no link
		}
		if !filepath.IsAbs(to) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				break
			}
			to = filepath.Join(dir, to)
		}
		path = to
	}
	return path
}

// openPart opens the file that is to be renamed, once no other process writes it.
func openPart(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
		if err != nil {
			return nil, err
		}
		for {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
				break
			}
		}
		if err != nil {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: name, Err: err}
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if now, err := os.Stat(name); err == nil && os.SameFile(mine, now) {
			return f, nil
		}
		f.Close() // the other has renamed or removed it
	}
}

func buffered(w io.Writer, fill func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 1<<16)
	if err := fill(b); err != nil {
		return err
	}
	return b.Flush()
}

// named makes an error about the unfinished file one about the file that was asked for.
func named(path string, err error) error {
	if e, ok := err.(*fs.PathError); ok {
		return &fs.PathError{Op: e.Op, Path: path, Err: e.Err}
	}
	if e, ok := err.(*os.LinkError); ok {
		return &fs.PathError{Op: e.Op, Path: path, Err: e.Err}
	}
	return err
}
