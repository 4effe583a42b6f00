// Package worker talks to the verification worker, cgo/llama/worker.cpp: llama.cpp in a process of its own, built once
// with the LESS cache and once without. Tests start one of each and compare what they answer.
//
//	w, err := worker.Start(ctx, path)
//	defer w.Close()
//	info, err := w.Open(worker.Config{Model: "model.gguf", Context: 2048})
//	tokens, err := w.Tokenize("package main", true)
//	out, err := w.Decode(0, 0, tokens, worker.Last)
//
// A request that the worker refuses is an [Error], and the worker goes on; a worker that died is an [ExitError], with what
// it last wrote to its standard error.
package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Worker is one worker process. Its methods may be called from several goroutines; requests are answered one by one.
// Close must be called.
type Worker struct {
	ctx    context.Context
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr tail

	mu   sync.Mutex
	info Info  // of the open model
	dead error // why nothing can be asked any more
}

// grace is how long a process may take to end.
const grace = 5 * time.Second

// Start starts the worker at path. When ctx is done, the process is killed and the call in progress returns an
// [ExitError] that wraps ctx.Err().
func Start(ctx context.Context, path string) (*Worker, error) {
	w := &Worker{ctx: ctx, cmd: exec.CommandContext(ctx, path)}
	w.cmd.WaitDelay = grace
	w.cmd.Stderr = &w.stderr
	in, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("worker: starting %s: %w", path, err)
	}
	w.in, w.out = in, bufio.NewReaderSize(out, 1<<16)
	return w, nil
}

// errClosed is what calls after Close answer.
var errClosed = errors.New("worker: closed")

// Close ends the process and waits for it. It returns an [ExitError] if the process died by itself, now or before; closing
// twice does nothing.
func (w *Worker) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead != nil {
		if errors.Is(w.dead, errClosed) {
			return nil
		}
		err := w.dead
		w.dead = errClosed
		return err
	}
	_, err := w.exchange("quit", nil)
	if err != nil {
		w.dead = errClosed
		return err
	}
	err = w.wait()
	w.dead = errClosed
	if err != nil {
		return &ExitError{Verb: "quit", Err: err, Stderr: w.stderr.String()}
	}
	return nil
}

// Stderr returns the last 64 KiB that the process wrote to its standard error: warnings and errors of llama.cpp.
func (w *Worker) Stderr() string { return w.stderr.String() }

// call makes one request. args are keys, each followed by its value.
func (w *Worker) call(verb string, payload []byte, args ...any) (*reply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.exchange(verb, payload, args...)
}

// exchange is call with the lock held.
func (w *Worker) exchange(verb string, payload []byte, args ...any) (*reply, error) {
	if w.dead != nil {
		return nil, w.dead
	}
	// Once the process is killed, both sides of the pipes fail: nothing here waits for ever.
	_, err := w.in.Write(appendRequest(nil, verb, len(payload), args))
	if err == nil && len(payload) > 0 {
		_, err = w.in.Write(payload)
	}
	var r *reply
	if err == nil {
		r, err = readReply(w.out, verb)
	}
	var refused *Error
	if err == nil || errors.As(err, &refused) {
		return r, err
	}
	return nil, w.die(verb, err)
}

// die ends a process that no longer answers, and says why.
func (w *Worker) die(verb string, cause error) error {
	hungUp := errors.Is(cause, io.ErrUnexpectedEOF) || errors.Is(cause, syscall.EPIPE)
	if !hungUp {
		w.cmd.Process.Kill() // it babbles; its exit status then says nothing
	}
	exit := w.wait()
	switch err := w.ctx.Err(); {
	case err != nil:
		cause = err
	case hungUp && exit != nil:
		cause = exit
	}
	w.dead = &ExitError{Verb: verb, Err: cause, Stderr: w.stderr.String()}
	return w.dead
}

// wait waits for a process that has no more reason to live.
func (w *Worker) wait() error {
	w.in.Close()
	late := time.AfterFunc(grace, func() { w.cmd.Process.Kill() })
	defer late.Stop()
	return w.cmd.Wait()
}

// tail is a writer that keeps the last 64 KiB.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailSize; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
