package main

// A target reads what others wrote: a fuzz function of a Go package, or a libFuzzer harness of this folder.
type target struct {
	name    string
	reads   string // what is read, and by what
	pkg     string // of a Go target, from the repository's root
	fuzz    string // the function
	harness string // file in harness/, of a C or C++ target
	sources []string
}

// targets are all of them; a test compares the Go ones with the repository.
func targets() []target {
	cc := []string{"*.c"}
	llama := []string{"*.c", "lesskv-*.cpp"}
	return []target{
		{name: "gguf", reads: "GGUF files, Go", pkg: "weights/gguf", fuzz: "FuzzParse"},
		{name: "adapter-go", reads: "adapters, Go", pkg: "weights", fuzz: "FuzzRead"},
		{name: "adapter", reads: "adapters, C++", harness: "adapter.cpp", sources: llama},
		{name: "model", reads: "a model's header, Go", pkg: "weights", fuzz: "FuzzReadModel"},
		{name: "cache-go", reads: "a layer's saved cache, through Go", pkg: "cgo/kernels", fuzz: "FuzzLoad"},
		{name: "cache", reads: "a layer's saved cache, C", harness: "load.c", sources: cc},
		{name: "state", reads: "a sequence's state, C++", harness: "state.cpp", sources: llama},
		{name: "state-file", reads: "state files and prompt caches, by LoadState", pkg: "plugin", fuzz: "FuzzLoadState"},
		{name: "state-off", reads: "the same, with LESS off", pkg: "plugin", fuzz: "FuzzLoadStateOff"},
		{name: "checkpoint", reads: "PyTorch checkpoints", pkg: "weights/importer", fuzz: "FuzzImport"},
		{name: "pickle", reads: "the pickle in them", pkg: "weights/importer", fuzz: "FuzzPickle"},
		{name: "patch", reads: "patches", pkg: "patches/internal/series", fuzz: "FuzzParse"},
		{name: "budget", reads: "budgets", pkg: "plugin", fuzz: "FuzzBudget"},
		{name: "flags", reads: "flags", pkg: "plugin", fuzz: "FuzzFlags"},
		{name: "flag-values", reads: "values of the command's flags", pkg: "cmd/lesskv", fuzz: "FuzzFlagValues"},
		{name: "grammar", reads: "grammars, by Predict", pkg: "plugin", fuzz: "FuzzGrammar"},
		{name: "requirement", reads: "requirements of verify", pkg: "integration/verify", fuzz: "FuzzRequirement"},
		{name: "prompts", reads: "prompts of verify", pkg: "cmd/lesskv", fuzz: "FuzzPrompts"},
		{name: "words", reads: "commands of compilers", pkg: "patches/quoted", fuzz: "FuzzWords"},
		{name: "report", reads: "reports of verify", pkg: "integration/verify/page", fuzz: "FuzzReport"},
		{name: "result", reads: "results of bench", pkg: "integration/bench", fuzz: "FuzzRead"},
		{name: "wire", reads: "requests, in the worker (C++)", harness: "wire.cpp"},
		{name: "reply", reads: "replies, from the worker", pkg: "integration/worker", fuzz: "FuzzReply"},
		{name: "request", reads: "requests as they are written", pkg: "integration/worker", fuzz: "FuzzRequest"},
	}
}
