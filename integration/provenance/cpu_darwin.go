package provenance

import (
	"cmp"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/unix"
)

// CPU returns what the processor calls itself; on arm64 the system says it.
func CPU() string {
	name, _ := unix.Sysctl("machdep.cpu.brand_string")
	return cmp.Or(cpuid.CPU.BrandName, name)
}
