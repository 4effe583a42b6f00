// Package usage is what the main functions of this project share. It tells a wrong command line from what could not be done: programs
// end with 2 and 1 for these.
package usage

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// An Error is a wrong command line.
type Error struct{ err error }

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Errorf is fmt.Errorf for a wrong command line.
func Errorf(format string, args ...any) error { return &Error{fmt.Errorf(format, args...)} }

// Status returns the exit status of a program that ends with an error, or with none.
func Status(err error) int {
	wrong := (*Error)(nil)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &wrong):
		return 2
	}
	return 1
}

// NoArguments refuses what is on a command line beside flags.
func NoArguments(f *flag.FlagSet) error {
	if f.NArg() > 0 {
		return Errorf("unexpected argument %q: everything is a flag, see -help", f.Arg(0))
	}
	return nil
}

// Interruptible returns a context that ends with the first SIGINT or SIGTERM. The second ends the program: what is not to be
// interrupted may take long.
func Interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// Main is the main function of a program that takes flags alone, those of flag.CommandLine: it parses them and calls run with an
// Interruptible context. Where run fails, the program says so behind its name and ends with the error's Status.
func Main(name string, run func(context.Context) error) {
	flag.Parse()
	ctx, stop := Interruptible(context.Background())
	defer stop()
	err := NoArguments(flag.CommandLine)
	if err == nil {
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(Status(err))
	}
}

// WorkFolder is where a program keeps its work if it was not told where: in the user's cache directory, or in the system's temporary
// one where there is none.
func WorkFolder(program string) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "lesskv", program)
}
