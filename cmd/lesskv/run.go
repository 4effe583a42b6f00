//go:build cgo

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/patches/limits"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// runOptions are the flags of run.
type runOptions struct {
	model   string
	file    string
	tokens  int
	context int
	batch   int
	threads int
	gpu     int
	seed    int
	temp    float32
	topK    int
	topP    float32
	penalty float32
	stop    []string
	verbose bool
	quiet   bool
	less    *lesskv.Flags
	cache   []string // names of its flags
}

func newRun() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] [PROMPT]",
		Short: "Stream a completion, with the cache's bytes beside the full cache's",
		Long: `Stream the completion of a prompt to standard output, token by token, and say on
standard error how fast it was and what the cache held beside what the full
cache would.

The prompt is the argument, the file of -f, or standard input; of the last two
one newline at the end is left out. Without -m the model is gopher-5m, which is
built in and writes Go. Ctrl-C ends the text, a second one the program.

A prompt that begins with - goes behind --. Where no flag of the cache is given,
LESSKV=off and the other variables LESSKV_* of the plugin's manual say what these
would.`,
		Example: `  lesskv run "func (s *Server) ListenAndServe() error {"
  lesskv run -m model.gguf -f prompt.txt -n 500 --budget 5% --policy peak
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
	f.StringVarP(&o.model, "model", "m", "", "GGUF `file` of the model (default: gopher-5m, built in)")
	f.StringVarP(&o.file, "file", "f", "", "read the prompt from a `file`, - is standard input")
	addNumber(f, &o.tokens, "tokens", "n", 128, -1, most, "how many tokens to generate, -1 for no end but the model's, and with LESS the trained context's")
	addNumber(f, &o.context, "context", "c", 0, 0, most, "context in tokens, 0 for the model's own")
	addNumber(f, &o.batch, "batch", "b", 0, 0, most, "tokens of the prompt to compute at a time (default 512, with gopher-5m 32, as its adapters were trained)")
	addNumber(f, &o.threads, "threads", "t", 0, 0, maxThreads, "threads (default one for each CPU, with gopher-5m 1, as it is too small to share)")
	addNumber(f, &o.gpu, "gpu-layers", "", 0, 0, most, gpuLayersHelp)
	addNumber(f, &o.seed, "seed", "s", -1, -1, most, "seed of the sampling, -1 for a random one")
	addNumber(f, &o.temp, "temp", "", 0.8, 0, 1000, "temperature, 0 for the most likely token each time")
	addNumber(f, &o.topK, "top-k", "", 40, 0, most, "sample from the k most likely tokens, 0 for all")
	addNumber(f, &o.topP, "top-p", "", 0.95, 0, 1, "sample from the most likely tokens that make up this probability")
	addNumber(f, &o.penalty, "repeat-penalty", "", 1.1, 0.001, 1000, "divide the logits of the last 64 tokens by this, 1 for no penalty")
	f.StringArrayVar(&o.stop, "stop", nil, "end at this `text` (may be given several times)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print llama.cpp's log")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the completion alone")
	less := flag.NewFlagSet("", flag.ContinueOnError)
	o.less = lesskv.RegisterFlags(less, "")
	less.VisitAll(func(g *flag.Flag) {
		p := pflag.PFlagFromGoFlag(g)
		p.Value = notEmpty{p.Value}
		f.AddFlag(p)
		o.cache = append(o.cache, p.Name)
	})
	f.SortFlags = false
	return cmd
}

func (o *runOptions) run(cmd *cobra.Command, args []string) error {
	prompt, err := o.prompt(cmd.InOrStdin(), args)
	if err != nil {
		return err
	}
	if err := o.environment(cmd.Flags()); err != nil {
		return err
	}
	if o.gpu > 0 && !lesskv.HasDevices() { // of which llama.New only warns, as an app's options may be another machine's
		return fmt.Errorf("--gpu-layers %d: this runtime has no backend for devices: assemble it with -backend "+
			"(go run ./patches -backend cpu,cuda; or cpu,rpc, with servers in LESSKV_RPC)", o.gpu)
	}
	path, cache, err := o.resolve(lesskv.None) // no second prompt goes back to one
	if err != nil {
		return err
	}
	if !o.quiet && !o.verbose { // else the log says it
		rpcServers(cmd.ErrOrStderr(), "run", o.gpu)
	}
	lesskv.SetLogOutput(cmd.ErrOrStderr())
	lesskv.SetLogLevel(slog.LevelError)
	if o.verbose {
		lesskv.SetLogLevel(slog.LevelInfo)
	}
	model, err := llama.New(path, llama.EnableF16Memory, llama.SetContext(o.context), llama.SetNBatch(o.batch), llama.SetGPULayers(o.gpu), cache)
	if err != nil {
		return err
	}
	defer model.Free()

	interrupted, done := watch(model)
	defer done()
	var written error
	_, err = model.Predict(prompt,
		llama.SetTokens(o.tokens), llama.SetBatch(o.batch), llama.SetThreads(o.threads), llama.SetSeed(o.seed),
		llama.SetTemperature(o.temp), llama.SetTopK(o.topK), llama.SetTopP(o.topP), llama.SetPenalty(o.penalty),
		llama.SetStopWords(o.stop...),
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
	if err == nil && interrupted() {
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

// notEmpty is a flag that "" is no value of.
type notEmpty struct{ pflag.Value }

func (v notEmpty) Set(s string) error {
	if s == "" {
		return errors.New("empty: give it something, or leave it out")
	}
	return v.Value.Set(s)
}

// environment sets the flags of the cache as LESSKV_* say, where none was given: as it is with an app's options.
func (o *runOptions) environment(f *pflag.FlagSet) error {
	if slices.ContainsFunc(o.cache, f.Changed) {
		return nil
	}
	set := func(name, variable string) error {
		value := os.Getenv(variable)
		if value == "" {
			return nil
		}
		if err := f.Set(name, value); err != nil {
			return usageError{fmt.Errorf("%s=%s: %w", variable, value, errors.Unwrap(err))}
		}
		return nil
	}
	if err := set("less", "LESSKV"); err != nil || o.less.Off() {
		return err
	}
	for _, name := range o.cache {
		if name != "less" {
			if err := set(name, "LESSKV_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolve returns the model's path and the option for its cache, and fills in what depends on the model. checkpoints are as Config has
// them, unless a flag says so.
func (o *runOptions) resolve(checkpoints int) (path string, cache llama.ModelOption, err error) {
	c := o.less.Config()
	if c.Checkpoints == 0 {
		c.Checkpoints = checkpoints
	}
	path = o.model
	if path == "" {
		if path, err = testdata.Path(testdata.Model); err != nil {
			return "", nil, fmt.Errorf("unpacking the built-in model: %w", err)
		}
		if err = builtinAdapter(&c); err != nil {
			return "", nil, err
		}
	}
	batch, threads := 512, limits.CPUs()
	if o.model == "" {
		batch, threads = 32, 1
	}
	if o.batch == 0 {
		o.batch = batch
	}
	if o.threads == 0 {
		o.threads = threads
	}
	if o.less.Off() {
		return path, lesskv.Disable(), nil
	}
	return path, lesskv.Enable(c), nil
}

// builtinAdapter chooses among the built-in model's adapters what fits the policy, unless one was chosen.
func builtinAdapter(c *lesskv.Config) (err error) {
	if c.Policy == "" {
		c.Policy = builtinPolicy
	}
	name, ok := builtinAdapters[string(c.Policy)]
	switch {
	case c.Adapter != "":
	case !ok:
		c.Adapter = lesskv.NoAdapter
	default:
		if c.Adapter, err = testdata.Path(name); err != nil {
			return fmt.Errorf("unpacking the built-in adapter: %w", err)
		}
	}
	return nil
}

// watch makes the first SIGINT or SIGTERM end the text, and the second the program. The caller calls done before it frees
// the model.
func watch(model *llama.LLama) (interrupted func() bool, done func()) {
	signals := make(chan os.Signal, 2)
	finished := make(chan bool)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	var got bool
	stop := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			select {
			case <-signals:
				if got {
					os.Exit(exitInterrupted)
				}
				got = true
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
	return func() bool { done(); return got }, done
}
