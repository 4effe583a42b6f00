//go:build !unix

package build

import "os/exec"

// killWithChildren does nothing here: nothing is ever compiled on such a system.
func killWithChildren(*exec.Cmd) {}
