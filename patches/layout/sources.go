package layout

import (
	"os"
	"path/filepath"

	"github.com/lesskv/lesskv/patches/pins"
)

// SourcesVariable is the environment variable that names a folder with llama.cpp, which goes before every other way to get it.
const SourcesVariable = "LESSKV_LLAMA"

// KeptSources is the folder in the user's cache directory that has the pinned release of llama.cpp once it was fetched.
func KeptSources() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "lesskv", "sources", "llama.cpp-"+pins.Llama.Tag), err
}
