// Command lesskv runs language models with a KV cache that does not grow.
//
//	lesskv run "func main() {"      a small model that is built in
//	lesskv run -m model.gguf -f prompt.txt
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitChecks      = 3   // verify: measured, and something does not hold
	exitInterrupted = 130 // as a shell has it for SIGINT
)

// A usageError is a wrong command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

var errInterrupted = errors.New("interrupted")

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// execute runs a command line and returns its exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "lesskv",
		Short:         "Language models with a KV cache that does not grow",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetArgs(spell(args))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newRun(), newTrain(), newMerge(), newImport(), newVerify(), newBench())

	command, err := root.ExecuteContextC(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, errChecks):
		fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), err)
		return exitChecks
	case errors.As(err, &usage) || command == root: // cobra's own errors, like an unknown command
		fmt.Fprintf(stderr, "%s: %v\nsee %s -h\n", command.CommandPath(), err, command.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), err)
	return exitFailed
}

// spell turns -text, as Go's own flags are written, into --text; it would be -t with the value ext.
func spell(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		if a == "--" {
			break
		}
		if a == "-text" || strings.HasPrefix(a, "-text=") {
			out[i] = "-" + a
		}
	}
	return out
}
