package main

import (
	"image"
	"image/draw"
	"image/gif"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Equal screens are one picture for a longer time, and what was drawn in parts is the whole screen.
func TestScreencast(t *testing.T) {
	dir := t.TempDir()
	text := []string{"$ lesskv chat\n", "$ lesskv chat\n", "$ lesskv chat\n\x1b[2m39 tokens\x1b[0m\n> x\n", "> x\n"}
	var files []string
	for i, s := range text {
		files = append(files, filepath.Join(dir, string(rune('a'+i))))
		require.NoError(t, os.WriteFile(files[i], []byte(s), 0o644))
	}
	out := filepath.Join(dir, "out.gif")
	require.NoError(t, run(out, 20, 300, files))
	f, err := os.Open(out)
	require.NoError(t, err)
	defer f.Close()
	movie, err := gif.DecodeAll(f)
	require.NoError(t, err)
	assert.Equal(t, []int{40, 20, 300}, movie.Delay)

	term, err := newTerminal()
	require.NoError(t, err)
	canvas := image.NewRGBA(movie.Image[0].Rect)
	for i, s := range []string{text[0], text[2], text[3]} {
		part := movie.Image[i]
		draw.Draw(canvas, part.Rect, part, part.Rect.Min, draw.Over)
		want := image.NewRGBA(canvas.Rect)
		draw.Draw(want, want.Rect, term.screen(s), image.Point{}, draw.Src)
		assert.Equal(t, want.Pix, canvas.Pix, "%q", s)
	}
	assert.NotEqual(t, term.screen("39 tokens").Pix, term.screen("\x1b[2m39 tokens").Pix, "faint")
	assert.Error(t, run(out, 20, 300, nil))
}
