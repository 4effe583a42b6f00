// Package provenance says which build of lesskv made a report, and on which machine: what its numbers depend on beside its input.
package provenance

import (
	"fmt"
	"strings"
)

// A Build made a report. It has no time, so that equal inputs give equal reports of one build on one machine. What is not known is
// empty: all of it in a report that is older than the field.
type Build struct {
	Commit   string `json:"commit,omitempty"`   // of lesskv: what Version says
	CPU      string `json:"cpu,omitempty"`      // as the processor calls itself
	System   string `json:"system,omitempty"`   // GOOS/GOARCH
	Compiler string `json:"compiler,omitempty"` // of the runtime
	Flags    string `json:"flags,omitempty"`    // that it was compiled with for this CPU
	ISA      string `json:"isa,omitempty"`      // instruction sets that LESS's inner loops use: kernels.Level
}

// Tools says which lesskv and which compiler, or nothing.
func (b Build) Tools() string {
	var parts []string
	add := func(format, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	add("lesskv %s", b.Commit)
	add("compiled by %s", b.Compiler)
	add("with %s", b.Flags)
	add("kernels for %s", b.ISA)
	return strings.Join(parts, ", ")
}

// Line says all of it, or nothing.
func (b Build) Line() string {
	tools := b.Tools()
	if tools == "" {
		return ""
	}
	return fmt.Sprintf("Measured by %s; on %s (%s).", tools, b.CPU, b.System)
}
