// Command fidelity measures how close the cache stays to the full one at a few byte counts, with what lesskv tune finds from text for
// each of them, and writes docs/fidelity.json and, of that, docs/fidelity.md and docs/fidelity.png.
//
//	go run ./integration/fidelity [-t 2] [-work DIR] [-for 5m]
//
// It takes two hours on two cores, and 17 GB in the work folder, most of it recordings. The work folder keeps what is finished: the same command goes on where it was
// interrupted, or where -for ended it; the page then has the sections that are finished. With -page it only writes page and picture anew, of the numbers that are there.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"time"

	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights/outfile"
)

func main() {
	work := flag.String("work", usage.WorkFolder("fidelity"), "folder for finished work")
	threads := flag.Int("t", limits.CPUs(), "threads")
	limit := flag.Duration("for", 24*time.Hour, "end after so long; the same command goes on there")
	page := flag.Bool("page", false, "only write the page and the picture, of the numbers that are there")
	usage.Main("fidelity", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, *limit)
		defer cancel()
		err := run(ctx, *work, *threads, *page)
		if ctx.Err() != nil {
			return errors.New("not finished: the same command goes on here")
		}
		return err
	})
}

var (
	numbers = filepath.Join("docs", "fidelity.json")
	text    = filepath.Join("docs", "fidelity.md")
	drawing = filepath.Join("docs", "fidelity.png")
)

func run(ctx context.Context, work string, threads int, page bool) error {
	r := &Report{}
	if page {
		data, err := os.ReadFile(numbers)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, r); err != nil {
			return err
		}
	} else {
		m, err := newMeasurer(ctx, work, threads)
		if err != nil {
			return err
		}
		return m.report(write)
	}
	return errors.Join(outfile.WriteBytes(text, r.page()), r.draw(drawing))
}

// write writes numbers and page: after each section, so that a run that is cut short leaves those that are finished.
func write(r *Report) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(outfile.WriteBytes(numbers, append(data, '\n')), outfile.WriteBytes(text, r.page()), r.draw(drawing))
}
