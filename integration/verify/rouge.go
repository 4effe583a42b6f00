package verify

import (
	"strings"
	"unicode"
)

// Overlap is precision, recall and F1 of what two texts share.
type Overlap struct{ Precision, Recall, F1 float64 }

// Rouge compares a text with a reference, as ROUGE does (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"):
// one, two: shared words and pairs of words, each counted as often as it is in both; longest: the longest common
// subsequence of words. Words are runs of letters and digits, in lower case, and not stemmed.
func Rouge(reference, text string) (one, two, longest Overlap) {
	a, b := words(reference), words(text)
	return grams(a, b, 1), grams(a, b, 2), overlap(lcs(a, b), len(a), len(b))
}

func words(s string) []string {
	return strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

func overlap(shared, reference, text int) Overlap {
	if shared == 0 {
		return Overlap{}
	}
	o := Overlap{Precision: float64(shared) / float64(text), Recall: float64(shared) / float64(reference)}
	o.F1 = 2 * o.Precision * o.Recall / (o.Precision + o.Recall)
	return o
}

// grams is ROUGE-n.
func grams(reference, text []string, n int) Overlap {
	count := func(words []string) (map[string]int, int) {
		all := map[string]int{}
		for i := 0; i+n <= len(words); i++ {
			all[strings.Join(words[i:i+n], " ")]++
		}
		return all, max(len(words)-n+1, 0)
	}
	a, na := count(reference)
	b, nb := count(text)
	shared := 0
	for g, k := range a {
		shared += min(k, b[g])
	}
	return overlap(shared, na, nb)
}

// lcs is the length of the longest common subsequence.
func lcs(a, b []string) int {
	row := make([]int, len(b)+1)
	for _, x := range a {
		diagonal := 0
		for j, y := range b {
			above := row[j+1]
			if x == y {
				row[j+1] = diagonal + 1
			} else {
				row[j+1] = max(above, row[j])
			}
			diagonal = above
		}
	}
	return row[len(b)]
}
