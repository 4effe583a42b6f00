package verify

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// Worked by hand from the definitions: shared n-grams, or the longest common subsequence, over the words of either text.
func TestRouge(t *testing.T) {
	for name, c := range map[string]struct {
		reference, text   string
		one, two, longest Overlap
	}{
		"equal":     {"one two three", "one two three", Overlap{1, 1, 1}, Overlap{1, 1, 1}, Overlap{1, 1, 1}},
		"nothing":   {"one two", "three four", Overlap{}, Overlap{}, Overlap{}},
		"empty":     {"one two", "", Overlap{}, Overlap{}, Overlap{}},
		"one word":  {"one two three", "one", Overlap{1, 1. / 3, 0.5}, Overlap{}, Overlap{1, 1. / 3, 0.5}},
		"beginning": {"one two three", "one two", Overlap{1, 2. / 3, 0.8}, Overlap{1, 0.5, 2. / 3}, Overlap{1, 2. / 3, 0.8}},
		"gap":       {"one two three", "one three", Overlap{1, 2. / 3, 0.8}, Overlap{}, Overlap{1, 2. / 3, 0.8}},
		"order":     {"one two three", "three two one", Overlap{1, 1, 1}, Overlap{}, Overlap{1. / 3, 1. / 3, 1. / 3}},
		// a word counts as often as it is in both: "a" twice of three, "b" once
		"repeated": {"a a b", "a a a b b", Overlap{3. / 5, 1, 0.75}, Overlap{2. / 4, 1, 2. / 3}, Overlap{3. / 5, 1, 0.75}},
		// 6 of 8 words, of 9; 2 of 7 pairs, of 8 ("the quick", "quick brown"); "the quick brown jumps the" or "… dog …"
		"sentence": {"The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.",
			Overlap{6. / 8, 6. / 9, 12. / 17}, Overlap{2. / 7, 2. / 8, 4. / 15}, Overlap{5. / 8, 5. / 9, 10. / 17}},
		"case and signs": {"One, two: THREE!", "one two three", Overlap{1, 1, 1}, Overlap{1, 1, 1}, Overlap{1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			one, two, longest := Rouge(c.reference, c.text)
			for _, x := range []struct {
				what      string
				want, got Overlap
			}{{"ROUGE-1", c.one, one}, {"ROUGE-2", c.two, two}, {"ROUGE-L", c.longest, longest}} {
				assert.InDelta(t, x.want.Precision, x.got.Precision, 1e-12, x.what)
				assert.InDelta(t, x.want.Recall, x.got.Recall, 1e-12, x.what)
				assert.InDelta(t, x.want.F1, x.got.F1, 1e-12, x.what)
			}
		})
	}
}
