package provenance

import (
	"cmp"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/unix"
)

// cpuName returns what the processor calls itself; on arm64 the system says it.
func cpuName() string {
	name, _ := unix.Sysctl("machdep.cpu.brand_string")
	return cmp.Or(cpuid.CPU.BrandName, name)
}
