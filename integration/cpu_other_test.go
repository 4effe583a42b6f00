//go:build !linux

package integration

import "testing"

// onOneCPU runs f, where no process can be kept to one CPU.
func onOneCPU(_ *testing.T, f func()) { f() }
