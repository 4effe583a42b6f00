//go:build cgo

package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// modelOptions are the flags of commands that generate text: how a model is loaded, and how its tokens are sampled.
type modelOptions struct {
	model   string
	context int
	ubatch  int
	threads int
	gpu     int
	seed    int
	temp    float32
	topK    int
	topP    float32
	penalty float32
	verbose bool
	quiet   bool // nothing is said but errors
	less    *lesskv.Flags
	cache   []string // names of its flags
}

func (o *modelOptions) add(f *pflag.FlagSet, seed string) {
	addModel(f, &o.model, builtin)
	addContext(f, &o.context, 0, ", 0 for the model's own")
	addUbatch(f, &o.ubatch, 512, "")
	addThreads(f, &o.threads, "; with gopher-5m 1 unless given, as it is too small to share")
	addGPULayers(f, &o.gpu, "")
	addNumber(f, &o.seed, "seed", "s", -1, -1, most, seed)
	addNumber(f, &o.temp, "temp", "", 0.8, 0, 1000, "temperature, 0 for the most likely token each time")
	addNumber(f, &o.topK, "top-k", "", 40, 0, most, "sample from the k most likely tokens, 0 for all")
	addNumber(f, &o.topP, "top-p", "", 0.95, 0, 1, "sample from the most likely tokens that make up this probability")
	addNumber(f, &o.penalty, "repeat-penalty", "", 1.1, 0.001, 1000, "divide the logits of the last 64 tokens by this, 1 for no penalty")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print llama.cpp's log")
	o.addCache(f)
}

// open loads the model, and returns its path beside it. checkpoints are as Config has them, unless a flag says so.
func (o *modelOptions) open(cmd *cobra.Command, checkpoints int) (*llama.LLama, string, error) {
	if err := o.environment(cmd.Flags()); err != nil {
		return nil, "", err
	}
	if o.gpu > 0 && !lesskv.HasDevices() { // of which llama.New only warns, as an app's options may be another machine's
		return nil, "", fmt.Errorf("--gpu-layers %d: this runtime has no backend for devices: assemble it with -backend "+
			"(go run ./patches -backend cpu,cuda; or cpu,rpc, with servers in LESSKV_RPC)", o.gpu)
	}
	if o.model == "" && !cmd.Flags().Changed("threads") {
		o.threads = 1
	}
	path, cache, err := o.resolve(checkpoints)
	if err != nil {
		return nil, "", err
	}
	if !o.quiet && !o.verbose { // else the log says it
		rpcServers(cmd.ErrOrStderr(), cmd.Name(), o.gpu)
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
	return model, path, err
}

// predict generates text as the flags say.
func (o *modelOptions) predict(model *llama.LLama, prompt string, tokens, seed int, more ...llama.PredictOption) (string, error) {
	return model.Predict(prompt, append([]llama.PredictOption{
		llama.SetTokens(tokens), llama.SetBatch(o.ubatch), llama.SetThreads(o.threads), llama.SetSeed(seed),
		llama.SetTemperature(o.temp), llama.SetTopK(o.topK), llama.SetTopP(o.topP), llama.SetPenalty(o.penalty),
	}, more...)...)
}

// addCache adds the plugin's flags. Those that other commands have too are called, explained and read as there.
func (o *modelOptions) addCache(f *pflag.FlagSet) {
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

// notEmpty is a flag that "" is no value of.
type notEmpty struct{ pflag.Value }

func (v notEmpty) Set(s string) error {
	if s == "" {
		return errEmpty
	}
	return v.Value.Set(s)
}

// environment sets the flags of the cache as LESSKV_* say, where none was given: as it is with an app's options.
func (o *modelOptions) environment(f *pflag.FlagSet) error {
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
func (o *modelOptions) resolve(checkpoints int) (path string, cache llama.ModelOption, err error) {
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
