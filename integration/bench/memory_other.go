//go:build !linux && !darwin

package bench

func freeMemory() (int64, bool) { return 0, false }

func cpuName() string { return "" }
