package wordwrap

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestWords(t *testing.T) {
	assert.Equal(t, "", Words(nil, 10))
	assert.Equal(t, "one two\nthree", Words([]string{"one", "two", "three"}, 9))
	assert.Equal(t, "a\nmuch-too-long-word\nb", Words([]string{"a", "much-too-long-word", "b"}, 5))
	assert.Equal(t, "µµ µµ\nx", Words([]string{"µµ", "µµ", "x"}, 5), "characters, not bytes")
	assert.Equal(t, "note: one two\n      three", Hanging("note: ", "one  two three", 14))
}
