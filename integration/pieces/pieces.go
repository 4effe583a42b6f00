// Package pieces keeps finished pieces of long work, so that a run that was interrupted goes on where it stopped.
package pieces

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/lesskv/lesskv/weights/lock"
	"github.com/lesskv/lesskv/weights/outfile"
)

// The faults that errors of this package wrap.
var (
	ErrBusy    = errors.New("work folder in use")                 // by another run
	ErrForeign = errors.New("work folder with files of no run's") // that would be deleted with it
)

// A Store keeps finished pieces of work, each in a file named by all that it depends on: a piece that is there whole is right,
// whatever plan it was made for. A file is the SHA-256 of the rest of it, and a gob: one that is damaged is as good as none.
type Store struct {
	Dir       string
	lock      *lock.Lock
	temporary bool
}

// ours are the names of the files in a folder of runs, exactly: what else lies there is somebody's.
var ours = regexp.MustCompile(`^(lock|[a-z0-9-]+-[0-9a-f]{32}(\.part\.tmp)?)$`)

// Remove deletes a folder of runs. What is no run's stays in it.
func Remove(dir string) error { return outfile.RemoveFolder(dir, ours) }

// Open opens the folder dir, which it makes; "": one that goes with Close. ErrBusy, ErrForeign.
func Open(dir string) (*Store, error) {
	s := &Store{Dir: dir}
	if dir == "" {
		var err error
		s.Dir, err = os.MkdirTemp("", "lesskv-work-")
		s.temporary = true
		return s, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries { // who asks for it removes the folder when the work is done
		if !outfile.Is(e, ours) {
			return nil, fmt.Errorf("%s: move it, or choose another folder: %w", filepath.Join(dir, e.Name()), ErrForeign)
		}
	}
	s.lock, err = lock.Try(filepath.Join(dir, "lock"))
	if errors.Is(err, lock.ErrBusy) {
		err = fmt.Errorf("%s: wait for the run that uses it, or choose another: %w", dir, ErrBusy)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Close lets another run have the folder.
func (s *Store) Close() {
	if s.temporary {
		os.RemoveAll(s.Dir)
	}
	if s.lock != nil {
		s.lock.Release()
	}
}

// Has reports whether a piece is there, whole.
func (s *Store) Has(key string) bool {
	_, ok := s.read(key)
	return ok
}

// read returns a piece as it was encoded, unless it isn't there or is damaged.
func (s *Store) read(key string) ([]byte, bool) {
	data, err := os.ReadFile(filepath.Join(s.Dir, key))
	if err != nil || len(data) < sha256.Size {
		return nil, false
	}
	sum := sha256.Sum256(data[sha256.Size:])
	return data[sha256.Size:], bytes.Equal(data[:sha256.Size], sum[:])
}

// Load reads a piece. One that can't be read is as good as none.
func (s *Store) Load(key string, to any) bool {
	data, ok := s.read(key)
	return ok && gob.NewDecoder(bytes.NewReader(data)).Decode(to) == nil
}

// Save writes a piece: it is there whole or not at all.
func (s *Store) Save(key string, piece any) error {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(piece)
	if err == nil {
		sum := sha256.Sum256(b.Bytes())
		err = outfile.WriteBytes(filepath.Join(s.Dir, key), append(sum[:], b.Bytes()...))
	}
	if err != nil {
		return fmt.Errorf("keeping finished work: %w", err)
	}
	return nil
}

// Key names a piece by its kind and all that it depends on: numbers and strings, and what is made of them.
func Key(kind string, depends ...any) string {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(depends); err != nil {
		panic(err)
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// HashFile returns a file's SHA-256.
func HashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
