//go:build !linux && !darwin

package assemble

import "errors"

// exchange can't be had here.
func exchange(a, b string) error { return errors.ErrUnsupported }
