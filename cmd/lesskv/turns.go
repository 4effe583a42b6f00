//go:build cgo

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/lesskv/lesskv/patches/progress"
)

// turns are the user's part of a chat.
type turns interface {
	next() (string, error) // io.EOF at the end
	interactive() bool
}

// newTurns reads turns from a terminal, with an editable line on the first of the outputs that is one, or else line by line.
func newTurns(in io.Reader, outs ...io.Writer) turns {
	if i := slices.IndexFunc(outs, progress.OnTerminal); i >= 0 {
		if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return &typed{in: f, out: outs[i].(*os.File), history: term.NewTerminal(nil, "").History}
		}
	}
	return &piped{bufio.NewReader(in)}
}

// join returns the lines of a turn as one text: a line that ends in \ goes on with the next, and so does one that was pasted. The end of
// the last one that was pasted is that of the turn.
func join(line func(first bool) (text string, pasted bool, err error)) (string, error) {
	var all []string
	for goesOn, afterPaste := true, false; goesOn; {
		text, pasted, err := line(len(all) == 0)
		if err != nil {
			return "", err
		}
		if goesOn = pasted; !pasted {
			text, goesOn = strings.CutSuffix(text, `\`)
		}
		if text != "" || goesOn || !afterPaste {
			all = append(all, text)
		}
		afterPaste = pasted
	}
	return strings.Join(all, "\n"), nil
}

// piped are turns of which each is a line.
type piped struct{ r *bufio.Reader }

func (p *piped) interactive() bool { return false }

func (p *piped) next() (string, error) {
	return join(func(first bool) (string, bool, error) {
		text, err := p.r.ReadString('\n')
		if errors.Is(err, io.EOF) && (text != "" || !first) {
			err = nil // the last line may lack its end
		}
		return strings.TrimRight(text, "\r\n"), false, err
	})
}

// typed are turns of a terminal, which is raw while a line is edited, and not during an answer: there Ctrl-C is a signal.
type typed struct {
	in, out    *os.File
	history    term.History
	t          *term.Terminal // of the line that is edited
	interrupts int            // how often Ctrl-C was read
}

func (t *typed) interactive() bool { return true }

// Read and Write are the terminal's. x/term tells Ctrl-C and Ctrl-D not apart.
func (t *typed) Read(p []byte) (int, error) {
	n, err := t.in.Read(p)
	t.interrupts += bytes.Count(p[:n], []byte{ctrlC})
	return n, err
}

func (t *typed) Write(p []byte) (int, error) { return t.out.Write(p) }

const ctrlC = 3

// next returns io.EOF after Ctrl-D, and where Ctrl-C clears a line that was just cleared.
func (t *typed) next() (text string, err error) {
	restore, err := t.edit()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, restore()) }()
	for cleared := false; ; cleared = true {
		t.clear()
		text, err = join(t.line)
		if !errors.Is(err, io.EOF) {
			return text, err
		}
		_, _ = io.WriteString(t.out, "\r\n") // behind what was typed
		if t.interrupts == 0 || t.interrupts > 1 || cleared {
			return "", err
		}
		_, _ = io.WriteString(t.out, "Ctrl-C again, or Ctrl-D, ends the chat\r\n")
	}
}

// clear begins an empty line: after Ctrl-C x/term would go on with the old one.
func (t *typed) clear() {
	t.t, t.interrupts = term.NewTerminal(t, ""), 0
	t.t.History = t.history
	if width, height, err := term.GetSize(int(t.out.Fd())); err == nil && width > 0 {
		_ = t.t.SetSize(width, height)
	}
}

// line reads one line of a turn.
func (t *typed) line(first bool) (text string, pasted bool, err error) {
	t.t.SetPrompt("> ")
	if !first {
		t.t.SetPrompt(". ")
	}
	text, err = t.t.ReadLine()
	if errors.Is(err, term.ErrPasteIndicator) {
		return text, true, nil
	}
	return text, false, err
}

// edit makes the terminal raw, until restore is called or a signal ends the program.
func (t *typed) edit() (restore func() error, err error) {
	old, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return nil, err
	}
	_, _ = io.WriteString(t.out, "\x1b[?2004h") // bracketed paste
	back := func() error {
		_, _ = io.WriteString(t.out, "\x1b[?2004l")
		return term.Restore(int(t.in.Fd()), old)
	}
	signals, done := make(chan os.Signal, 1), make(chan bool)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case <-signals:
			_ = back()
			os.Exit(exitInterrupted)
		case <-done:
		}
	}()
	return func() error {
		signal.Stop(signals)
		close(done)
		return back()
	}, nil
}
