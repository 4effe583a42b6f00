package train

import "fmt"

// Windows are the tokens that a run is about: each a sequence of its own, all of one length.
type Windows struct {
	Train, Valid [][]int32
}

// Cut makes windows of context tokens out of a text: validation out of its last tenth and training out of the rest, so that
// no sentence is in both. Of a text longer than limit tokens (0: no limit) it takes windows at even distances, a tenth of them for validation. Each
// begins with the tokens of start, where the model wants a sequence to begin with one. ErrText if there are not two windows.
func Cut(text []int32, context, limit int, start []int32) (Windows, error) {
	if limit == 0 || limit > len(text) {
		limit = len(text)
	}
	n := limit / max(1, context)
	valid := max(1, n/10)
	return CutInto(text, context, n-valid, valid, start)
}

// CutInto is Cut with so many windows for training and for validation, or as many as there are; one of each at least.
func CutInto(text []int32, context, train, valid int, start []int32) (Windows, error) {
	body := context - len(start)
	if body < 1 {
		return Windows{}, fmt.Errorf("train: a context of %d tokens: %w", context, ErrOption)
	}
	if len(text) < 2*body {
		return Windows{}, fmt.Errorf("train: %d tokens of text: want at least %d, two windows of the context: %w", len(text), 2*body, ErrText)
	}
	spread := func(text []int32, n int) [][]int32 {
		have := len(text) / body
		n = max(1, min(n, have))
		w := make([][]int32, n)
		for i := range w {
			at := i * have / n * body
			w[i] = append(append(make([]int32, 0, context), start...), text[at:at+body]...)
		}
		return w
	}
	cut := len(text) - max(body, len(text)/10)
	return Windows{Train: spread(text[:cut], train), Valid: spread(text[cut:], valid)}, nil
}
