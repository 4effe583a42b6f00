//go:build unix

package source

import (
	"os/exec"
	"syscall"
)

// killWithChildren makes the end of a command's context the end of the processes that it started, too: git has
// helpers that speak to the network.
func killWithChildren(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
