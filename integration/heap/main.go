// Command heap reports whether the C heap of a program that links the runtime is glibc's own: before any model, with one loaded with LESS
// off, and with one loaded with LESS on, which sets two of its parameters (plugin/doc.go, "Memory outside the cache").
//
//	go run ./integration/heap
package main

/*
#include <stdlib.h>

#ifdef __GLIBC__
#include <malloc.h>

#if __GLIBC_PREREQ(2, 33)
#define mallinfo mallinfo2
#endif

// glibc maps a large block for itself and, once one was freed, takes blocks of that size from the heap, unless the threshold was set.
// size: more than any time before, so that the heap has no room for it yet.
static int adapts(size_t size) {
    void * volatile p = malloc(size);
    free(p);
    malloc_trim(0);
    const size_t before = (size_t) mallinfo().hblks;
    p = malloc(size);
    const size_t after = (size_t) mallinfo().hblks;
    free(p);
    return before == after;
}
#else
static int adapts(size_t size) { (void) size; return -1; }
#endif
*/
import "C"

import (
	"context"
	"fmt"

	llama "github.com/go-skynet/go-llama.cpp"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/patches/usage"
	lesskv "github.com/lesskv/lesskv/plugin"
)

func main() { usage.Main("heap", run) }

func run(context.Context) error {
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		return err
	}
	size := 1 << 20
	say := func(when string) {
		size *= 3
		fmt.Printf("%s: %s\n", when, map[C.int]string{-1: "not glibc's", 0: "set", 1: "glibc's own"}[C.adapts(C.size_t(size))])
	}
	say("before")
	for _, mode := range []struct {
		name   string
		option llama.ModelOption
	}{{"off", lesskv.Disable()}, {"on", lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64)})}} {
		model, err := llama.New(path, llama.SetContext(128), mode.option)
		if err != nil {
			return err
		}
		model.Free()
		say(mode.name)
	}
	return nil
}
