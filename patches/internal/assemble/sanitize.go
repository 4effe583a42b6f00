package assemble

import (
	"strings"

	"github.com/lesskv/lesskv/patches/usage"
)

// A sanitizing says what a runtime for tests has under the sanitizers (-sanitize).
type sanitizing string

const (
	sanitizeNothing sanitizing = ""
	// All but ggml's loops over numbers and the models' graphs: of the compilers' time and the tests' that is most, and next to nothing
	// there allocates, frees, or keeps a pointer.
	sanitizePart sanitizing = "part"
	sanitizeAll  sanitizing = "all"
)

// check refuses what -sanitize does not know.
func (s sanitizing) check() error {
	switch s {
	case sanitizeNothing, sanitizePart, sanitizeAll:
		return nil
	}
	return usage.Errorf("-sanitize %q: want part or all", string(s))
}

// flags are those of a source, beside what it is compiled with anyway. This project's have the sanitizer of undefined behaviour too.
func (s sanitizing) flags(p string) []string {
	switch {
	case s == sanitizeNothing:
		return nil
	case strings.HasPrefix(p, less):
		return []string{"-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}
	case s == sanitizePart && (strings.HasPrefix(p, ggmlLoops) || p == allModels):
		return nil
	}
	return []string{"-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address"}
}

// libs are what a program with such sources is linked with.
func (s sanitizing) libs() []string {
	if s == sanitizeNothing {
		return nil
	}
	return []string{"-fsanitize=address,undefined"}
}
