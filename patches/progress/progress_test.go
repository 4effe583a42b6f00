package progress

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// Where nobody looks, a stage that begins has a line, and then one now and then.
func TestLines(t *testing.T) {
	var out strings.Builder
	m := New(&out, false)
	lines := func(want string) {
		t.Helper()
		require.Equal(t, want, out.String())
		out.Reset()
	}
	m.Show(Status{Stage: "recording", Done: 2, Total: 10, Unit: "windows"})
	lines("recording: 2 of 10 windows\n")
	m.Show(Status{Stage: "recording", Done: 3, Total: 10, Unit: "windows"})
	lines("")
	m.began, m.next = time.Now().Add(-20*time.Second), time.Now()
	m.Show(Status{Stage: "recording", Done: 6, Total: 10, Unit: "windows"})
	lines("recording: 6 of 10 windows, 20s left\n") // four in 20 s, and what was done before took no time
	m.began, m.next = time.Now().Add(-20*time.Second), time.Now()
	m.Show(Status{Stage: "recording", Done: 7, Total: 10, Unit: "windows", Work: 22, AllWork: 32})
	lines("recording: 7 of 10 windows, 10s left\n") // twenty in 20 s
	m.Show(Status{Stage: "fitting", Text: "layer 0", Line: "layer 0: 0.5", Total: 4})
	lines("layer 0: 0.5, 0 %\n")
	m.Show(Status{Stage: "opening"})
	lines("opening\n")
	m.Printf("layer %d: done\n", 0)
	m.End()
	lines("layer 0: done\n")

	quiet := New(&out, true)
	quiet.Show(Status{Stage: "recording", Total: 10})
	quiet.Printf("a result\n")
	lines("a result\n")
}

// On a terminal there is a bar: what stays is written over it, and in the end it is gone.
func TestBar(t *testing.T) {
	terminal, tty, err := pty.Open()
	if err != nil {
		t.Skip("no terminal to be had here:", err)
	}
	defer terminal.Close()
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 60}))
	m := New(tty, false)
	m.Show(Status{Stage: "recording", Text: "layer 0", Done: 1, Total: 4, Unit: "windows"})
	m.Printf("a result\n")
	m.Show(Status{Stage: "fitting", Done: 1, Total: 4})
	m.Show(Status{Stage: "compiling", Done: 1, Total: 4, Unit: "files", Work: 10, AllWork: 20})
	m.Show(Status{Stage: "opening"})
	m.End()
	require.NoError(t, tty.Close())
	data, err := io.ReadAll(terminal)
	if err != nil {
		require.ErrorContains(t, err, "input/output error") // what Linux says when the other side is closed
	}
	out := string(data)
	for _, want := range []string{"layer 0  25% |█", "(1/4)", "fitting  25% |", "compiling (1/4)  50% |", "opening"} {
		require.Contains(t, out, want)
	}
	require.Equal(t, []string{"a result", ""}, screen(t, out, 60))
}

func TestNoTerminal(t *testing.T) {
	require.False(t, OnTerminal(&strings.Builder{}))
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	require.False(t, OnTerminal(null))
}

// screen is what a terminal shows of lines that are written over, none of them longer than width.
func screen(t *testing.T, out string, width int) (lines []string) {
	for _, text := range strings.Split(strings.ReplaceAll(out, "\r\n", "\n"), "\n") {
		line, at := []rune(strings.Repeat(" ", width)), 0
		for _, r := range text {
			if r == '\r' {
				at = 0
				continue
			}
			require.Less(t, at, width, "%q", text)
			line[at] = r
			at++
		}
		lines = append(lines, strings.TrimRight(string(line), " "))
	}
	return lines
}
