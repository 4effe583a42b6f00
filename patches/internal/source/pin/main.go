// Command pin prints the sums of what is used of a llama.cpp release in a folder: pins/llama.cpp.sums, with -tests
// pins/llama.cpp-tests.sums, and with -devices pins/llama.cpp-devices.sums.
package main

import (
	"fmt"
	"os"

	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

func main() {
	part, args := source.Runtime, os.Args[1:]
	if len(args) > 0 && args[0] == "-tests" {
		part, args = source.Tests, args[1:]
	} else if len(args) > 0 && args[0] == "-devices" {
		part, args = source.Devices, args[1:]
	}
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "usage: pin [-tests | -devices] FOLDER > patches/pins/llama.cpp.sums (llama.cpp-tests.sums, llama.cpp-devices.sums)")
		os.Exit(2)
	}
	files := tree.Tree{}
	err := files.AddFS(os.DirFS(args[0]), func(p string) string {
		if part.Wants(p) {
			return p
		}
		return ""
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "pin:", err)
		os.Exit(1)
	}
	for _, p := range files.Paths() {
		fmt.Printf("%s  %s\n", tree.Hash(files[p]), p)
	}
}
