package lesskv

import (
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"

	llama "github.com/go-skynet/go-llama.cpp"
)

// Flags are the command-line flags of RegisterFlags and what they were set to.
type Flags struct {
	config Config
	on     bool
	given  bool // any of them
	off    bool // said so
}

// RegisterFlags adds a flag for each field of Config to a flag set, all beginning with prefix; with "lesskv-":
//
//	-lesskv                LESS on, or with =off off; any of the others switches it on too
//	-lesskv-budget 5%      as LESSKV_BUDGET, and so on
//	-lesskv-policy peak
//	-lesskv-heavy 32
//	-lesskv-pinned 1
//	-lesskv-type q8_0
//	-lesskv-adapter PATH
//	-lesskv-force-adapter
//	-lesskv-device
//	-lesskv-checkpoints 2
//
// With an empty prefix the first of them is -less. Parse returns an error for a value that is wrong for every model; the rest are errors of
// llama.New.
func RegisterFlags(fs *flag.FlagSet, prefix string) *Flags {
	f := &Flags{}
	add := func(name, usage string, set func(string) error) {
		fs.Func(prefix+name, usage, func(s string) error {
			f.given = true
			return set(s)
		})
	}
	name := strings.TrimRight(prefix, "-")
	if name == "" {
		name = "less"
	}
	fs.Var(boolValue{func(on bool) { f.on, f.off = on, !on }}, name, "a KV cache of constant size; =off for the unmodified one")
	c := &f.config
	add("budget", "what stays in the cache: `N` slots a head, N% of the context, NMiB of memory or 1/N of the full f16 cache's (default: what the adapter was trained for; without phi and psi 1/12, or 1024 slots a head if that is more)", func(s string) (err error) {
		c.Budget, err = ParseBudget(s)
		return err
	})
	var policies []string
	for _, p := range Policies() {
		policies = append(policies, fmt.Sprintf("%s (%s)", p.Name, p.Help))
	}
	add("policy", "`name` of what says which tokens stay: "+strings.Join(policies, ", ")+" (default: the adapter's, peak without one)", func(s string) error {
		c.Policy = Policy(s)
		return nil
	})
	add("heavy", "`slots` of the budget that are chosen by score (default: the policy's share)", parseCount(&c.Heavy))
	add("pinned", "first `tokens` that always stay (default 1)", parseCount(&c.Pinned))
	add("type", "`type` of the stored keys and values: f16, f32, q8_0, q4_0, or one for each: q4_0,q8_0 (default: the adapter's, without those q8_0, or f16 where heads do not fill its blocks)", func(s string) error {
		keys, values, two := strings.Cut(s, ",")
		if !two {
			values = keys
		}
		c.Keys, c.Values = SlotType(keys), SlotType(values)
		return nil
	})
	add("adapter", "`path` of the adapter, or none (default: MODEL.lesskv.gguf beside the model)", func(s string) error {
		c.Adapter = s
		return nil
	})
	fs.Var(boolValue{func(on bool) { f.given, c.ForceAdapter = true, on }}, prefix+"force-adapter", "accept an adapter made for other weights of the same shape")
	fs.Var(boolValue{func(on bool) { f.given, c.OnDevice = true, on }}, prefix+"device", "the cache and its attention where the layers are, not in main memory")
	add("checkpoints", "`checkpoints` to keep, for edited or repeated prompts (default 2)", parseCount(&c.Checkpoints))
	return f
}

// Config returns what the flags say.
func (f *Flags) Config() Config { return f.config }

// Off reports whether LESS was switched off outright.
func (f *Flags) Off() bool { return f.off }

// Option returns Enable or Disable, as the flags say; where none was given it leaves the choice to the environment.
func (f *Flags) Option() llama.ModelOption {
	switch {
	case f.off:
		return Disable()
	case f.on || f.given:
		return Enable(f.config)
	}
	return func(*llama.ModelOptions) {}
}

// A boolValue is a flag that needs no value, and takes on and off as well as true and false.
type boolValue struct{ set func(bool) }

func (v boolValue) IsBoolFlag() bool { return true }
func (v boolValue) String() string   { return "" }

func (v boolValue) Set(s string) error {
	switch strings.ToLower(s) {
	case "on", "true", "1", "yes":
		v.set(true)
	case "off", "false", "0", "no":
		v.set(false)
	default:
		return errors.New("want on or off")
	}
	return nil
}

// parseCount reads a count as Config has it, where 0 is the default and None is none.
func parseCount(to *int) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return errors.New("want a number, 0 for none")
		}
		*to = int(n)
		if n == 0 {
			*to = None
		}
		return nil
	}
}
