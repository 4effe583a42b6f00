// Command pin prints the sums of what is used of a llama.cpp release in a folder: pins/llama.cpp.sums.
package main

import (
	"fmt"
	"os"

	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: pin FOLDER > patches/pins/llama.cpp.sums")
		os.Exit(2)
	}
	files := tree.Tree{}
	err := files.AddFS(os.DirFS(os.Args[1]), func(p string) string {
		if source.Wanted(p) {
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
