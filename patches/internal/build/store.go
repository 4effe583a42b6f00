package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lesskv/lesskv/patches/internal/tree"
)

// A Store is a folder of objects. An object's name holds the hash of all that went into it. Which headers go into
// it is known only once it was compiled, so it is found in two steps: the source key (source, flags, compiler) leads to
// a list of headers, and that list with the headers' contents leads to the object.
//
//	NAME-SOURCEKEY.deps   JSON, see record
//	NAME-OBJECTKEY.o
//
// NAME is the path of the source with _ for /, so that names in an archive are unique, and readable.
type Store struct{ Dir string }

// A record is what is known of the objects of one source key.
type record struct {
	Headers [][]string        `json:"headers"` // the lists of headers that the source was seen to include
	Sums    map[string]string `json:"sums"`    // SHA-256 of the objects, by object key
	Quiet   map[string]bool   `json:"quiet"`   // by object key: the compiler had nothing to warn of
}

// keyLen is how many hex digits of a SHA-256 a name holds.
const keyLen = 20

// sourceKey is the hash of what is known of an object before it is compiled.
func sourceKey(u Unit, compiler []string, hashes map[string]string) string {
	return digest(u.Source, hashes[u.Source], u.Identity, strings.Join(compiler, "\x00"), strings.Join(u.Flags, "\x00"))
}

// objectKey adds the headers: their paths and contents. A header that is gone has the hash "".
func objectKey(sourceKey string, headers []string, hashes map[string]string) string {
	parts := []string{sourceKey}
	for _, h := range headers {
		parts = append(parts, h, hashes[h])
	}
	return digest(parts...)
}

func digest(parts ...string) string {
	data, _ := json.Marshal(parts) // strings only: it can't fail
	return tree.Hash(data)[:keyLen]
}

func (s *Store) path(source, key, ext string) string {
	return filepath.Join(s.Dir, strings.ReplaceAll(source, "/", "_")+"-"+key+ext)
}

func (s *Store) temporary(source, key string) string {
	return s.path(source, key, fmt.Sprintf(".tmp%d", os.Getpid()))
}

// Lookup finds the object of a source with the given key among files with the given hashes, and marks it as used. quiet: only one that is
// known to have been compiled without a warning.
func (s *Store) Lookup(source, key string, hashes map[string]string, quiet bool) (string, bool) {
	r := s.record(source, key)
	for _, headers := range r.Headers {
		k := objectKey(key, headers, hashes)
		if quiet && !r.Quiet[k] {
			continue
		}
		object := s.path(source, k, ".o")
		if data, err := os.ReadFile(object); err != nil || tree.Hash(data) != r.Sums[k] {
			continue // gone, or damaged: it is compiled anew
		}
		now := time.Now()
		os.Chtimes(object, now, now)
		os.Chtimes(s.path(source, key, ".deps"), now, now)
		return object, true
	}
	return "", false
}

// record reads what is known of a source key: nothing if there is no such file or it is damaged.
func (s *Store) record(source, key string) (r record) {
	data, err := os.ReadFile(s.path(source, key, ".deps"))
	if err != nil || json.Unmarshal(data, &r) != nil {
		r = record{}
	}
	if r.Sums == nil {
		r.Sums = map[string]string{}
	}
	if r.Quiet == nil {
		r.Quiet = map[string]bool{}
	}
	return r
}

// put moves a fresh object into the store and returns its path there.
func (s *Store) put(source, key string, headers []string, hashes map[string]string, object string, quiet bool) (string, error) {
	k := objectKey(key, headers, hashes)
	to := s.path(source, k, ".o")
	data, err := os.ReadFile(object)
	if err != nil {
		return "", err
	}
	if err := os.Rename(object, to); err != nil {
		return "", err
	}
	r := s.record(source, key)
	if !slices.ContainsFunc(r.Headers, func(l []string) bool { return slices.Equal(l, headers) }) {
		r.Headers = append(r.Headers, headers)
	}
	r.Sums[k], r.Quiet[k] = tree.Hash(data), quiet
	for k := range r.Sums {
		if _, err := os.Stat(s.path(source, k, ".o")); err != nil { // pruned
			delete(r.Sums, k)
			delete(r.Quiet, k)
		}
	}
	data, err = json.Marshal(r)
	if err != nil {
		return "", err
	}
	return to, tree.WriteFile(s.path(source, key, ".deps"), data)
}

// Prune deletes what was not used since the given time.
func (s *Store) Prune(since time.Time) error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.ModTime().Before(since) {
			if err := os.Remove(filepath.Join(s.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// headers reads a compiler's list of dependencies (a makefile rule) and returns those that are files of the tree, the source
// itself apart. The others are the system's; the compiler's identity stands for them.
func headers(rule []byte, source string, hashes map[string]string) []string {
	list := []string{}
	for _, word := range strings.Fields(strings.ReplaceAll(string(rule), "\\\n", " ")) {
		p := path.Clean(word)
		if _, ok := hashes[p]; ok && p != source {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
