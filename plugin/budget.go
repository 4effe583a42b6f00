package lesskv

import (
	"errors"
	"fmt"
	"strconv"

	llama "github.com/go-skynet/go-llama.cpp"
)

// A Budget is the number of slots of each KV head of each layer; a slot holds the key and the value of one token. Make one with Tokens, Share, MiB, Bytes,
// Part or ParseBudget; the zero value is the default, as Config has it. One that would keep nothing makes llama.New fail with
// ErrBudget.
type Budget struct {
	text string // as LESSKV_BUDGET would have it
}

// Tokens is a budget of n slots, for n tokens, 1 at least.
func Tokens(n int) Budget { return Budget{strconv.Itoa(n)} }

// Share is a budget in parts of the context: 0.05 is 5 %. It comes to 64 slots at least.
func Share(of float64) Budget {
	percent, err := strconv.ParseFloat(number(of)+"e2", 64) // of*100 is rounded: 7.000000000000001 for 0.07
	if errors.Is(err, strconv.ErrSyntax) {                  // NaN or Inf
		percent = of
	}
	return Budget{number(percent) + "%"}
}

// MiB is a budget in memory, as Bytes, in units of 1,048,576 bytes.
func MiB(n float64) Budget { return Budget{number(n) + "MiB"} }

// Bytes is a budget in memory: as many slots as fit beside the state of one sequence, phi and psi.
func Bytes(n uint64) Budget { return Budget{number(float64(n)/1024) + "KiB"} }

// Part is a budget in memory, as Bytes: n/of of the bytes that the full f16 cache takes at the context, so that Part(1, 16) is
// a sixteenth of them, whatever the type of the slots. 1 <= n <= of.
func Part(n, of int) Budget { return Budget{fmt.Sprintf("%d/%d", n, of)} }

func number(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }

// ParseBudget reads a budget as LESSKV_BUDGET and the flag have it: "1024" slots, "5%" of the context, "64MiB" of memory
// (or KiB, GiB), "1/16" of the full f16 cache's memory, "" the default. The error says what is wrong with it.
func ParseBudget(s string) (Budget, error) {
	if _, err := llama.ParseLESSKVBudget(s); err != nil {
		return Budget{}, err
	}
	return Budget{s}, nil
}

// String returns the budget as ParseBudget reads it.
func (b Budget) String() string { return b.text }

// MarshalText is String, for encoding packages.
func (b Budget) MarshalText() ([]byte, error) { return []byte(b.text), nil }

// UnmarshalText is ParseBudget, for encoding packages.
func (b *Budget) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBudget(string(text))
	return err
}
