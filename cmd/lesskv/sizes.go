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
		named, err := weights.ParseLayers(layers)
		if err != nil {
			return fmt.Errorf("%w; %w", err, wrong)
		}
		for _, layer := range named {
			of[layer] = n
		}
	}
	*s.all, *s.of = all, of
	return nil
}
