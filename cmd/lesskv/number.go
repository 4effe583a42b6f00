package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// most is the largest number of tokens and the like that C can be given.
const most = math.MaxInt32

// maxThreads is GGML_MAX_N_THREADS of ggml.h.
const maxThreads = 512

// A number is a flag's value between two bounds.
type number[T int | uint64 | float32 | float64] struct {
	to         *T
	least, top T
}

// addNumber adds a flag of a number from least to top. Everything else, such as NaN, is a wrong command line.
func addNumber[T int | uint64 | float32 | float64](f *pflag.FlagSet, to *T, name, short string, value, least, top T, usage string) {
	*to = value
	f.VarP(&number[T]{to, least, top}, name, short, usage)
}

func (n *number[T]) String() string { return fmt.Sprint(*n.to) }

func (n *number[T]) Type() string {
	switch any(*n.to).(type) {
	case int:
		return "int"
	case uint64:
		return "uint"
	}
	return "float"
}

func (n *number[T]) Set(s string) error {
	var x T
	var err error
	switch p := any(&x).(type) {
	case *int:
		*p, err = strconv.Atoi(s)
	case *uint64:
		*p, err = strconv.ParseUint(s, 10, 64)
	case *float32:
		var y float64
		y, err = strconv.ParseFloat(s, 32)
		*p = float32(y)
	case *float64:
		*p, err = strconv.ParseFloat(s, 64)
	}
	if err != nil || !(x >= n.least && x <= n.top) {
		return fmt.Errorf("want a number from %v to %v", n.least, n.top)
	}
	*n.to = x
	return nil
}

// parseBytes reads 500M, 20GiB or 1.5T, units of 1024, and plain bytes.
func parseBytes(s string) (int64, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 1 || n > 1<<62 {
		return 0, errors.New("want bytes, or a number with K, M, G or T")
	}
	return n, nil
}
