//go:build !unix

package source

import "os/exec"

// killWithChildren does nothing here: nothing is ever fetched on such a system.
func killWithChildren(*exec.Cmd) {}
