package verify

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

	"github.com/gofrs/flock"

	"github.com/lesskv/lesskv/weights/outfile"
)

var (
	ErrBusy    = errors.New("work folder in use")                 // by another run
	ErrForeign = errors.New("work folder with files of no run's") // that would be deleted with it
)

// workFormat goes into the name of every piece. It changes with what the pieces hold, or how they are computed.
const workFormat = 2

// store keeps finished pieces of work, each in a file named by all that it depends on: a piece that is there whole is right,
// whatever plan it was made for. A file is the SHA-256 of the rest of it, and a gob: one that is damaged is as good as none.
type store struct {
	dir       string
	lock      *flock.Flock
	temporary bool
}

// ours are the names of what is in a folder of runs: pieces, and the built-in model that the command unpacks.
var ours = regexp.MustCompile(`^(lock|builtin|.*\.tmp|[a-z0-9-]+-[0-9a-f]{32})$`)

func openStore(dir string) (*store, error) {
	s := &store{dir: dir}
	if dir == "" {
		var err error
		s.dir, err = os.MkdirTemp("", "lesskv-verify-")
		s.temporary = true
		return s, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	for _, e := range entries { // who asks for it deletes the folder when the work is done
		if !ours.MatchString(e.Name()) {
			return nil, fmt.Errorf("verify: %s: move it, or choose another folder: %w", filepath.Join(dir, e.Name()), ErrForeign)
		}
	}
	s.lock = flock.New(filepath.Join(dir, "lock"))
	ok, err := s.lock.TryLock()
	if err == nil && !ok {
		err = fmt.Errorf("%s: wait for the run that uses it, or choose another: %w", dir, ErrBusy)
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return s, nil
}

func (s *store) close() {
	if s.temporary {
		os.RemoveAll(s.dir)
	}
	if s.lock != nil {
		s.lock.Close()
	}
}

// has tells whether a piece is there, whole.
func (s *store) has(key string) bool {
	_, ok := s.read(key)
	return ok
}

// read returns a piece as it was encoded, unless it isn't there or is damaged.
func (s *store) read(key string) ([]byte, bool) {
	data, err := os.ReadFile(filepath.Join(s.dir, key))
	if err != nil || len(data) < sha256.Size {
		return nil, false
	}
	sum := sha256.Sum256(data[sha256.Size:])
	return data[sha256.Size:], bytes.Equal(data[:sha256.Size], sum[:])
}

// load reads a piece. One that can't be read is as good as none.
func (s *store) load(key string, to any) bool {
	data, ok := s.read(key)
	return ok && gob.NewDecoder(bytes.NewReader(data)).Decode(to) == nil
}

// save writes a piece: it is there whole or not at all.
func (s *store) save(key string, piece any) error {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(piece)
	if err == nil {
		sum := sha256.Sum256(b.Bytes())
		err = outfile.WriteBytes(filepath.Join(s.dir, key), append(sum[:], b.Bytes()...))
	}
	if err != nil {
		return fmt.Errorf("verify: keeping finished work: %w", err)
	}
	return nil
}

// key names a piece by its kind and everything that it depends on beside the model and the workers.
func (v *verifier) key(kind string, parts ...any) string {
	h := sha256.New()
	e := json.NewEncoder(h)
	all := []any{workFormat, kind, v.sums}
	for _, p := range parts {
		switch p := p.(type) {
		case *run:
			c := p.config
			adapter := ""
			if c.LESS != nil {
				l := *c.LESS
				l.Adapter, c.LESS = "", &l
			}
			if p.adapter != nil {
				adapter = p.adapter.SHA256
			}
			all = append(all, p.tree, c, adapter)
		case *group:
			all = append(all, p.context, p.ubatch)
		default:
			all = append(all, p)
		}
	}
	if err := e.Encode(all); err != nil {
		panic(err) // numbers and strings
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// hashFile returns a file's SHA-256 and its size.
func hashFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, fmt.Errorf("verify: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, fmt.Errorf("verify: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

// hashTokens returns the SHA-256 of tokens.
func hashTokens(all ...[]int32) string {
	h := sha256.New()
	var b [4]byte
	for _, tokens := range all {
		for _, t := range tokens {
			b[0], b[1], b[2], b[3] = byte(t), byte(t>>8), byte(t>>16), byte(t>>24)
			h.Write(b[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
