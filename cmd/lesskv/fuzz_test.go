//go:build cgo

package main

import (
	"bytes"
	"encoding/json"
	"testing"

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
