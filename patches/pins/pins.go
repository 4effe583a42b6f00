// Package pins names the exact sources that the runtime is assembled from.
package pins

import (
	_ "embed"
	"strings"
)

// Self is the module that this program belongs to.
const Self = "github.com/lesskv/lesskv"

// A Module is one version of a Go module in the module cache.
type Module struct {
	Path    string
	Version string
	Sum     string // as in go.sum: a dirhash.Hash1 of all its files
}

func (m Module) String() string { return m.Path + "@" + m.Version }

// GoLlama is the Go API that apps are written for. The module proxy serves this version only.
var GoLlama = Module{
	Path:    "github.com/go-skynet/go-llama.cpp",
	Version: "v0.0.0-20240314183750-6a8041ef6b46",
	Sum:     "h1:lALhXzDkqtp12udlDLLg+ybXVMmL7Ox9tybqVLWxjPE=",
}

// A Release is one version of llama.cpp as its authors published it.
type Release struct {
	Version    string
	Tag        string
	Repository string            // upstream's, public
	Package    string            // an npm package that carries the release
	Bundle     string            // in it: a git bundle with the release as one commit
	Tree       string            // git's hash of all files of that commit
	Sums       map[string]string // SHA-256 of the files that are used
	Tests      map[string]string // and of those that upstream's own tests are made of, which the tests of this project fetch
	Devices    map[string]string // and of ggml's backends beside the CPU's, which a run fetches that is asked for one
}

// Name is what a folder that has the release is called.
func (r Release) Name() string { return "llama.cpp-" + r.Tag }

// Llama is the llama.cpp that the runtime is made of.
var Llama = Release{
	Version:    "0.5.0",
	Tag:        "v0.5.0",
	Repository: "https://github.com/ggml-org/llama.cpp",
	Package:    "node-llama-cpp@3.22.1",
	Bundle:     "llama/gitRelease.bundle",
	Tree:       "fd570ef54b10ec5fecb739e7e04c8ce44a6f415a",
	Sums:       sums(llamaSums),
	Tests:      sums(llamaTests),
	Devices:    sums(llamaDevices),
}

var (
	//go:embed llama.cpp.sums
	llamaSums string
	//go:embed llama.cpp-tests.sums
	llamaTests string
	//go:embed llama.cpp-devices.sums
	llamaDevices string
)

// sums reads the lines of a file as sha256sum writes it.
func sums(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if sum, path, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			m[path] = sum
		}
	}
	return m
}
