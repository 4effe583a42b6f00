//go:build unix

package limits

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Peak returns the most bytes of memory that this process has occupied at any one time; 0 if the system does not say.
func Peak() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(u.Maxrss) // in bytes there, in KiB elsewhere
	}
	return int64(u.Maxrss) << 10
}
