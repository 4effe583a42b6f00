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
	b := Build{Commit: Version(), CPU: cpuName(), System: runtime.GOOS + "/" + runtime.GOARCH, ISA: kernels.Level()}
	if stamp, err := layout.Layout(filepath.Dir(filepath.Dir(worker))).Stamp(); err == nil { // else a worker that lies alone
		b.Compiler, b.Flags = stamp.Compiler, stamp.Flags
	}
	return b
}
