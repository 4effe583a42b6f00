//go:build cgo

package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
	"github.com/lesskv/lesskv/integration/verify"
)

// FuzzPrompts: any text is prompts, which written again are read as the same, or refused.
func FuzzPrompts(f *testing.F) {
	for _, s := range []string{"{\"prompt\": \"a\"}\n\n {\"prompt\": \"b\", \"reference\": \"c\"}", "{\"prompt\": \"\"}", "{\"prompt\": \"a\"}{\"prompt\": \"b\"}", "{\"prompt\": \"a\"} x",
		"{\"other\": 1}", "[]", "\r\n", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, 1<<20+256*len(b), func() {
			all, err := parsePrompts(b)
			if err != nil {
				require.Empty(t, all)
				return
			}
			require.NotEmpty(t, all)
			var lines bytes.Buffer
			for _, p := range all {
				require.NotEmpty(t, p.Prompt)
				require.NoError(t, json.NewEncoder(&lines).Encode(p))
			}
			again, err := parsePrompts(lines.Bytes())
			require.NoError(t, err)
			require.Equal(t, all, again)
		})
	})
}

// flagValues are a flag of each kind that reads a text of its own.
type flagValues struct {
	context, ubatch, number int
	contexts, ubatches      []int
	memory                  int64
	budget                  budget
	budgets                 []budget
	types                   []string
	share                   float64
}

func (v *flagValues) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	addContext(f, &v.context, 0, "")
	addTokens(f, &v.ubatch, "ubatch", "", 32, 1, "")
	addNumber(f, &v.number, "number", "", 5, 0, 100, "")
	f.Var(newList(&v.contexts, "contexts", parseTokens), "contexts", "")
	f.Var(newList(&v.ubatches, "ubatches", parseSomeTokens), "ubatches", "")
	addMemory(f, &v.memory, "")
	addBudget(f, &v.budget, "")
	f.Var(newList(&v.budgets, "budgets", parseBudget), "budgets", "")
	addTypes(f, &v.types, "")
	addNumber(f, &v.share, "share", "", .5, 0, 1, "")
	return f
}

// FuzzFlagValues: any text is the value of a flag, within the flag's bounds, and what help shows of it reads the same; or it is refused and
// leaves the value as it was.
func FuzzFlagValues(f *testing.F) {
	for _, s := range []string{"", "8192", "8k", "8K, 16k", "1048577k", "0", "-1", "99999999999999999999", "500M", "20G", "4194304T", "4194305T", "1/16,363KiB", "5%, 1024", "q4_0,q8_0",
		"NaN", "0x10", "1_000", ",", " ", "1e3", "٣"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		fuzztest.Bounded(t, 1<<20+4096*len(s), func() {
			new(flagValues).flags().VisitAll(func(flag *pflag.Flag) {
				var v, before, again flagValues
				fs := v.flags()
				before.flags()
				if fs.Set(flag.Name, s) != nil {
					require.Equal(t, before, v, flag.Name)
					return
				}
				for _, n := range append([]int{v.context}, v.contexts...) {
					require.True(t, n >= 0 && n <= 1<<30, n)
				}
				for _, n := range append([]int{v.ubatch}, v.ubatches...) {
					require.True(t, n >= 1 && n <= most, n)
				}
				require.True(t, v.number >= 0 && v.number <= 100, v.number)
				require.True(t, v.memory >= 0 && v.memory <= 1<<62, v.memory)
				require.True(t, v.share >= 0 && v.share <= 1, v.share)
				require.NoError(t, again.flags().Set(flag.Name, fs.Lookup(flag.Name).Value.String()))
				require.Equal(t, v, again, flag.Name)
			})
		})
	})
}

// What follows a prompt on its line is not lost without a word.
func TestPrompts(t *testing.T) {
	for text, says := range map[string]string{
		"{\"prompt\": \"a\"}{\"prompt\": \"b\"}": "line 1: want", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"} x": "line 2: want",
		"{\"prompt\": \"a\"}\n{}": "line 2: want {\"prompt\": \"…\", \"reference\": \"…\"}: no prompt", "\n": ": no prompts",
	} {
		_, err := parsePrompts([]byte(text))
		require.ErrorContains(t, err, says)
	}
	all, err := parsePrompts([]byte("\n{\"prompt\": \"a\", \"reference\": \"b\"} \r\n"))
	require.NoError(t, err)
	require.Equal(t, []verify.Prompt{{Prompt: "a", Reference: "b"}}, all)
}
