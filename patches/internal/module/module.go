// Package module fetches pinned Go modules through the go command and proves that they are what was pinned.
package module

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/lesskv/lesskv/patches/internal/pins"
)

// A CorruptError says that a module is not the pinned one, byte for byte.
type CorruptError struct {
	Module pins.Module
	Dir    string // its folder in the module cache; "" if it is the download that differs
	Got    string // the sum found
}

func (e *CorruptError) Error() string {
	if e.Dir == "" {
		return fmt.Sprintf("module %s: the download has the sum %s, want %s: the proxy serves something else; check GOPROXY",
			e.Module, e.Got, e.Module.Sum)
	}
	return fmt.Sprintf("module %s: the files in %s have the sum %s, want %s: they were changed after the download; delete that folder (go clean -modcache deletes all) and run again",
		e.Module, e.Dir, e.Got, e.Module.Sum)
}

// Fetch downloads m into the module cache, unless it is there, and returns its folder. Both the download's sum and the
// extracted files are compared with the pin; a difference is a *CorruptError.
func Fetch(ctx context.Context, m pins.Module) (string, error) {
	// An empty folder: inside a module, go mod download could write to its go.sum.
	empty, err := os.MkdirTemp("", "lesskv-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(empty)

	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", m.String())
	cmd.Dir = empty
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "GO111MODULE=on")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()
	if errors.Is(runErr, exec.ErrNotFound) {
		return "", fmt.Errorf("module %s: the go command is not in PATH: %w", m, runErr)
	}
	var answer struct{ Dir, Sum, Error string }
	if err := json.Unmarshal(stdout.Bytes(), &answer); err != nil || runErr != nil {
		why := answer.Error
		if why == "" {
			why = strings.TrimSpace(stderr.String())
		}
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), errors.Join(runErr, err), why)
	}
	if answer.Sum != m.Sum {
		return "", &CorruptError{Module: m, Got: answer.Sum}
	}
	return answer.Dir, Verify(m, answer.Dir)
}

// Verify compares the files under dir with m's sum.
func Verify(m pins.Module, dir string) error {
	got, err := dirhash.HashDir(dir, m.String(), dirhash.Hash1)
	if err != nil {
		return fmt.Errorf("module %s: %w", m, err)
	}
	if got != m.Sum {
		return &CorruptError{Module: m, Dir: dir, Got: got}
	}
	return nil
}
