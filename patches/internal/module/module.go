// Package module fetches pinned Go modules through the go command and proves that they are what was pinned.
package module

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/dirhash"

	"github.com/lesskv/lesskv/patches/internal/command"
	"github.com/lesskv/lesskv/patches/pins"
)

// A CorruptError says that a module is not the pinned one, byte for byte.
type CorruptError struct {
	Module pins.Module
	Dir    string // its folder in the module cache; "" if it is the download that differs
	File   string // the first file in it that differs; "" if unknown
	Got    string // the sum found
}

func (e *CorruptError) Error() string {
	if e.Dir == "" {
		return fmt.Sprintf("module %s: the download has the sum %s, want %s: the proxy serves something else; check GOPROXY",
			e.Module, e.Got, e.Module.Sum)
	}
	where := "the files in " + e.Dir
	if e.File != "" {
		where = fmt.Sprintf("%s is not what was downloaded: the files in %s", e.File, e.Dir)
	}
	return fmt.Sprintf("module %s: %s have the sum %s, want %s; delete that folder (go clean -modcache deletes all) and run again",
		e.Module, where, e.Got, e.Module.Sum)
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

	cmd := command.New(ctx, "go", "mod", "download", "-json", m.String())
	cmd.Dir = empty
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "GO111MODULE=on")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := command.Run(ctx, cmd)
	if runErr != nil && ctx.Err() != nil {
		return "", runErr
	}
	if errors.Is(runErr, exec.ErrNotFound) {
		return "", fmt.Errorf("module %s: the go command is not in PATH: %w", m, runErr)
	}
	var answer struct{ Dir, Zip, Sum, Error string }
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
	got, err := dirhash.HashDir(answer.Dir, m.String(), dirhash.Hash1)
	if err != nil {
		return "", fmt.Errorf("module %s: %w", m, err)
	}
	if got != m.Sum {
		return "", &CorruptError{Module: m, Dir: answer.Dir, File: differs(m, answer.Zip, answer.Dir), Got: got}
	}
	return answer.Dir, nil
}

// differs returns the first file that dir and the module's zip do not have alike; "" if the zip can't tell.
func differs(m pins.Module, zipFile, dir string) string {
	z, err := zip.OpenReader(zipFile)
	if err != nil {
		return ""
	}
	defer z.Close()
	known := map[string]bool{}
	for _, f := range z.File {
		name := strings.TrimPrefix(f.Name, m.String()+"/")
		known[name] = true
		r, err := f.Open()
		if err != nil {
			return ""
		}
		want, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return ""
		}
		if have, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name))); err != nil || !bytes.Equal(have, want) {
			return name
		}
	}
	names, err := dirhash.DirFiles(dir, "")
	if err != nil {
		return ""
	}
	for _, name := range names {
		if !known[name] {
			return name
		}
	}
	return ""
}
