// Package testdata holds the small real model gopher-5m, adapters trained for it, and text that it has never seen, for the
// demo and the tests: README.md is their card. They are embedded, so that a binary finds them wherever it runs.
package testdata

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lesskv/lesskv/weights/outfile"
)

// Names of the files. An adapter's name ends in its policy and budget; at their context of 2,048 tokens, 102 is 5 % and 41 is 2 %.
const (
	Model   = "gopher-5m.gguf"
	H2O102  = "gopher-5m.h2o-102.lesskv.gguf"
	H2O41   = "gopher-5m.h2o-41.lesskv.gguf"
	Peak102 = "gopher-5m.peak-102.lesskv.gguf"
	Peak41  = "gopher-5m.peak-41.lesskv.gguf"
	Lambda  = "gopher-5m.lambda-102.lesskv.gguf" // for 41 and 204 too

	Heldout = "heldout.txt"         // Go source, 1.1 MB
	Windows = "heldout-windows.u16" // six windows of its tokens, little-endian: [6][2048]
)

// Names of files of a checkout alone (InCheckout): they are not embedded, and the module that apps download does not have them. The
// reference adapters are another program's, by which this one is judged.
const (
	RecallModel = "recall/gopher-recall-5m.gguf"
	TrainSample = "checkout/train-sample.txt" // Go source, 3 MB
	Prose       = "checkout/prose.txt"        // a text that is not Go

	ReferenceH2O102  = "checkout/gopher-5m.reference-h2o-102.lesskv.gguf"
	ReferenceH2O41   = "checkout/gopher-5m.reference-h2o-41.lesskv.gguf"
	ReferencePeak102 = "checkout/gopher-5m.reference-peak-102.lesskv.gguf"
	ReferencePeak41  = "checkout/gopher-5m.reference-peak-41.lesskv.gguf"
)

//go:embed *.gguf heldout.txt heldout-windows.u16
var files embed.FS

// Adapters returns the names of all adapters that are embedded.
func Adapters() []string {
	names, err := fs.Glob(files, "*.lesskv.gguf")
	if err != nil {
		panic(err) // the pattern is right
	}
	return names
}

// Read returns the content of a file.
func Read(name string) ([]byte, error) { return files.ReadFile(name) }

// InCheckout returns the path of a file in the checkout that dir is in, its root or below.
func InCheckout(dir, name string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(dir, "integration", "testdata", name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("integration/testdata/%s: %w: it is in a checkout, and not in the module that apps download", name, fs.ErrNotExist)
		}
		dir = up
	}
}

// Path puts a file under the user's cache directory, or the system's temporary one where there is none, unless it is there
// already, and returns its path. All files lie in one folder. It may be called by several processes at once.
func Path(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return PathIn(filepath.Join(cache, "lesskv", "testdata"), name)
}

// PathIn does as Path does, in a folder of the caller's choice, which it makes.
func PathIn(dir, name string) (path string, err error) {
	want, err := Read(name)
	if err != nil {
		return "", fmt.Errorf("no such test file: %w", err)
	}
	path = filepath.Join(dir, name)
	if got, err := os.ReadFile(path); err == nil && bytes.Equal(got, want) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return path, outfile.WriteBytes(path, want)
}
