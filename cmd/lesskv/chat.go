//go:build cgo

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/patches/progress"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/memory"
)

// chatOptions are the flags of chat.
type chatOptions struct {
	modelOptions
	system string
	tokens int // of an answer
}

// chatHelp is what /help says.
const chatHelp = `  /regen   answer the last turn anew
  /reset   begin a new chat, with the same system prompt
  /stats   what the cache holds
  /quit    end; so does Ctrl-D
A \ at the end of a line goes on with the next line. // begins a turn with /.
Ctrl-C ends an answer; at the prompt it clears the line, and the second time
in a row ends the chat.`

func newChat() *cobra.Command {
	o := &chatOptions{}
	cmd := &cobra.Command{
		Use:   "chat [-m MODEL] [flags]",
		Short: "Chat with a model, in memory that does not grow",
		Long: `Chat with a model on a terminal, or through pipes with one line a turn. The
cache is kept from turn to turn. A turn that is answered anew resumes from a
checkpoint. On a terminal, a line after each answer says what the cache holds.

` + chatHelp + `

Turns have the form of the model's own template if llama.cpp knows it. llama.cpp
does not run the template (Jinja); it recognises the usual ones by pieces of
their text: ChatML, Llama 2, 3 and 4, Mistral, Gemma, Phi, DeepSeek, Granite,
Command R, GLM, Falcon, EXAONE and some more. For any other, and for a model
without one, turns are lines that begin with "User:" and "Assistant:", and a
warning says so. Without -m the model is gopher-5m, which is built in, has no
template and writes Go.

SIGTERM ends the chat with status 130, and so do a second Ctrl-C while an answer
ends and, through pipes, one Ctrl-C. Ended at the prompt, the status is 0.
LESSKV_* hold as for run. NO_COLOR leaves colours out.`,
		Example: `  lesskv chat -m model.gguf -b 5% --system "Answer in one sentence."
  printf 'Hello\nAnd again\n' | lesskv chat -m model.gguf -n 50`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%q: turns are read from the terminal or standard input, the model is given with -m", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	o.add(f, "seed of the first answer, one more for each further one; -1 for random ones")
	f.StringVar(&o.system, "system", "", "`text` of the system prompt")
	addTokens(f, &o.tokens, "tokens", "n", 512, -1, "how many tokens of an answer to generate, -1 for as many as the model writes")
	f.SortFlags = false
	return cmd
}

func (o *chatOptions) run(cmd *cobra.Command) error {
	if o.tokens == 0 {
		return usageError{errors.New("--tokens 0: want 1 token at least, or -1 for as many as the model writes")}
	}
	model, path, err := o.open(cmd, 0)
	if err != nil {
		return err
	}
	defer model.Free()
	c := &chat{options: o, model: model, name: filepath.Base(path), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
	c.reset()
	if !c.templated() {
		fmt.Fprintf(c.err, "%s: no chat template, or none that llama.cpp knows: turns are lines of \"User:\" and \"Assistant:\"\n", c.name)
	}
	return c.talk(newTurns(cmd.InOrStdin(), c.err, c.out))
}

// A chat is a conversation with a model.
type chat struct {
	options  *chatOptions
	model    *llama.LLama
	name     string
	out, err io.Writer
	messages []lesskv.Message
	answers  int       // that were begun
	caught   os.Signal // that ended the last answer, or nil
}

// talk answers turns until they end, or a signal ends them: SIGTERM, and through pipes SIGINT. What goes wrong with one is said on a
// terminal, and the chat goes on; through pipes it ends.
func (c *chat) talk(in turns) error {
	for {
		text, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading a turn: %w", err)
		}
		switch line := strings.TrimSpace(text); {
		case line == "":
		case line == "/quit":
			return nil
		case text[0] == '/' && !strings.HasPrefix(text, "//"):
			err = c.command(line)
		default:
			err = c.answer(append(slices.Clip(c.messages), lesskv.Message{Role: "user", Text: strings.TrimPrefix(text, "/")}))
		}
		if err == nil && c.caught != nil && (c.caught != os.Interrupt || !in.interactive()) {
			err = errInterrupted
		}
		if err != nil && (!in.interactive() || errors.Is(err, errInterrupted)) {
			return err
		} else if err != nil {
			fmt.Fprintln(c.err, err)
		}
	}
}

// command does what a line that begins with / says.
func (c *chat) command(line string) error {
	switch line {
	case "/help":
		fmt.Fprintln(c.err, chatHelp)
	case "/reset":
		c.reset()
	case "/stats":
		t, err := lesskv.LastTimings(c.model)
		if err != nil {
			return err
		}
		return report(c.err, c.name, c.model, t)
	case "/regen":
		last := len(c.messages) - 1
		if last < 0 || c.messages[last].Role != "assistant" {
			return usageError{errors.New("/regen: there is no answer yet")}
		}
		return c.answer(slices.Clip(c.messages[:last]))
	default:
		return usageError{fmt.Errorf("%s: want /regen, /reset, /stats, /quit or /help; // begins a turn with /", line)}
	}
	return nil
}

func (c *chat) reset() {
	c.messages = nil
	if c.options.system != "" {
		c.messages = append(c.messages, lesskv.Message{Role: "system", Text: c.options.system})
	}
}

// answer has the model answer the last of the messages, which are the chat from then on. Where nothing comes, the chat stays as it was.
func (c *chat) answer(messages []lesskv.Message) error {
	c.caught = nil
	prompt, stop, err := c.prompt(messages)
	if err != nil {
		return err
	}
	o := c.options
	seed := o.seed
	if seed >= 0 {
		seed += c.answers
	}
	c.answers++
	w := &answerWriter{w: c.out, stop: stop}
	caught, done := watch(c.model)
	defer done()
	_, err = o.predict(c.model, prompt, o.tokens, seed, llama.SetStopWords(stop), llama.SetTokenCallback(w.token))
	w.end()
	c.caught = caught()
	if w.text.Len() == 0 {
		fmt.Fprintln(c.err, "no answer: the chat is as it was before")
	} else {
		c.messages = append(messages, lesskv.Message{Role: "assistant", Text: w.text.String()})
	}
	if err = errors.Join(err, w.err); err != nil {
		return err
	}
	return c.status()
}

// templated reports whether the model has a chat template that llama.cpp knows.
func (c *chat) templated() bool {
	_, err := lesskv.ChatPrompt(c.model, lesskv.Message{Role: "user", Text: "."})
	return !errors.Is(err, lesskv.ErrMissing)
}

// prompt returns the text of a chat, and what ends an answer beside the model's own tokens, "" if nothing does.
func (c *chat) prompt(messages []lesskv.Message) (text, stop string, err error) {
	text, err = lesskv.ChatPrompt(c.model, messages...)
	if errors.Is(err, lesskv.ErrMissing) {
		return plainChat(messages), "\nUser:", nil
	}
	return text, "", err
}

// plainChat is the form of a chat for models without a template.
func plainChat(messages []lesskv.Message) string {
	var b strings.Builder
	for _, m := range messages {
		switch m.Role {
		case "system":
			b.WriteString(m.Text + "\n\n")
		case "user":
			b.WriteString("User: " + m.Text + "\nAssistant:")
		case "assistant":
			b.WriteString(m.Text + "\n")
		}
	}
	return b.String()
}

// An answerWriter writes an answer as it comes, but for a text that ends it.
type answerWriter struct {
	w    io.Writer
	stop string
	held string // what may be the beginning of stop
	text strings.Builder
	err  error
}

func (a *answerWriter) token(s string) bool {
	a.held += s
	if a.stop == "" {
		return a.flush(len(a.held))
	}
	if at := strings.Index(a.held, a.stop); at >= 0 {
		a.flush(at)
		a.held = ""
		return a.err == nil // Predict sees the same end
	}
	n := min(len(a.held), len(a.stop)-1)
	for !strings.HasPrefix(a.stop, a.held[len(a.held)-n:]) {
		n--
	}
	return a.flush(len(a.held) - n)
}

// flush writes the first n bytes of what is held.
func (a *answerWriter) flush(n int) bool {
	if a.err == nil {
		_, a.err = io.WriteString(a.w, a.held[:n])
	}
	a.text.WriteString(a.held[:n])
	a.held = a.held[n:]
	return a.err == nil
}

// end writes what is still held, and ends the line.
func (a *answerWriter) end() {
	a.flush(len(a.held))
	if a.err == nil {
		_, a.err = fmt.Fprintln(a.w)
	}
}

// status says on a terminal, in one line, how long the text is and what it takes; and everywhere that the context is full.
func (c *chat) status() error {
	t, err := lesskv.LastTimings(c.model)
	if err != nil {
		return err
	}
	if t.Stop == "context" {
		fmt.Fprintf(c.err, "the context is full after %d tokens: /reset, or a larger one (-c)\n", t.Prompt+t.Generated-1)
	}
	if !progress.OnTerminal(c.err) {
		return nil
	}
	s, err := lesskv.Stats(c.model)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("%d tokens, %d of them new; cache %s", t.Prompt+t.Generated, t.Evaluated+t.Generated, memory.Size(s.CacheBytes))
	if s.Enabled {
		line += fmt.Sprintf(" + checkpoints %s", memory.Size(s.CheckpointBytes))
	}
	if os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		line = "\x1b[2m" + line + "\x1b[0m"
	}
	_, err = fmt.Fprintln(c.err, line)
	return err
}
