// Package command runs the programs that an assembly needs.
package command

import (
	"context"
	"os/exec"
	"time"
)

// New is exec.CommandContext, but the end of the context is that of the processes too that the program has started: a compiler is a
// driver and its passes, and git has helpers that speak to the network.
func New(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	killWithChildren(cmd)
	cmd.WaitDelay = 5 * time.Second // for what survives that, and holds the output open
	return cmd
}

// Run is cmd.Run, but where the command's context has ended the error is the cause of that, and not what the program died of.
func Run(ctx context.Context, cmd *exec.Cmd) error {
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
