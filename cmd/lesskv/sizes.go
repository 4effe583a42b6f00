package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/lesskv/lesskv/weights"
)

// sizes is a flag of a number for all layers, and others for some: 4, or 4,0=8, or 4,0=8,2-3=6.
type sizes struct {
	all *int
	of  *map[int]int
}

func addSizes(f *pflag.FlagSet, all *int, of *map[int]int, name string, value int, usage string) {
	*all = value
	f.Var(&sizes{all, of}, name, usage+"; of layers that are to have another as 4,0=8 or 4,0-2=8")
}

func (s *sizes) Type() string { return "sizes" }

func (s *sizes) String() string {
	text := strconv.Itoa(*s.all)
	for _, layer := range slices.Sorted(maps.Keys(*s.of)) {
		text += fmt.Sprintf(",%d=%d", layer, (*s.of)[layer])
	}
	return text
}

func (s *sizes) Set(text string) error {
	wrong := fmt.Errorf("want a number from 1 to %d, and others for layers or ranges of them as 4,0=8 or 4,0-2=8", weights.MaxSize)
	all, of, given := *s.all, map[int]int{}, false
	for _, part := range strings.Split(text, ",") {
		layers, size, some := strings.Cut(part, "=")
		if !some {
			layers, size = "", part
		}
		n, err := strconv.Atoi(strings.TrimSpace(size))
		if err != nil || n < 1 || n > weights.MaxSize || !some && given {
			return wrong
		}
		if !some {
			all, given = n, true
			continue
		}
		from, to, err := parseRange(layers)
		if err != nil {
			return wrong
		}
		if to >= weights.MaxLayers {
			return fmt.Errorf("layer %d: a model has %d layers at most", to, weights.MaxLayers)
		}
		for layer := from; layer <= to; layer++ {
			of[layer] = n
		}
	}
	*s.all, *s.of = all, of
	return nil
}

// parseRange reads the number of a layer, or two as 0-7.
func parseRange(text string) (from, to int, err error) {
	first, last, both := strings.Cut(text, "-")
	if !both {
		last = first
	}
	if from, err = strconv.Atoi(strings.TrimSpace(first)); err != nil {
		return 0, 0, err
	}
	if to, err = strconv.Atoi(strings.TrimSpace(last)); err != nil {
		return 0, 0, err
	}
	if from < 0 || to < from {
		return 0, 0, fmt.Errorf("%s: want layers from 0, ascending", text)
	}
	return from, to, nil
}
