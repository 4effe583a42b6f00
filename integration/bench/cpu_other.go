//go:build !linux && !darwin

package bench

func cpuName() string { return "" }
