package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// In each window six numbers are said, and behind all of them asked for and answered; nothing of the text around them is lost.
func TestWithLookUps(t *testing.T) {
	const window = 1200
	bytes := func(s string) (tokens []int32, err error) {
		for _, b := range []byte(s) {
			tokens = append(tokens, int32(b))
		}
		return tokens, nil
	}
	text, err := bytes(strings.Repeat("0123456789", 900))
	require.NoError(t, err)
	all, err := withLookUps(text, window, bytes)
	require.NoError(t, err)
	require.NotEmpty(t, all)
	require.Zero(t, len(all)%(10*window), "the last tenth is of whole windows")
	said := regexp.MustCompile(`\nThe (\w+) key is (\d{5})\. Keep it in mind: \d{5} is the \w+ key\.\n`)
	asked := regexp.MustCompile(`\nWhat is the (\w+) key\? The \w+ key is (\d{5})\.\n`)
	rest := ""
	for i := 0; i < len(all); i += window {
		var b strings.Builder
		for _, token := range all[i : i+window] {
			b.WriteByte(byte(token))
		}
		s := b.String()
		numbers := map[string]string{}
		for _, m := range said.FindAllStringSubmatch(s, -1) {
			numbers[m[1]] = m[2]
		}
		require.Len(t, numbers, 6)
		questions := asked.FindAllStringSubmatch(s, -1)
		require.Len(t, questions, 6)
		for _, m := range questions {
			assert.Equal(t, numbers[m[1]], m[2])
			delete(numbers, m[1])
		}
		assert.Empty(t, numbers)
		assert.Less(t, said.FindAllStringIndex(s, -1)[5][0], asked.FindStringIndex(s)[0])
		rest += asked.ReplaceAllString(said.ReplaceAllString(s, ""), "")
	}
	assert.True(t, strings.HasPrefix(strings.Repeat("0123456789", 900), rest), "in its order")
}
