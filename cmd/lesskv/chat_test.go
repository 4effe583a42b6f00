//go:build cgo

package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/term"

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
			assert.Contains(t, prompts[0], "all of them from a checkpoint")
			assert.NotContains(t, prompts[1], "from a checkpoint")
		})
	}
}

// A line that ends in \ goes on with the next one; empty lines are no turns, // begins with a /, and /help helps.
func TestChatLines(t *testing.T) {
	status, want, stderr := chatter("first \\\nsecond\n/quit \nnot read", "-n5")
	require.Equal(t, exitOK, status, stderr)
	status, got, stderr := chatter("\n  \n/help\nfirst \\\nsecond", "-n5")
	require.Equal(t, exitOK, status, stderr)
	assert.Equal(t, want, got)
	assert.Contains(t, stderr, "/regen")
	status, _, stderr = chatter("/stats\n", "-n5")
	require.Equal(t, exitOK, status, stderr)
	assert.Contains(t, stderr, "phi and psi of rank 8", "before the first token")
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

// A played terminal is one on which a chat runs.
type played struct {
	*screen
	t   *testing.T
	cmd *exec.Cmd
	tty *os.File
}

// play starts a chat on a terminal; its outputs may be set to others.
func play(t *testing.T, cmd *exec.Cmd) *played {
	t.Helper()
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	require.NoError(t, err)
	t.Cleanup(func() { tty.Close() })
	p := &played{&screen{}, t, cmd, tty}
	go func() {
		b := make([]byte, 1024)
		for {
			n, err := tty.Read(b)
			_, _ = p.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	return p
}

func (p *played) until(what string, is func() bool) {
	p.t.Helper()
	require.Eventually(p.t, is, time.Minute, 5*time.Millisecond, "%s in %q", what, p)
}

func (p *played) shows(times int, text string) {
	p.t.Helper()
	p.until(text, func() bool { return strings.Count(p.String(), text) >= times })
}

func (p *played) prompted() {
	p.t.Helper()
	p.until("a prompt", func() bool { return strings.HasSuffix(p.String(), "> ") })
}

func (p *played) keys(text string) {
	p.t.Helper()
	_, err := p.tty.WriteString(text)
	require.NoError(p.t, err)
}

// answers types a turn whose answer does not end, and returns when some of it is there.
func (p *played) answers(turn string) {
	p.t.Helper()
	before := len(p.String())
	p.keys(turn)
	p.until("an answer", func() bool { return len(p.String()) > before+300 })
}

// ended waits for the program and returns its status.
func (p *played) ended() int {
	p.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		p.t.Fatalf("it does not end: %q", p)
	}
	return p.cmd.ProcessState.ExitCode()
}

// endless is a chat whose answers do not end.
func endless() *exec.Cmd {
	cmd := exec.Command(os.Args[0], "chat", "-t1", "--temp=0", "-n-1", "-b64", "--checkpoints", "2")
	cmd.Env = append(os.Environ(), playCommand+"=1", "TERM=xterm", "NO_COLOR=")
	return cmd
}

// On a terminal a line can be edited, Ctrl-C ends an answer and not the chat, a status line follows each answer, and Ctrl-C at the prompt
// clears the line, and ends the chat the second time.
func TestChatOnATerminal(t *testing.T) {
	for _, colour := range []bool{true, false} {
		cmd := endless()
		if !colour {
			cmd.Env = append(cmd.Env, "NO_COLOR=1")
		}
		p := play(t, cmd)
		p.prompted()
		p.answers("func man\x7f\x7f\x7fmain() {\r") // backspaces
		p.keys("\x03")
		p.shows(1, "checkpoints")
		p.prompted()
		assert.Equal(t, colour, strings.Contains(p.String(), "\x1b[2m"))
		assert.NoError(t, cmd.Process.Signal(syscall.Signal(0)), "it goes on")
		p.keys("/nonsense\r")
		p.shows(1, "want /regen")
		p.prompted()
		p.keys("half a line\x03")
		p.shows(1, "Ctrl-C again")
		p.prompted()
		p.answers("/regen \r") // nothing is left of the line
		p.keys("\x03")
		p.shows(2, "checkpoints")
		p.prompted()
		p.keys("\x03")
		p.shows(2, "Ctrl-C again")
		p.prompted()
		p.keys("\x03")
		assert.Equal(t, exitOK, p.ended())
	}
}

// A signal from outside ends the chat, also while a line is edited: the terminal is as it was.
func TestChatTerminated(t *testing.T) {
	other, tty, err := pty.Open()
	require.NoError(t, err)
	defer other.Close()
	defer tty.Close()
	want, err := term.GetState(int(other.Fd()))
	require.NoError(t, err)
	for name, do := range map[string]func(p *played){
		"editing":   func(p *played) { p.keys("half") },
		"answering": func(p *played) { p.answers("func main() {\r") },
	} {
		for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGHUP} {
			if name == "answering" && signal == syscall.SIGHUP {
				continue // which ends a program whose terminal is not raw
			}
			p := play(t, endless())
			p.prompted()
			do(p)
			require.NoError(t, p.cmd.Process.Signal(signal))
			assert.Equal(t, exitInterrupted, p.ended(), "%s, %s", name, signal)
			p.until("no bracketed paste", func() bool {
				on, off := strings.LastIndex(p.String(), "\x1b[?2004h"), strings.LastIndex(p.String(), "\x1b[?2004l")
				return off > on
			})
			got, err := term.GetState(int(p.tty.Fd()))
			require.NoError(t, err)
			assert.Equal(t, want, got, "%s, %s: the terminal is not raw", name, signal)
		}
	}
}

// What goes to a file is not where a line is edited.
func TestChatWithAnErrorLog(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer log.Close()
	cmd := endless()
	cmd.Stderr = log
	p := play(t, cmd)
	p.prompted()
	p.keys("/nonsense\r")
	p.until("the next prompt", func() bool { return strings.Count(p.String(), "> ") > 1 })
	p.keys("/quit\r")
	assert.Equal(t, exitOK, p.ended())
}

// Through pipes a signal ends the chat, and not one answer of many.
func TestChatInterrupted(t *testing.T) {
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		cmd := endless()
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		var out, stderr screen
		cmd.Stdout, cmd.Stderr = &out, &stderr
		require.NoError(t, cmd.Start())
		_, err = stdin.Write([]byte("func main() {\nfunc main() {\n"))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(out.String()) > 50 }, time.Minute, 5*time.Millisecond)
		require.NoError(t, cmd.Process.Signal(signal))
		assert.Error(t, cmd.Wait())
		assert.Equal(t, exitInterrupted, cmd.ProcessState.ExitCode(), stderr.String())
		stdin.Close()
	}
}

// script is what somebody types at a terminal.
type script []func() string

func (s *script) interactive() bool { return true }

func (s *script) next() (string, error) {
	if len(*s) == 0 {
		return "", io.EOF
	}
	line := (*s)[0]()
	*s = (*s)[1:]
	return line, nil
}

// Where nothing comes of a turn, or it cannot be asked, the chat is what it was, the old answer with it, and goes on.
func TestChatWithoutAnAnswer(t *testing.T) {
	for name, path := range map[string]string{"gopher": "", "template": templated(t)} {
		t.Run(name, func(t *testing.T) {
			o, cmd := &chatOptions{tokens: 5}, &cobra.Command{}
			o.add(cmd.Flags(), "")
			o.model, o.threads, o.temp, o.ubatch = path, 1, 0, 512
			model, _, err := o.open(cmd, 0)
			require.NoError(t, err)
			defer model.Free()
			var out, stderr bytes.Buffer
			c := &chat{options: o, model: model, name: name, out: &out, err: &stderr}
			var want []lesskv.Message
			types := func(line string) func() string { return func() string { return line } }
			unanswered := func(line string) func() string {
				return func() string { o.ubatch = -1; return line } // which is refused
			}
			require.NoError(t, c.talk(&script{
				types("one two"),
				func() string { want = slices.Clone(c.messages); return "" },
				unanswered("/regen"),
				unanswered("three"),
				func() string { o.ubatch = 512; return "NUL \x00" },
			}))
			require.Len(t, want, 2)
			assert.Equal(t, want, c.messages)
			assert.GreaterOrEqual(t, strings.Count(stderr.String(), "no answer"), 2)
			assert.Contains(t, stderr.String(), "NUL")
			require.NoError(t, c.talk(&script{types("four")}))
			assert.Len(t, c.messages, 4)
		})
	}
}

// Lines are joined by \ where they are typed, and as they are where they were pasted.
func TestJoin(t *testing.T) {
	type line struct {
		text   string
		pasted bool
	}
	for want, lines := range map[string][]line{
		"a":        {{"a", false}},
		"a \nb":    {{`a \`, false}, {"b", false}},
		"a\\\nb":   {{`a\`, true}, {"b", false}},
		"/quit":    {{"/quit", true}, {"", false}},
		"a\n\nb":   {{"a", true}, {"", true}, {"b", true}, {"", false}},
		"a\n":      {{`a\`, false}, {"", false}},
		"a\nb\nc ": {{"a", true}, {`b\`, false}, {"c ", false}},
	} {
		got, err := join(func(first bool) (string, bool, error) {
			l := lines[0]
			lines = lines[1:]
			return l.text, l.pasted, nil
		})
		require.NoError(t, err)
		assert.Equal(t, want, got)
		assert.Empty(t, lines)
	}
}
