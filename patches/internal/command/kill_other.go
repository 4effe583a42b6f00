//go:build !unix

package command

import "os/exec"

// killWithChildren does nothing here: nothing is ever assembled on such a system.
func killWithChildren(*exec.Cmd) {}
