package worker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unsafe"
)

// The framing is that of cgo/llama/worker_wire.h.

// reply is an answer: the fields of its line, and its payload.
type reply struct {
	fields  map[string]string
	payload []byte
	err     error // the first field that was not what was wanted
}

func appendRequest(b []byte, verb string, payload int, args []any) []byte {
	b = append(b, verb...)
	for i := 0; i+1 < len(args); i += 2 {
		b = append(b, ' ')
		b = append(b, args[i].(string)...)
		b = append(b, '=')
		switch v := args[i+1].(type) {
		case string:
			b = appendEscaped(b, v)
		case bool:
			if v {
				b = append(b, '1')
			} else {
				b = append(b, '0')
			}
		case float32:
			b = strconv.AppendFloat(b, float64(v), 'g', -1, 32)
		case float64:
			b = strconv.AppendFloat(b, v, 'g', -1, 64)
		case int:
			b = strconv.AppendInt(b, int64(v), 10)
		case int32:
			b = strconv.AppendInt(b, int64(v), 10)
		case int64:
			b = strconv.AppendInt(b, v, 10)
		default:
			panic(fmt.Sprintf("worker: no way to send a %T", v))
		}
	}
	if payload > 0 {
		b = append(b, " payload="...)
		b = strconv.AppendInt(b, int64(payload), 10)
	}
	return append(b, '\n')
}

func appendEscaped(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c > 0x20 && c < 0x7f && c != '%' {
			b = append(b, c)
		} else {
			b = fmt.Appendf(b, "%%%02x", c)
		}
	}
	return b
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("bad escape in %q", s)
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", fmt.Errorf("bad escape in %q", s)
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), nil
}

// readReply reads one reply. An "error" reply is an *Error.
func readReply(r *bufio.Reader, verb string) (*reply, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	words := strings.Fields(line)
	if len(words) == 0 || words[0] != "ok" && words[0] != "error" {
		return nil, fmt.Errorf("want a reply that begins with ok or error, got %.80q", line)
	}
	rep := &reply{fields: make(map[string]string, len(words))}
	for _, word := range words[1:] {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, fmt.Errorf("want key=value in a reply, got %.80q", word)
		}
		if rep.fields[key], err = unescape(value); err != nil {
			return nil, err
		}
	}
	if words[0] == "error" {
		code, err := strconv.Atoi(rep.fields["code"])
		if err != nil {
			return nil, fmt.Errorf("want a code in an error reply, got %.80q", line)
		}
		return nil, &Error{Verb: verb, Code: code, Message: rep.fields["message"]}
	}
	n, err := strconv.Atoi(rep.fields["payload"])
	if err != nil || n < 0 {
		return nil, fmt.Errorf("want a payload's size in a reply, got %.80q", line)
	}
	rep.payload, err = readPayload(r, n)
	return rep, err
}

// readPayload reads n bytes that any number may lie in, in pieces: memory follows what comes, not what was announced.
func readPayload(r io.Reader, n int) ([]byte, error) {
	b := aligned(min(n, 1<<20))
	for at := 0; ; {
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, err
		}
		if at = len(b); at == n {
			return b, nil
		}
		more := aligned(min(n, 4*at))
		copy(more, b)
		b = more
	}
}

// integer returns a field; where it isn't one, r.err says so.
func (r *reply) integer(key string) int64 {
	n, err := strconv.ParseInt(r.fields[key], 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("worker: reply has %s=%q: want an integer", key, r.fields[key])
	}
	return n
}

func (r *reply) int(key string) int   { return int(r.integer(key)) }
func (r *reply) bool(key string) bool { return r.integer(key) != 0 }

// aligned returns n bytes that any number may lie in.
func aligned(n int) []byte {
	if n == 0 {
		return nil
	}
	words := make([]uint64, (n+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), n)
}

type number interface{ int32 | int64 | float32 }

// view is a payload as numbers, in place: native byte order, as both ends run on one machine.
func view[T number](b []byte) []T {
	var t T
	n := len(b) / int(unsafe.Sizeof(t))
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), n)
}

// raw is numbers as a payload, in place.
func raw[T number](v []T) []byte {
	if len(v) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&v[0])), len(v)*int(unsafe.Sizeof(v[0])))
}
