package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/weights/memory"
)

// What several commands take is defined here, once: its name, its letter, its help and how it is read. A command adds what it does
// where nothing is given.

func addModel(f *pflag.FlagSet, to *string, otherwise string) {
	f.StringVarP(to, "model", "m", "", "GGUF `file` of the model"+otherwise)
}

// What a command takes that is given nothing.
const (
	builtin = " (default: gopher-5m, built in)"
	beside  = " (default: MODEL.lesskv.gguf beside the model)"

	defaultBudget = " (default: what phi and psi were trained for, without them 1/12, or 1024 slots a head if that is more)"
	defaultPolicy = " (default: the adapter's, peak without one)"
	defaultType   = " (default: the adapter's, without those q8_0, or f16 where heads do not fill its blocks)"
)

const adapterHelp = "adapter `file`: phi and psi, budgets by head, or both"

func addAdapter(f *pflag.FlagSet, to *string, otherwise string) {
	f.StringVarP(to, "adapter", "w", "", adapterHelp+otherwise)
}

const (
	budgetHelp = "what the cache keeps: `N` slots a head, N% of the context, NMiB, or 1/N of the full f16 cache's bytes"

	windowContext = "; the context is a window's"
)

func addBudget(f *pflag.FlagSet, to *budget, otherwise string) {
	f.VarP(to, "budget", "b", budgetHelp+otherwise)
}

func addBudgets(f *pflag.FlagSet, to *[]budget, value, otherwise string) {
	l := newList(to, "budgets", parseBudget)
	if value != "" {
		l.otherwise(value)
	}
	f.VarP(l, "budget", "b", budgetHelp+"; several with commas"+otherwise)
}

const contextHelp = "context in `tokens`, as 8192 or 8k"

func addContext(f *pflag.FlagSet, to *int, value int, otherwise string) {
	*to = value
	f.VarP((*tokens)(to), "context", "c", contextHelp+otherwise)
}

func addContexts(f *pflag.FlagSet, to *[]int, value, otherwise string) {
	l := newList(to, "contexts", parseTokens)
	if value != "" {
		l.otherwise(value)
	}
	f.VarP(l, "context", "c", contextHelp+"; several with commas"+otherwise)
}

const typeHelp = "`type` of the slots: f16, f32, q8_0, q4_0, or one for keys and one for values, as q4_0,q8_0"

func addType(f *pflag.FlagSet, to *string, otherwise string) {
	f.Var(&slotType{to: to}, "type", typeHelp+otherwise)
}

const layersHelp = "; behind that layers that have others, as 0.k=q4_0,5.v=f16,7=q8_0 (keys of 0, values of 5, both of 7)"

// addLayerTypes adds a flag of types that layers may differ in.
func addLayerTypes(f *pflag.FlagSet, to *string, otherwise string) {
	f.Var(&slotType{to, true}, "type", typeHelp+layersHelp+otherwise)
}

func addPolicy(f *pflag.FlagSet, to *string, value, otherwise string) {
	*to = value
	f.Var((*policy)(to), "policy", "which pairs stay: "+policyText()+otherwise)
}

func addTypes(f *pflag.FlagSet, to *[]string, otherwise string) {
	l := newList(to, "types", func(s string) (string, error) { return s, (&slotType{new(string), true}).Set(s) })
	l.unsplit = true
	f.Var(l, "type", typeHelp+layersHelp+otherwise)
}

func addPolicies(f *pflag.FlagSet, to *[]string, value []string) {
	l := newList(to, "policies", func(s string) (string, error) { p := policy(""); return s, p.Set(s) })
	l.otherwise(strings.Join(value, ","))
	f.Var(l, "policy", "which pairs stay: "+policyText()+"; several with commas")
}

const (
	ubatchHelp = "tokens of a micro-batch: evictions happen after each"

	// why train, tune and verify have 32 where run has 512
	smallUbatch = "; run reads prompts 512 at a time, 32 is closer to decoding"
)

func addUbatch(f *pflag.FlagSet, to *int, value int, otherwise string) {
	addTokens(f, to, "ubatch", "", value, 1, ubatchHelp+otherwise)
}

func addUbatches(f *pflag.FlagSet, to *[]int, value, otherwise string) {
	l := newList(to, "ubatches", parseSomeTokens)
	l.otherwise(value)
	f.Var(l, "ubatch", ubatchHelp+"; several with commas"+otherwise)
}

func addThreads(f *pflag.FlagSet, to *int, otherwise string) {
	addNumber(f, to, "threads", "t", limits.CPUs(), 1, maxThreads, "threads"+otherwise)
}

func addGPULayers(f *pflag.FlagSet, to *int, otherwise string) {
	addNumber(f, to, "gpu-layers", "", 0, 0, most, "layers on devices: first those of the servers in LESSKV_RPC, then this machine's"+otherwise)
}

func addTexts(f *pflag.FlagSet, to *[]string) {
	f.StringArrayVarP(to, "data", "d", nil, "text: a `file`, a folder, or - for standard input (may be given several times)")
}

func addOutput(f *pflag.FlagSet, to *string, help string) {
	f.StringVarP(to, "output", "o", "", help)
}

func addMemory(f *pflag.FlagSet, to *int64, otherwise string) {
	f.Var((*byteSize)(to), "memory", "`bytes` that may be taken, as 8G"+otherwise)
}

func addQuiet(f *pflag.FlagSet, to *bool) { f.BoolVarP(to, "quiet", "q", false, "no progress") }

// addEarlierNames adds earlier names of flags. They are taken, and shown nowhere.
func addEarlierNames(f *pflag.FlagSet, names map[string]string) {
	for name, now := range names {
		f.Var(earlierName{f.Lookup(now).Value, f, now}, name, "")
		f.Lookup(name).Hidden = true
	}
}

// earlierName is a flag that sets another one.
type earlierName struct {
	pflag.Value
	flags *pflag.FlagSet
	now   string
}

func (v earlierName) Set(s string) error {
	err := v.flags.Set(v.now, s)
	var wrong *pflag.InvalidValueError
	if errors.As(err, &wrong) { // which names the other flag
		return errors.Unwrap(wrong)
	}
	return err
}

// warnEarlierNames says which flag an earlier name means, since some are other flags' names in other commands.
func warnEarlierNames(cmd *cobra.Command) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if v, ok := f.Value.(earlierName); ok {
			fmt.Fprintf(cmd.ErrOrStderr(), "--%s means --%s in lesskv %s: write that\n", f.Name, v.now, cmd.Name())
		}
	})
}

// A budget is one as it was given; the zero value is the runtime's default.
type budget struct {
	memory.Budget
	text string
}

func parseBudget(s string) (budget, error) {
	b, err := memory.ParseBudget(s)
	if s == "" {
		err = errEmpty
	}
	return budget{b, s}, err
}

// parseBytesBudget reads a budget that is one in bytes.
func parseBytesBudget(s string) (budget, error) {
	b, err := parseBudget(s)
	if err == nil && !b.InBytes() {
		err = errors.New("want a share of the full f16 cache's bytes (1/16) or memory (64MiB)")
	}
	return b, err
}

func (b *budget) String() string { return b.text }
func (b *budget) Type() string   { return "budget" }

func (b *budget) Set(s string) error {
	x, err := parseBudget(strings.TrimSpace(s))
	if err == nil {
		*b = x
	}
	return err
}

// tokens is a flag of a number of tokens.
type tokens int

func parseTokens(s string) (int, error) {
	digits, thousands := strings.CutSuffix(strings.ToLower(s), "k")
	unit := 1
	if thousands {
		unit = 1024
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n > 1<<30/unit {
		return 0, errors.New("want a number of tokens such as 8192 or 8k")
	}
	return n * unit, nil
}

// parseSomeTokens reads a number of tokens that is not 0.
func parseSomeTokens(s string) (int, error) {
	n, err := parseTokens(s)
	if err == nil && n == 0 {
		err = errors.New("want 1 token at least")
	}
	return n, err
}

func (t *tokens) Type() string { return "tokens" }

func (t *tokens) String() string {
	if *t < 0 { // as none can be given
		return ""
	}
	return strconv.Itoa(int(*t))
}

func (t *tokens) Set(s string) error {
	n, err := parseTokens(s)
	if err == nil {
		*t = tokens(n)
	}
	return err
}

// A tokenCount is a flag of a number of tokens with bounds of its own.
type tokenCount struct{ number[int] }

// addTokens adds a flag of a number of tokens, of which there are at least so many.
func addTokens(f *pflag.FlagSet, to *int, name, short string, value, least int, usage string) {
	*to = value
	f.VarP(&tokenCount{number[int]{to, least, most}}, name, short, usage)
}

func (n *tokenCount) Type() string { return "tokens" }

func (n *tokenCount) Set(s string) error {
	if x, err := parseTokens(s); err == nil {
		s = strconv.Itoa(x)
	}
	if n.number.Set(s) != nil {
		return fmt.Errorf("want tokens from %d to %d, as 8192 or 8k", n.least, n.top)
	}
	return nil
}

// slotType is a flag of the types of keys and values.
type slotType struct {
	to     *string
	layers bool // which may differ in them
}

func (t *slotType) String() string { return *t.to }
func (t *slotType) Type() string   { return "type" }

func (t *slotType) Set(s string) error {
	if s == "" {
		return errEmpty
	}
	var err error
	if t.layers {
		_, _, err = worker.SlotTypes(s)
	} else {
		_, _, err = worker.GGUFTypes(s)
	}
	if err == nil {
		*t.to = s
	}
	return err
}

// policy is a flag of a policy's name.
type policy string

func (p *policy) String() string { return string(*p) }
func (p *policy) Type() string   { return "policy" }

func (p *policy) Set(s string) error {
	if known := policyNames(); !slices.Contains(known, s) {
		return fmt.Errorf("want one of %s", strings.Join(known, ", "))
	}
	*p = policy(s)
	return nil
}

// word is a flag that is one of some words.
type word struct {
	to *string
	of []string
}

func addWord(f *pflag.FlagSet, to *string, name, help string, of ...string) {
	*to = of[0]
	f.Var(word{to, of}, name, help+": "+strings.Join(of, ", "))
}

func (w word) String() string { return *w.to }
func (w word) Type() string   { return "word" }

func (w word) Set(s string) error {
	if !slices.Contains(w.of, s) {
		return fmt.Errorf("want one of %s", strings.Join(w.of, ", "))
	}
	*w.to = s
	return nil
}

// byteSize is a flag of a number of bytes.
type byteSize int64

func (n *byteSize) Type() string { return "bytes" }

func (n *byteSize) String() string {
	if *n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*n), 10)
}

func (n *byteSize) Set(s string) error {
	x, err := parseBytes(s)
	if err == nil {
		*n = byteSize(x)
	}
	return err
}

// A list is a flag of several values, with commas between them or given several times. What is given takes the place of the default.
type list[T any] struct {
	to    *[]T
	kind  string
	parse func(string) (T, error)
	texts []string
	given bool

	unsplit bool // what is given is one value, which may have a comma in it
}

func newList[T any](to *[]T, kind string, parse func(string) (T, error)) *list[T] {
	return &list[T]{to: to, kind: kind, parse: parse}
}

// otherwise sets the default.
func (l *list[T]) otherwise(text string) {
	if err := l.Set(text); err != nil {
		panic(err)
	}
	l.given = false
}

func (l *list[T]) String() string { return strings.Join(l.texts, ",") }
func (l *list[T]) Type() string   { return l.kind }

func (l *list[T]) Set(s string) error {
	var all []T
	var texts []string
	parts := []string{s}
	if !l.unsplit {
		parts = strings.Split(s, ",")
	}
	for _, text := range parts {
		text = strings.TrimSpace(text)
		x, err := l.parse(text)
		if err != nil {
			return err
		}
		all, texts = append(all, x), append(texts, text)
	}
	if !l.given {
		*l.to, l.texts = nil, nil
	}
	*l.to, l.texts, l.given = append(*l.to, all...), append(l.texts, texts...), true
	return nil
}

var errEmpty = errors.New("empty: give it something, or leave it out")
