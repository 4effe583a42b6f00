//go:build cgo

package provenance

import (
	"path/filepath"
	"runtime"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/patches/layout"
)

// Of describes this program, this machine, and the assembled runtime that a worker belongs to.
func Of(worker string) Build {
	b := Runtime(worker)
	b.Commit, b.CPU, b.System, b.ISA = Version(), CPU(), runtime.GOOS+"/"+runtime.GOARCH, kernels.Level()
	return b
}

// Runtime describes the assembled runtime that a worker belongs to, alone: nothing of a worker that lies alone.
func Runtime(worker string) (b Build) {
	if stamp, err := layout.Layout(filepath.Dir(filepath.Dir(worker))).Stamp(); err == nil {
		b.Compiler, b.Flags = stamp.Compiler, stamp.Flags
	}
	return b
}
