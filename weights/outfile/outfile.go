// Package outfile writes files: one is there whole or not at all, and what was there before stays until everything is on the disk. When a
// write has returned, the file survives a power failure, by its name too.
// Libraries (renameio, natefinch/atomic) call the unfinished file by a name of its own each time: what runs that were killed have left
// piles up, and two runs don't see each other.
package outfile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/lesskv/lesskv/weights/lock"
)

// Write makes the file at path, or replaces it, by what fill writes. Where it fails, the old one is untouched. A link stays one: the
// file behind it is made or replaced. What is no file, such as /dev/stdout, is written to. Until it is whole a file has the name
// of Part, under a lock: what a process that was killed has left there is taken over by the next that writes the file.
func Write(path string, fill func(w io.Writer) error) error {
	path = Resolve(path)
	if old, err := os.Stat(path); err == nil && !old.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(buffered(f, fill), f.Close())
	}
	mine, err := lock.Wait(context.Background(), Part(path), nil)
	if err != nil {
		return named(path, err)
	}
	defer mine.Release() // when the file has another name, or none
	return replace(path, func(part string) error {
		f, err := os.OpenFile(part, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		if err := buffered(f, fill); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	})
}

// Make is Write where another program writes the file: run runs it, and is given the name that the program is to write to, which no file
// has then. Programs replace what they write, a lock on it included: the caller keeps away others that make the same file.
func Make(path string, run func(part string) error) error {
	path = Resolve(path)
	if err := os.Remove(Part(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return replace(path, run)
}

// replace gives the file that fill makes the permissions of the one at path, if there is one, and its name, once it is on the disk.
func replace(path string, fill func(part string) error) (err error) {
	part := Part(path)
	defer func() {
		if err != nil {
			os.Remove(part)
			err = named(path, err)
		}
	}()
	if err := fill(part); err != nil {
		return err
	}
	f, err := os.Open(part)
	if err != nil {
		return err
	}
	defer f.Close()
	if old, err := os.Stat(path); err == nil { // else there is none yet, or the renaming will say why not
		if err := f.Chmod(old.Mode().Perm()); err != nil {
			return err
		}
	}
	if err := sync(f); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// sync puts on the disk what a file holds, or a folder; tests have another.
var sync = (*os.File).Sync

// syncFolder puts on the disk which names files have. A folder that may not be read, or whose file system does not do this, is left alone.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	err = sync(f)
	if runtime.GOOS == "windows" || errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
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

func buffered(w io.Writer, fill func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 1<<16)
	if err := fill(b); err != nil {
		return err
	}
	return b.Flush()
}

// named makes an error about the unfinished file one about the file that was asked for.
func named(path string, err error) error {
	if e, ok := err.(*fs.PathError); ok && e.Path == Part(path) {
		return &fs.PathError{Op: e.Op, Path: path, Err: e.Err}
	}
	if e, ok := err.(*os.LinkError); ok && e.Old == Part(path) {
		return &fs.PathError{Op: e.Op, Path: path, Err: e.Err}
	}
	return err
}
