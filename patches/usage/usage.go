// Package usage tells a wrong command line from what could not be done. Programs of this project end with 2 and 1 for these.
package usage

import (
	"errors"
	"flag"
	"fmt"
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
