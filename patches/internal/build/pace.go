package build

import (
	"time"

	"github.com/lesskv/lesskv/patches/internal/toolchain"
)

// A kind is units of which a heavier one takes longer in proportion: not so of a shader, whose variants are made first, and a source of C++.
type kind struct {
	lang      toolchain.Language
	generated bool
}

func (u Unit) kind() kind { return kind{u.Lang, len(u.Generate) > 0} }

// A pace is, for each kind, what is left to compile, and how long it has taken so far.
type pace map[kind]*tally

type tally struct {
	left, weight         int // units, and their weights together
	done, compiledWeight int // the same of what is compiled
	took                 time.Duration
}

// add has n more units like this one.
func (p pace) add(u Unit, n int) {
	if p[u.kind()] == nil {
		p[u.kind()] = &tally{}
	}
	p[u.kind()].left += n
	p[u.kind()].weight += n * u.Weight
}

// compiled counts a unit that is done. It returns the time that all of them took, and an estimate of what it will be in the end.
func (p pace) compiled(u Unit, took time.Duration) (now, end int64) {
	t := p[u.kind()]
	t.left--
	t.weight -= u.Weight
	t.done++
	t.compiledWeight += u.Weight
	t.took += took
	var sum, rest float64
	var done, unknown int // units; of kinds of which none is done yet
	for _, t := range p {
		sum += float64(t.took)
		done += t.done
		if t.compiledWeight > 0 {
			rest += float64(t.took) * float64(t.weight) / float64(t.compiledWeight)
		} else {
			unknown += t.left
		}
	}
	rest += sum * float64(unknown) / float64(done)
	return int64(sum), int64(sum + rest)
}
