//go:build !linux

package fuzztest

import "errors"

// Peak runs nothing: only Linux tells.
func Peak(func()) (int64, error) { return 0, errors.ErrUnsupported }
