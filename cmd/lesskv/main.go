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
	"github.com/spf13/pflag"

	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/weights/memory"
)

// Exit statuses.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitChecks      = 3   // something that was required does not hold
	exitInterrupted = 130 // as a shell has it for SIGINT
)

// A usageError is a wrong command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

var errInterrupted = errors.New("interrupted")

// errChecks is a report in which something does not hold.
var errChecks = errors.New("checks failed")

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// newRoot returns the command with those below it.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "lesskv",
		Short:         "Language models with a KV cache that does not grow",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 80"))
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := findRuntime(); err != nil {
			return err
		}
		if err := checkEmpty(cmd); err != nil {
			return err
		}
		warnEarlierNames(cmd)
		return nil
	}
	root.AddCommand(newPlan(), newInspect(), newMerge(), newImport(), newVersion(), newDoctor())
	root.Version = provenance.Version()
	root.AddCommand(runtimeCommands()...)
	if err := complete(root); err != nil {
		panic(err) // a flag that is not there, or twice
	}
	return root
}

// findRuntime makes the runtime that is linked the one whose worker is used, where the working directory has none.
func findRuntime() error {
	if _, err := layout.Find("."); err == nil || os.Getenv(layout.Variable) != "" || linkedFolder() == "" {
		return nil // what is missing, who needs it says
	}
	return os.Setenv(layout.Variable, linkedFolder())
}

// execute runs a command line and returns its exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(spell(args))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	var usage usageError
	said := strings.TrimPrefix(fmt.Sprint(err), command.Name()+": ") // packages are called as their commands
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, errChecks) || errors.Is(err, errNothingFits):
		fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), said)
		return exitChecks
	case errors.As(err, &usage) || slices.ContainsFunc(append(senseless, memory.ErrBudget), func(e error) bool { return errors.Is(err, e) }) ||
		command == root: // cobra's own errors, like an unknown command
		fmt.Fprintf(stderr, "%s: %v\nsee %s -h\n", command.CommandPath(), said, command.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), said)
	return exitFailed
}

// arguments are what commands take beside flags.
var arguments = map[string]string{"run": "prompt", "inspect": "file", "merge": "file", "import": "folder", "bench": "model"}

// flagError says which flag is wrong, and of an unknown one what may have been meant.
func flagError(cmd *cobra.Command, err error) error {
	var wrong *pflag.InvalidValueError
	var unknown *pflag.NotExistError
	switch {
	case errors.As(err, &wrong):
		err = fmt.Errorf("--%s %s: %w", wrong.GetFlag().Name, wrong.GetValue(), errors.Unwrap(wrong))
	case errors.As(err, &unknown):
		if what, ok := arguments[cmd.Name()]; ok {
			err = fmt.Errorf("%w; a %s that begins with - goes behind --, as in lesskv %s -- -x", err, what, cmd.Name())
		}
	}
	return usageError{err}
}

// checkEmpty refuses flags that were given nothing, as by a shell variable that is not set: their defaults are not what was meant.
func checkEmpty(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if s, ok := f.Value.(pflag.SliceValue); ok {
			values = s.GetSlice()
		} else if f.Value.Type() != "string" {
			return
		}
		if len(values) == 0 || slices.Contains(values, "") {
			err = usageError{fmt.Errorf("--%s is empty: give it something, or leave it out", f.Name)}
		}
	})
	return err
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
