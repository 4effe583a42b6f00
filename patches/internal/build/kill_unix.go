//go:build unix

package build

import (
	"os/exec"
	"syscall"
)

// killWithChildren makes the end of a command's context the end of the processes that it started, too: a compiler is a
// driver and its passes.
func killWithChildren(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
