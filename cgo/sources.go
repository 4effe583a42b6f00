// Package cgo carries the C and C++ sources of the project as data: the program that assembles the runtime takes them
// from here, so that it needs neither a C compiler to be built nor a checkout to be run.
//
// The folders below it are kernels (C11, also a Go package of its own) and llama (C++ against llama.cpp; no Go package).
package cgo

import "embed"

// Sources holds kernels/*.c, kernels/*.h, llama/*.cpp and llama/*.h.
//
//go:embed kernels/*.[ch] llama/*.[ch]*
var Sources embed.FS
