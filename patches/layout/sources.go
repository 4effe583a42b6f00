package layout

import (
	"os"
	"path/filepath"

	"github.com/lesskv/lesskv/patches/pins"
)

// SourcesVariable is the environment variable that names a folder with llama.cpp, which goes before every other way to get it.
const SourcesVariable = "LESSKV_LLAMA"

// SourcesFolder is the folder in the user's cache directory in which releases of llama.cpp are kept.
func SourcesFolder() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "lesskv", "sources"), err
}

// KeptSources is the folder there that has the pinned release once it was fetched.
func KeptSources() (string, error) {
	dir, err := SourcesFolder()
	return filepath.Join(dir, pins.Llama.Name()), err
}
