// Command screencast draws screens of a terminal, as tmux capture-pane -e -p writes them, one a file, as an animated GIF:
//
//	go run ./integration/screencast -o chat.gif frames/*
//
// It knows faint text and no other colour, which is what lesskv writes. integration/screens.sh calls it.
package main

import (
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"io"
	"os"
	"regexp"
	"strings"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gomono"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights/outfile"
)

const (
	columns, rows = 80, 24
	points        = 14
	margin        = 8
)

func main() {
	out := flag.String("o", "", "the `file` to write")
	delay := flag.Int("delay", 20, "hundredths of a second between two screens")
	hold := flag.Int("hold", 300, "hundredths of a second for which the last one stays")
	flag.Parse()
	if err := run(*out, *delay, *hold, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "screencast:", err)
		os.Exit(usage.Status(err))
	}
}

func run(out string, delay, hold int, screens []string) error {
	if out == "" || len(screens) == 0 {
		return usage.Errorf("want -o and the screens")
	}
	t, err := newTerminal()
	if err != nil {
		return err
	}
	var movie gif.GIF
	var last *image.Paletted
	for _, path := range screens {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		now := t.screen(string(text))
		change := differing(last, now)
		if n := len(movie.Delay); change.Empty() {
			movie.Delay[n-1] += delay
			continue
		}
		movie.Image = append(movie.Image, now.SubImage(change).(*image.Paletted))
		movie.Delay = append(movie.Delay, delay)
		last = now
	}
	movie.Delay[len(movie.Delay)-1] = hold
	return outfile.Write(out, func(w io.Writer) error { return gif.EncodeAll(w, &movie) })
}

// A terminal draws screens.
type terminal struct {
	face          font.Face
	width, height int // of a character
	ascent        int
	palette       color.Palette
	plain, faint  image.Image
}

func newTerminal() (*terminal, error) {
	f, err := opentype.Parse(gomono.TTF)
	if err != nil {
		return nil, err
	}
	face, err := opentype.NewFace(f, &opentype.FaceOptions{Size: points, DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return nil, err
	}
	advance, _ := face.GlyphAdvance('m')
	m := face.Metrics()
	t := &terminal{face: face, width: advance.Ceil(), height: (m.Ascent + m.Descent).Ceil() + 1, ascent: m.Ascent.Ceil()}
	for i := range 16 { // from the background to the text
		t.palette = append(t.palette, color.Gray{uint8(0x16 + i*(0xe6-0x16)/15)})
	}
	t.plain, t.faint = image.NewUniform(t.palette[15]), image.NewUniform(t.palette[10])
	return t, nil
}

var escape = regexp.MustCompile(`\x1b\[([0-9;]*)m`)

// screen draws one screen.
func (t *terminal) screen(text string) *image.Paletted {
	img := image.NewPaletted(image.Rect(0, 0, columns*t.width+2*margin, rows*t.height+2*margin), t.palette)
	pen := font.Drawer{Dst: img, Src: t.plain, Face: t.face}
	for row, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		column := 0
		write := func(s string) {
			for _, r := range s {
				pen.Dot = fixed.P(margin+column*t.width, margin+row*t.height+t.ascent)
				pen.DrawString(string(r))
				column++
			}
		}
		at := 0
		for _, m := range escape.FindAllStringSubmatchIndex(line, -1) {
			write(line[at:m[0]])
			if pen.Src = t.plain; line[m[2]:m[3]] == "2" {
				pen.Src = t.faint
			}
			at = m[1]
		}
		write(line[at:])
	}
	return img
}

// differing returns the smallest rectangle outside which two pictures are equal; all of the second where there is no first.
func differing(a, b *image.Paletted) (r image.Rectangle) {
	if a == nil {
		return b.Rect
	}
	for y := b.Rect.Min.Y; y < b.Rect.Max.Y; y++ {
		for x := b.Rect.Min.X; x < b.Rect.Max.X; x++ {
			if a.ColorIndexAt(x, y) != b.ColorIndexAt(x, y) {
				r = r.Union(image.Rect(x, y, x+1, y+1))
			}
		}
	}
	return r
}
