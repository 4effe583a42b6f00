package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// A number for all layers, and others for some.
func TestSizes(t *testing.T) {
	for text, want := range map[string]struct {
		all int
		of  map[int]int
	}{
		"4":             {4, map[int]int{}},
		"4,0=8":         {4, map[int]int{0: 8}},
		"0=8":           {7, map[int]int{0: 8}},
		"0=8, 4, 2-3=6": {4, map[int]int{0: 8, 2: 6, 3: 6}},
		"4,0-2=8,1=16":  {4, map[int]int{0: 8, 1: 16, 2: 8}},
	} {
		all, of := 7, map[int]int(nil)
		s := sizes{&all, &of}
		if assert.NoError(t, s.Set(text), text) {
			assert.Equal(t, want.all, all, text)
			assert.Equal(t, want.of, of, text)
		}
		said := s.String()
		if assert.NoError(t, s.Set(said), said) {
			assert.Equal(t, want.of, of, said)
		}
	}
	for _, text := range []string{"", "0", "4,", "4,5", "4,0=", "4,=8", "4,0=0", "4,0=70000", "4,2-1=8", "4,-1=8", "4,0=8=9", "x"} {
		all, of := 7, map[int]int{1: 2}
		s := sizes{&all, &of}
		assert.ErrorContains(t, s.Set(text), "want a number from 1 to 65536", text)
		assert.Equal(t, 7, all, text)
	}
	all, of := 7, map[int]int{}
	s := sizes{&all, &of}
	assert.ErrorContains(t, s.Set("4,600=8"), "layer 600: a model has 512 layers at most")
}
