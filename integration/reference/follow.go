package reference

import (
	"fmt"
	"slices"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Tie is how near, relative to the larger, two scores must be for rounding to decide between their pairs.
const Tie = 1e-3

// LastTie is Tie where a policy goes by a micro-batch's last queries alone: a weight is the exponential of a logit, whose absolute error
// is the weight's relative one, and no other queries' weights level it out.
const LastTie = 5e-3

// Quantised slots round a number between two steps to either, where the last bit of two implementations differs: a step of a key moves a
// logit. These are Tie then, by the type of the keys.
const (
	Q8Tie = 1e-2
	Q4Tie = 0.1
)

// ChoiceError says that another implementation held what the policy does not allow.
type ChoiceError struct {
	Head   int    // KV head
	Pos    int    // of the pair that it should have kept, or kept against the policy
	Reason string // in words and scores
}

func (e *ChoiceError) Error() string {
	return fmt.Sprintf("reference: KV head %d, position %d: %s", e.Head, e.Pos, e.Reason)
}

// follow changes keep into theirs, if that is as good a choice. Positions below pinned are not to be chosen among.
func (h *head) follow(held []pair, keep []bool, theirs []int32, pinned int) error {
	wrong := func(i int, format string, args ...any) error {
		return &ChoiceError{h.j, held[i].pos, fmt.Sprintf(format, args...)}
	}
	chosen := make([]bool, len(held))
	sorted := slices.Sorted(slices.Values(theirs))
	for i := range held {
		if len(sorted) > 0 && held[i].pos == int(sorted[0]) {
			chosen[i], sorted = true, sorted[1:]
		}
	}
	if len(sorted) > 0 {
		return &ChoiceError{h.j, int(sorted[0]), "kept, but it was not held before, or it is kept twice"}
	}

	// Where the two differ: the best pair that they gave up, the worst that they kept instead.
	b := h.budgetOf(h.j)
	lost, gained := -1, -1
	numLost, numGained := 0, 0
	for i := range held {
		p := &held[i]
		switch {
		case keep[i] && !chosen[i]:
			if !h.scored() || p.pos < pinned || i >= len(held)-(b.Slots-b.Heavy) {
				return wrong(i, "evicted, and its score has no say in that")
			}
			if numLost++; lost < 0 || p.score > held[lost].score {
				lost = i
			}
		case !keep[i] && chosen[i]:
			if numGained++; gained < 0 || p.score < held[gained].score {
				gained = i
			}
		}
	}
	switch {
	case numGained > numLost:
		return wrong(gained, "kept, so that %d are held: want %d", len(theirs), len(theirs)-numGained+numLost)
	case numLost > numGained:
		return wrong(lost, "evicted, so that %d are held: want %d", len(theirs), len(theirs)-numGained+numLost)
	case numLost == 0:
		return nil
	}
	tie := Tie
	if h.Policy.Queries > 0 {
		tie = LastTie
	}
	switch h.KeyType {
	case gguf.Q8_0:
		tie = Q8Tie
	case gguf.Q4_0:
		tie = Q4Tie
	}
	if a, b := held[lost].score, held[gained].score; a-b > tie*a {
		return wrong(lost, "evicted with score %g, while position %d stays with %g", a, held[gained].pos, b)
	}
	copy(keep, chosen)
	h.followed += numGained
	return nil
}
