//go:build !asan

package fuzztest

import (
	"fmt"
	"os"
	"strings"
)

// Peak runs f and returns by how many bytes the process's peak of resident memory grew meanwhile, C's part too. The error is of the system,
// which may not tell.
func Peak(f func()) (grown int64, err error) {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // the peak begins anew
		return 0, err
	}
	before, err := peak()
	if err != nil {
		return 0, err
	}
	f()
	after, err := peak()
	return after - before, err
}

func peak() (bytes int64, err error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(text), "VmHWM:")
	var kib int64
	_, err = fmt.Sscan(line, &kib)
	return kib << 10, err
}
