package worker

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
)

// FuzzReply: whatever a worker answers is a reply, an *Error or another error, in memory of what was answered and not of what it says
// is to come. No field of a reply ends the program, nor does the number of its values.
func FuzzReply(f *testing.F) {
	for _, reply := range []string{
		"ok payload=0\n",
		"ok rows=1 width=2 us=5 payload=8\n12345678",
		"ok arch=llama desc=a%20b n_vocab=3 less=1 payload=0\n",
		"ok n=1 names=slots,phi attend=1 commit=2 payload=16\n1234567812345678",
		"error code=-2 message=no%20memory\n",
	} {
		f.Add(reply)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fuzztest.Bounded(t, 4<<20+64*len(text), func() {
			source := strings.NewReader(text)
			r, err := readReply(bufio.NewReader(source), "verb")
			if err != nil {
				var refused *Error
				if errors.As(err, &refused) {
					require.Equal(t, "verb", refused.Verb)
				}
				return
			}
			for _, of := range []func() error{
				func() error { _, err := r.info(); return err },
				func() error { _, err := r.output(); return err },
			} {
				r.err = nil
				if err := of(); err != nil {
					require.NotErrorIs(t, err, io.EOF)
				}
			}
		})
	})
}

// FuzzRequest: a request holds no byte that would end it early, and its values come out of it as they went in.
func FuzzRequest(f *testing.F) {
	f.Add("a b%\n", int64(-1), 3)
	f.Add("", int64(1)<<62, 0)
	f.Fuzz(func(t *testing.T, value string, n int64, payload int) {
		line := string(appendRequest(nil, "verb", payload, []any{"s", value, "n", n, "on", true}))
		require.Equal(t, len(line)-1, strings.IndexByte(line, '\n'))
		fields := map[string]string{}
		for _, word := range strings.Fields(line)[1:] {
			key, value, ok := strings.Cut(word, "=")
			require.True(t, ok)
			var err error
			fields[key], err = unescape(value)
			require.NoError(t, err)
		}
		require.Equal(t, value, fields["s"])
		require.Equal(t, "1", fields["on"])
		r := reply{fields: fields}
		require.Equal(t, n, r.integer("n"))
		require.NoError(t, r.err)
	})
}
