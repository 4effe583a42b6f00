package worker

import (
	"fmt"
	"strings"
)

// Error is a request that the worker could not do. It is alive and keeps its state.
type Error struct {
	Verb    string // of the request
	Code    int    // what llama_decode or llama_encode returned (1: no room or refused, 2: aborted, below -1: failed); else -1
	Message string
}

func (e *Error) Error() string { return "worker: " + e.Verb + ": " + e.Message }

// ExitError is a worker that is gone: it crashed, was killed because its context was done, or answered something that is
// no reply.
type ExitError struct {
	Verb   string // of the request that it did not answer
	Err    error  // the context's error, the exit status, or what was wrong with the reply
	Stderr string // the end of what it wrote
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("worker: died in %s: %v", e.Verb, e.Err)
	if text := strings.TrimSpace(e.Stderr); text != "" {
		s += "; it wrote:\n" + text
	}
	return s
}

func (e *ExitError) Unwrap() error { return e.Err }
