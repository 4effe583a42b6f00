package lesskv

import (
	"strings"

	llama "github.com/go-skynet/go-llama.cpp"
)

// RPC names servers of llama.cpp's RPC backend, each host:port. Their devices come before this machine's own: llama.SetGPULayers fills
// them, llama.SetMainGPU and llama.SetTensorSplit count them first. It goes before LESSKV_RPC. A LESS cache stays in this machine's main
// memory. Whoever reaches a server can read and write its process: never on an open network.
//
// The runtime must be assembled with -backend rpc; else, and where a server does not answer, llama.New returns an error.
func RPC(servers ...string) llama.ModelOption {
	return func(o *llama.ModelOptions) { o.LESSKVRPC = strings.Join(servers, ",") }
}

// HasDevices says whether this runtime was assembled with a backend for devices (-backend), whether or not there are any. Without one
// llama.SetGPULayers warns once and all layers run on the CPU.
func HasDevices() bool { return llama.LESSKVHasDevices() }
