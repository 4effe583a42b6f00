package limits

import "strings"

// free returns the machine's bytes that new processes can have without swapping.
func free() (int64, bool) {
	for line := range strings.Lines(system("/").read("proc/meminfo")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			return number(f[1]) << 10, true
		}
	}
	return 0, false
}
