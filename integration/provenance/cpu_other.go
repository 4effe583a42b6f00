//go:build !darwin

package provenance

import "github.com/klauspost/cpuid/v2"

// CPU returns what the processor calls itself.
func CPU() string { return cpuid.CPU.BrandName }
