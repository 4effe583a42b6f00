//go:build !darwin

package provenance

import "github.com/klauspost/cpuid/v2"

// cpuName returns what the processor calls itself.
func cpuName() string { return cpuid.CPU.BrandName }
