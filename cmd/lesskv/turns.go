//go:build cgo

package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// turns are the user's part of a chat.
type turns interface {
	next() (string, error) // io.EOF at the end
	interactive() bool
}

// newTurns reads turns from a terminal, with an editable line, or else line by line.
func newTurns(in io.Reader, out io.Writer) turns {
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) && onTerminal(out) {
		return &typed{in: f, out: out.(*os.File), t: term.NewTerminal(struct {
			io.Reader
			io.Writer
		}{f, out}, "")}
	}
	return &piped{bufio.NewReader(in)}
}

// join returns the lines of a turn as one text: a line that ends in \ goes on with the next, and so does one that was pasted.
func join(line func(first bool) (text string, more bool, err error)) (string, error) {
	var all []string
	for {
		text, more, err := line(len(all) == 0)
		if err != nil {
			return "", err
		}
		text, goesOn := strings.CutSuffix(text, `\`)
		all = append(all, text)
		if !goesOn && !more {
			return strings.Join(all, "\n"), nil
		}
	}
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
	in, out *os.File
	t       *term.Terminal
}

func (t *typed) interactive() bool { return true }

func (t *typed) next() (text string, err error) {
	old, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, term.Restore(int(t.in.Fd()), old)) }()
	t.t.SetBracketedPasteMode(true)
	defer t.t.SetBracketedPasteMode(false)
	if width, height, err := term.GetSize(int(t.out.Fd())); err == nil && width > 0 {
		_ = t.t.SetSize(width, height) // of the line that is not there yet
	}
	text, err = join(func(first bool) (string, bool, error) {
		t.t.SetPrompt("> ")
		if !first {
			t.t.SetPrompt(". ")
		}
		text, err := t.t.ReadLine()
		if errors.Is(err, term.ErrPasteIndicator) {
			return text, true, nil
		}
		return text, false, err
	})
	if errors.Is(err, io.EOF) { // Ctrl-C or Ctrl-D
		_, _ = io.WriteString(t.out, "\r\n") // behind what was typed
	}
	return text, err
}
