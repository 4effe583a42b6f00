//go:build cgo

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// chatter runs chat with its output fixed, on one thread.
func chatter(stdin string, args ...string) (status int, stdout, stderr string) {
	return command(stdin, append([]string{"chat", "-t1", "--temp=0"}, args...)...)
}

// templated writes a tiny model with ChatML and returns its path.
func templated(t *testing.T) string {
	t.Helper()
	m, err := tinymodels.Find("llama")
	require.NoError(t, err)
	v := tinymodels.SentencePiece("<s>", "</s>", "<|im_start|>", "<|im_end|>")
	v.ChatTemplate = "<|im_start|>"
	path := filepath.Join(t.TempDir(), "chat.gguf")
	require.NoError(t, m.WriteVocabulary(path, gguf.F32, 1, v))
	return path
}

// evaluated finds what /stats says of the last prompt.
func evaluated(t *testing.T, stderr string) []string {
	t.Helper()
	var all []string
	for _, line := range strings.Split(stderr, "\n") {
		if strings.HasPrefix(line, "prompt ") {
			all = append(all, line)
		}
	}
	return all
}

// Through pipes a line is a turn, an answer a line or more, and nothing else is on standard output.
func TestChat(t *testing.T) {
	for name, model := range map[string][]string{"gopher": nil, "template": {"-m", templated(t)}} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"-n12", "-b64"}, model...)
			status, first, stderr := chatter("one two three\n", args...)
			require.Equal(t, exitOK, status, stderr)
			require.NotEmpty(t, first)
			assert.Equal(t, name == "gopher", strings.Contains(stderr, "no chat template"))
			assert.NotContains(t, stderr, "of them new", "no terminal, no status")

			status, both, stderr := chatter("one two three\nand four", args...)
			require.Equal(t, exitOK, status, stderr)
			require.True(t, strings.HasPrefix(both, first), "%q, %q", first, both)
			assert.NotEqual(t, first, both)

			// the same turn again, from the checkpoint; and anew
			status, other, stderr := chatter("five six\n", args...)
			require.Equal(t, exitOK, status, stderr)
			status, again, stderr := chatter("one two three\nand four\n/regen\n/stats\n/reset\nfive six\n/stats\n", args...)
			require.Equal(t, exitOK, status, stderr)
			assert.Equal(t, both+strings.TrimPrefix(both, first)+other, again)
			prompts := evaluated(t, stderr)
			require.Len(t, prompts, 2, stderr)
			assert.Contains(t, prompts[0], "at once", "nothing is evaluated")
			assert.NotContains(t, prompts[1], "at once")
		})
	}
}

// A line that ends in \ goes on with the next one; empty lines are no turns, // begins with a /, and /help helps.
func TestChatLines(t *testing.T) {
	status, want, stderr := chatter("first \\\nsecond\n/quit\nnot read", "-n5")
	require.Equal(t, exitOK, status, stderr)
	status, got, stderr := chatter("\n  \n/help\nfirst \\\nsecond", "-n5")
	require.Equal(t, exitOK, status, stderr)
	assert.Equal(t, want, got)
	assert.Contains(t, stderr, "/regen")
	status, got, stderr = chatter("//comment", "-n5")
	require.Equal(t, exitOK, status, stderr)
	assert.NotEmpty(t, got)
	status, got, stderr = chatter("", "-n5")
	require.Equal(t, exitOK, status, stderr)
	assert.Empty(t, got)
	for stdin, says := range map[string]string{"/regenerate\n": "want /regen", "/regen\n": "no answer yet"} {
		status, _, stderr := chatter(stdin, "-n5")
		assert.Equal(t, exitUsage, status)
		assert.Contains(t, stderr, says)
	}
}

// The system prompt comes first, and /reset leaves it.
func TestChatSystem(t *testing.T) {
	status, without, stderr := chatter("Hi\n", "-n12")
	require.Equal(t, exitOK, status, stderr)
	status, with, stderr := chatter("Hi\n/reset\nHi\n", "-n12", "--system", "func main() {\n\tx := 1")
	require.Equal(t, exitOK, status, stderr)
	assert.NotEqual(t, without+without, with)
	assert.Equal(t, with[:len(with)/2], with[len(with)/2:])
}

// What a plain chat looks like, and where an answer of it ends.
func TestPlainChat(t *testing.T) {
	assert.Equal(t, "S\n\nUser: a\nAssistant: b\nUser: c\nAssistant:", plainChat([]lesskv.Message{
		{Role: "system", Text: "S"}, {Role: "user", Text: "a"}, {Role: "assistant", Text: " b"}, {Role: "user", Text: "c"},
	}))
	for _, pieces := range [][]string{{" b\nUser: c"}, {" b", "\nUs", "er", ": c"}, {" ", "b", "\n", "User:"}} {
		var out bytes.Buffer
		a := &answerWriter{w: &out, stop: "\nUser:"}
		for _, p := range pieces {
			assert.True(t, a.token(p))
		}
		a.end()
		assert.Equal(t, " b\n", out.String())
		assert.Equal(t, " b", a.text.String())
	}
	var out bytes.Buffer
	a := &answerWriter{w: &out, stop: "\nUser:"}
	a.token("b\nUs")
	assert.Equal(t, "b", out.String(), "the rest may be an end")
	a.end()
	assert.Equal(t, "b\nUs\n", out.String())
}

// A screen collects what a program writes to its terminal.
type screen struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// On a terminal a line can be edited, Ctrl-C ends an answer and not the chat, a status line follows each answer, and Ctrl-C at the prompt
// is the end.
func TestChatOnATerminal(t *testing.T) {
	for _, colour := range []bool{true, false} {
		cmd := exec.Command(os.Args[0], "chat", "-t1", "--temp=0", "-n-1", "-b64", "--checkpoints", "2")
		cmd.Env = append(os.Environ(), playCommand+"=1", "TERM=xterm", "NO_COLOR=")
		if !colour {
			cmd.Env = append(cmd.Env, "NO_COLOR=1")
		}
		tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
		require.NoError(t, err)
		defer tty.Close()
		var s screen
		go func() {
			b := make([]byte, 1024)
			for {
				n, err := tty.Read(b)
				_, _ = s.Write(b[:n])
				if err != nil {
					return
				}
			}
		}()
		shows := func(times int, text string) {
			t.Helper()
			require.Eventually(t, func() bool { return strings.Count(s.String(), text) >= times }, time.Minute, 5*time.Millisecond, "%d x %q in %q", times, text, s.String())
		}
		keys := func(text string) {
			t.Helper()
			_, err := tty.WriteString(text)
			require.NoError(t, err)
		}
		prompted := func() {
			t.Helper()
			require.Eventually(t, func() bool { return strings.HasSuffix(s.String(), "> ") }, time.Minute, 5*time.Millisecond, "%q", s.String())
		}
		prompted()
		keys("func man\x7f\x7f\x7fmain() {\r") // backspaces
		before := len(s.String())
		require.Eventually(t, func() bool { return len(s.String()) > before+200 }, time.Minute, 5*time.Millisecond, "an answer that does not end")
		keys("\x03")
		shows(1, "checkpoints")
		prompted()
		assert.Equal(t, colour, strings.Contains(s.String(), "\x1b[2m"))
		assert.NoError(t, cmd.Process.Signal(syscall.Signal(0)), "it goes on")
		keys("/nonsense\r")
		shows(1, "want /regen")
		prompted()
		asked := len(s.String())
		keys("/regen\r")
		require.Eventually(t, func() bool { return len(s.String()) > asked+300 }, time.Minute, 5*time.Millisecond)
		keys("\x03")
		shows(2, "checkpoints")
		prompted()
		keys("\x03")
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			assert.NoError(t, err)
		case <-time.After(time.Minute):
			t.Fatalf("it does not end: %q", s.String())
		}
	}
}

// Through pipes, too, an interrupt ends an answer, and the next line is answered.
func TestChatInterrupted(t *testing.T) {
	cmd := exec.Command(os.Args[0], "chat", "-t1", "--temp=0", "-n-1", "-b64")
	cmd.Env = append(os.Environ(), playCommand+"=1")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	var out, stderr screen
	cmd.Stdout, cmd.Stderr = &out, &stderr
	require.NoError(t, cmd.Start())
	answering := func() {
		t.Helper()
		before := len(out.String())
		_, err := stdin.Write([]byte("func main() {\n"))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(out.String()) > before+50 }, time.Minute, 5*time.Millisecond)
	}
	answering()
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.Eventually(t, func() bool { return strings.HasSuffix(out.String(), "\n") }, time.Minute, 5*time.Millisecond)
	answering()
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.NoError(t, stdin.Close())
	assert.NoError(t, cmd.Wait(), "one interrupt each: the input ends it")
}
