// Package wordwrap breaks what is printed into lines that fit a terminal.
package wordwrap

import (
	"strings"
	"unicode/utf8"
)

// Words joins words with spaces, in lines of at most so many characters. A word that is longer has a line of its own.
func Words(words []string, width int) string {
	var b strings.Builder
	line := 0
	for i, w := range words {
		n := utf8.RuneCountInString(w)
		if i > 0 && line+1+n > width {
			b.WriteByte('\n')
			line = 0
		} else if i > 0 {
			b.WriteByte(' ')
			line++
		}
		b.WriteString(w)
		line += n
	}
	return b.String()
}

// Hanging breaks a text behind a label; its further lines begin below its first word.
func Hanging(label, text string, width int) string {
	indent := utf8.RuneCountInString(label)
	return label + strings.ReplaceAll(Words(strings.Fields(text), width-indent), "\n", "\n"+strings.Repeat(" ", indent))
}
