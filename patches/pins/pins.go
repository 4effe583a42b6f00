// Package pins names the exact sources that the runtime is assembled from.
package pins

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

// Ollama is the module that carries the llama.cpp sources.
var Ollama = Module{
	Path:    "github.com/ollama/ollama",
	Version: "v0.17.4",
	Sum:     "h1:X3KNm9x4BlHqk/AXMGtC7pBAFd46nmJmy8yDaBZLo9s=",
}

// LlamaCommit is the llama.cpp commit that Ollama's sources are based on.
const LlamaCommit = "ec98e2002"
