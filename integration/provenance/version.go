package provenance

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
)

const module = "github.com/lesskv/lesskv"

// Version returns lesskv's version and commit: those that the go command recorded, or, as it records none for go run and go test, the
// commit that git has checked out where this program's source lies.
var Version = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	text, commit, changed := recorded(info)
	if text == "" {
		text = "(devel)"
	}
	if text == "(devel)" && commit == "" {
		commit, changed = checkedOut()
	}
	if commit != "" {
		text += fmt.Sprintf(", commit %.12s", commit)
	}
	if changed {
		text += ", with changes"
	}
	return text
})

// recorded finds this module in a program: the program's own, or one that an app requires. A commit is recorded of the program's own alone.
func recorded(info *debug.BuildInfo) (version, commit string, changed bool) {
	for _, m := range info.Deps {
		if m.Path == module {
			return m.Version, "", false
		}
	}
	if info.Main.Path != module {
		return "", "", false
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.modified":
			changed = s.Value == "true"
		}
	}
	return info.Main.Version, commit, changed
}

// checkedOut asks git for the commit of this file's folder. A program that was built with -trimpath does not know where that is.
func checkedOut() (commit string, changed bool) {
	_, file, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(file) {
		return "", false
	}
	out, err := exec.Command("git", "-C", filepath.Dir(file), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty").Output()
	if err != nil {
		return "", false
	}
	return strings.CutSuffix(strings.TrimSpace(string(out)), "-dirty")
}
