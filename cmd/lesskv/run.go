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
	lesskv "github.com/lesskv/lesskv/plugin"
)

// runOptions are the flags of run.
type runOptions struct {
	model   string
	file    string
	tokens  int
	context int
	ubatch  int
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
  lesskv run -m model.gguf -f prompt.txt -n 500 -b 5% --policy peak
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
	addModel(f, &o.model, builtin)
	f.StringVarP(&o.file, "file", "f", "", "read the prompt from a `file`, - is standard input")
	addNumber(f, &o.tokens, "tokens", "n", 128, -1, most, "how many tokens to generate, -1 for no end but the model's, and with LESS the trained context's")
	addContext(f, &o.context, 0, ", 0 for the model's own")
	addUbatch(f, &o.ubatch, 512)
	addThreads(f, &o.threads, "; with gopher-5m 1 unless given, as it is too small to share")
	addGPULayers(f, &o.gpu, ", and before them on those of the servers in LESSKV_RPC")
	addNumber(f, &o.seed, "seed", "s", -1, -1, most, "seed of the sampling, -1 for a random one")
	addNumber(f, &o.temp, "temp", "", 0.8, 0, 1000, "temperature, 0 for the most likely token each time")
	addNumber(f, &o.topK, "top-k", "", 40, 0, most, "sample from the k most likely tokens, 0 for all")
	addNumber(f, &o.topP, "top-p", "", 0.95, 0, 1, "sample from the most likely tokens that make up this probability")
	addNumber(f, &o.penalty, "repeat-penalty", "", 1.1, 0.001, 1000, "divide the logits of the last 64 tokens by this, 1 for no penalty")
	f.StringArrayVar(&o.stop, "stop", nil, "end at this `text` (may be given several times)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print llama.cpp's log")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the completion alone")
	o.addCache(f)
	f.SortFlags = false
	aliases(f, map[string]string{"batch": "ubatch"})
	return cmd
}

// addCache adds the plugin's flags. Those that other commands have too are called, explained and read as there.
func (o *runOptions) addCache(f *pflag.FlagSet) {
	shared := pflag.NewFlagSet("", pflag.ContinueOnError)
	var adapter, types, policy string
	addBudget(shared, &budget{}, defaultBudget)
	addAdapter(shared, &adapter, ", or none"+beside)
	addType(shared, &types, defaultType)
	addPolicy(shared, &policy, "", defaultPolicy)
	less := flag.NewFlagSet("", flag.ContinueOnError)
	o.less = lesskv.RegisterFlags(less, "")
	less.VisitAll(func(g *flag.Flag) {
		p := pflag.PFlagFromGoFlag(g)
		if same := shared.Lookup(p.Name); same != nil {
			p.Shorthand, p.Usage = same.Shorthand, same.Usage
			p.Value = both{same.Value, p.Value}
		}
		p.Value = notEmpty{p.Value}
		f.AddFlag(p)
		o.cache = append(o.cache, p.Name)
	})
}

// both is a flag that is read twice: as the commands read it, and as the plugin does.
type both struct {
	pflag.Value
	plugin pflag.Value
}

func (v both) Set(s string) error {
	if err := v.Value.Set(s); err != nil {
		return err
	}
	return v.plugin.Set(s)
}

func (o *runOptions) run(cmd *cobra.Command, args []string) error {
	prompt, err := o.prompt(cmd.InOrStdin(), args)
	if err != nil {
		return err
	}
	if err := o.environment(cmd.Flags()); err != nil {
		return err
	}
	if o.model == "" && !cmd.Flags().Changed("threads") {
		o.threads = 1
	}
	path, cache, err := o.resolve()
	if err != nil {
		return err
	}
	lesskv.SetLogOutput(cmd.ErrOrStderr())
	switch {
	case o.verbose:
		lesskv.SetLogLevel(slog.LevelInfo)
	case o.quiet:
		lesskv.SetLogLevel(slog.LevelError)
	default:
		lesskv.SetLogLevel(slog.LevelWarn)
	}
	model, err := llama.New(path, llama.EnableF16Memory, llama.SetContext(o.context), llama.SetNBatch(o.ubatch), llama.SetGPULayers(o.gpu), cache)
	if err != nil {
		return err
	}
	defer model.Free()

	interrupted, done := watch(model)
	defer done()
	var written error
	_, err = model.Predict(prompt,
		llama.SetTokens(o.tokens), llama.SetBatch(o.ubatch), llama.SetThreads(o.threads), llama.SetSeed(o.seed),
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
		return errEmpty
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

// resolve returns the model's path and the option for its cache, and fills in what depends on the model.
func (o *runOptions) resolve() (path string, cache llama.ModelOption, err error) {
	c := o.less.Config()
	path = o.model
	if path == "" {
		if path, err = testdata.Path(testdata.Model); err != nil {
			return "", nil, fmt.Errorf("unpacking the built-in model: %w", err)
		}
		if err = builtinAdapter(&c); err != nil {
			return "", nil, err
		}
	}
	if o.less.Off() {
		return path, lesskv.Disable(), nil
	}
	return path, lesskv.Enable(c), nil
}

// builtinAdapter chooses among the built-in model's adapters what fits the policy, unless one was chosen.
func builtinAdapter(c *lesskv.Config) (err error) {
	if c.Adapter != "" {
		return nil
	}
	if c.Policy == "" {
		c.Policy = builtinPolicy
	}
	switch name, ok := builtinAdapters[string(c.Policy)]; {
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
