//go:build cgo

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	lesskv "github.com/lesskv/lesskv/plugin"
)

// runOptions are the flags of run.
type runOptions struct {
	modelOptions
	file   string
	tokens int
	stop   []string
}

func newRun() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] [PROMPT]",
		Short: "Stream a completion, and say what the cache takes",
		Long: `Stream the completion of a prompt to standard output, token by token. Print on
standard error how fast it was, and what the cache held beside what the full
cache would.

The prompt is the argument, the file of -f, or standard input. From a file or
standard input one newline at the end is removed. Without -m the model is
gopher-5m, which is built in and writes Go. Ctrl-C ends the text, a second one
the program.

Put a prompt that begins with - behind --. If no flag of the cache is given, the
variables LESSKV, LESSKV_BUDGET and so on of the plugin's manual are used.`,
		Example: `  lesskv run "func (s *Server) ListenAndServe() error {"
  lesskv run -m model.gguf -f prompt.txt -n 500 -b 1/16
  git diff | lesskv run -m model.gguf --less=off`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("%d arguments: put the prompt into quotes", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	f := cmd.Flags()
	o.add(f, "seed of the sampling, -1 for a random one")
	f.Lookup("checkpoints").Usage = "`checkpoints` to keep, which one prompt has no use for (default 0)"
	f.StringVarP(&o.file, "file", "f", "", "read the prompt from a `file`, - is standard input")
	addTokens(f, &o.tokens, "tokens", "n", 128, -1, "how many tokens to generate, -1 for as many as the model writes, with LESS up to its trained context")
	f.StringArrayVar(&o.stop, "stop", nil, "end at this `text` (may be given several times)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the completion alone")
	f.SortFlags = false
	addEarlierNames(f, map[string]string{"batch": "ubatch"})
	return cmd
}

func (o *runOptions) run(cmd *cobra.Command, args []string) error {
	prompt, err := o.prompt(cmd.InOrStdin(), args)
	if err != nil {
		return err
	}
	model, path, err := o.open(cmd, lesskv.None) // no second prompt goes back to a checkpoint
	if err != nil {
		return err
	}
	defer model.Free()

	caught, done := watch(model)
	defer done()
	var written error
	_, err = o.predict(model, prompt, o.tokens, o.seed, llama.SetStopWords(o.stop...),
		llama.SetTokenCallback(func(token string) bool {
			_, written = io.WriteString(cmd.OutOrStdout(), token)
			return written == nil
		}))
	t, terr := lesskv.LastTimings(model)
	if err = errors.Join(err, terr); t.Stop == "" {
		return err // before the first token
	}
	fmt.Fprintln(cmd.OutOrStdout())
	if !o.quiet {
		err = errors.Join(err, report(cmd.ErrOrStderr(), filepath.Base(path), model, t))
	}
	if o.tokens >= 0 && t.Stop == "context" { // else as was asked for
		err = errors.Join(err, fmt.Errorf("the context of %d tokens is full after %d prompt tokens and %d generated: want a larger one (-c)",
			t.Prompt+t.Generated-1, t.Prompt, t.Generated))
	}
	if err == nil {
		err = written
	}
	if err == nil && caught() != nil {
		err = errInterrupted
	}
	return err
}

// prompt returns the text to complete.
func (o *runOptions) prompt(stdin io.Reader, args []string) (string, error) {
	if len(args) == 1 && o.file != "" {
		return "", usageError{fmt.Errorf("a prompt and -f %s: give one of the two", o.file)}
	}
	if o.tokens == 0 {
		return "", usageError{errors.New("--tokens 0: want 1 token at least, or -1 for no end")}
	}
	var text []byte
	var err error
	switch {
	case len(args) == 1:
		text = []byte(args[0])
	case o.file != "" && o.file != "-":
		text, err = os.ReadFile(o.file)
	default:
		if in, ok := stdin.(*os.File); ok && o.file == "" && term.IsTerminal(int(in.Fd())) {
			return "", usageError{errors.New("no prompt: give it as an argument, with -f FILE, or on standard input")}
		}
		text, err = io.ReadAll(stdin)
	}
	if err != nil {
		return "", fmt.Errorf("reading the prompt: %w", err)
	}
	prompt := string(text)
	if len(args) == 0 {
		prompt = strings.TrimSuffix(prompt, "\n")
	}
	if prompt == "" {
		return "", usageError{errors.New("the prompt is empty")}
	}
	return prompt, nil
}

// watch makes the first SIGINT or SIGTERM end the text, and the second the program. caught returns the first, or nil if there was none. The
// caller calls done before it frees the model.
func watch(model *llama.LLama) (caught func() os.Signal, done func()) {
	signals := make(chan os.Signal, 2)
	finished := make(chan bool)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	var got os.Signal
	stop := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			select {
			case s := <-signals:
				if got != nil {
					os.Exit(exitInterrupted)
				}
				got = s
				lesskv.Interrupt(model)
			case <-stop:
				return
			}
		}
	}()
	var stopped bool
	done = func() {
		if !stopped {
			stopped = true
			signal.Stop(signals)
			close(stop)
			<-finished
		}
	}
	return func() os.Signal { done(); return got }, done
}
