package bench

import "golang.org/x/sys/unix"

// freeMemory returns the machine's memory: macOS makes room by compressing, and says nothing that would be closer.
func freeMemory() (int64, bool) {
	n, err := unix.SysctlUint64("hw.memsize")
	return int64(n), err == nil
}

// cpuName returns what the system calls the processor.
func cpuName() string {
	name, _ := unix.Sysctl("machdep.cpu.brand_string")
	return name
}
