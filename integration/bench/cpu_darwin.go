package bench

import "golang.org/x/sys/unix"

// cpuName returns what the system calls the processor.
func cpuName() string {
	name, _ := unix.Sysctl("machdep.cpu.brand_string")
	return name
}
