// Package quoted reads commands that environment variables such as CC name, as the go command reads them.
package quoted

import (
	"errors"
	"strings"
)

// ErrUnterminated is a quotation that does not end.
var ErrUnterminated = errors.New("a quotation does not end")

// Split cuts a command into words as cgo does: at white space, where a word that begins with a quotation mark, ' or ", goes on to the
// next such mark; nothing is escaped.
func Split(command string) (words []string, err error) {
	const space = " \t\r\n"
	for {
		command = strings.TrimLeft(command, space)
		if command == "" {
			return words, nil
		}
		if mark := command[:1]; mark == "'" || mark == `"` {
			word, rest, ok := strings.Cut(command[1:], mark)
			if !ok {
				return nil, ErrUnterminated
			}
			words, command = append(words, word), rest
			continue
		}
		end := strings.IndexAny(command, space)
		if end < 0 {
			end = len(command)
		}
		words, command = append(words, command[:end]), command[end:]
	}
}
