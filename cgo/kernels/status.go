package kernels

/*
#include "lesskv.h"
*/
import "C"

import "fmt"

// A Status is the reason why the C side refused; errors of this package wrap one.
type Status int

// The reasons.
const (
	ErrNoMemory Status = C.LESSKV_ERR_NOMEM  // memory could not be had
	ErrArgument Status = C.LESSKV_ERR_ARG    // a parameter makes no sense
	ErrFolded   Status = C.LESSKV_ERR_FOLDED // pairs in question are folded and can't be taken back
	ErrFormat   Status = C.LESSKV_ERR_FORMAT // the bytes are no saved state of such a cache
	ErrFinite   Status = C.LESSKV_ERR_FINITE // what was folded, or the state that it made, is not finite
)

// Error returns the C side's words for it.
func (s Status) Error() string {
	return C.GoString(C.lesskv_status_str(C.enum_lesskv_status(s)))
}

// check wraps what a C function returned, with what was being done.
func check(status C.enum_lesskv_status, format string, args ...any) error {
	if status == C.LESSKV_OK {
		return nil
	}
	return fmt.Errorf("kernels: "+format+": %w", append(args, Status(status))...)
}

func argument(format string, args ...any) error {
	return fmt.Errorf("kernels: "+format+": %w", append(args, ErrArgument)...)
}
