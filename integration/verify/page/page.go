// Package page shows a report of package verify to people: tables, CSV, Markdown, pictures, and one HTML file that holds everything and
// asks no network. Pictures are drawn by gonum/plot: it draws the same plot as SVG for the page and as PNG for a README, and
// the project uses it already.
package page

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"regexp"

	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/weights/outfile"
)

//go:embed page.html
var source string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"kib":       func(n int64) string { return fmt.Sprintf("%.0f", float64(n)/1024) },
	"mib":       func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) },
	"interval":  interval,
	"percent":   func(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) },
	"share":     share,
	"onDevices": onDevices,
}).Parse(source))

// HTML returns the report as one page.
func HTML(r *verify.Report) ([]byte, error) {
	pictures, err := Pictures(r)
	if err != nil {
		return nil, err
	}
	type shown struct {
		*Picture
		SVG template.HTML
	}
	var all []shown
	for _, p := range pictures {
		svg, err := p.SVG()
		if err != nil {
			return nil, err
		}
		all = append(all, shown{p, template.HTML(svg)})
	}
	var b bytes.Buffer
	err = pageTemplate.Execute(&b, map[string]any{
		"Report": r, "Failed": r.Failed(), "Pictures": all, "Groups": groups(r),
	})
	if err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	return b.Bytes(), nil
}

// Files returns the names of the report's files, but for the pictures, each with what reports whether a file is such a one.
func Files() map[string]func(path string) bool {
	begins := func(text string) func(string) bool {
		return func(path string) bool {
			data, err := os.ReadFile(path)
			return err == nil && bytes.HasPrefix(data, []byte(text))
		}
	}
	return map[string]func(string) bool{
		"report.json": func(path string) bool {
			var r verify.Report
			data, err := os.ReadFile(path)
			return err == nil && json.Unmarshal(data, &r) == nil && r.Version > 0 && r.Model.File != ""
		},
		"report.csv": begins("context,ubatch,budget,"),
		"report.md": func(path string) bool {
			data, err := os.ReadFile(path)
			return err == nil && markdownStart.Match(data)
		},
		"report.html": func(path string) bool {
			data, err := os.ReadFile(path)
			return err == nil && bytes.Contains(data, []byte("<title>lesskv verify: "))
		},
	}
}

// markdownStart is how Markdown begins.
var markdownStart = regexp.MustCompile(`^[^\n]+, context \d+, \d+ windows\.[^\n]* Perplexity `)

// IsPicture reports whether a file's name is that of one of the pictures.
func IsPicture(name string) bool { return pictureNames.MatchString(name) }

var pictureNames = regexp.MustCompile(`^(quality|position|layers|memory|held-\d+)\.png$`)

// Write puts report.json, report.csv, report.md, report.html and a PNG of each picture into a folder, each whole or not at all, and
// returns their paths. Of what is best under so many bytes it is report.json alone.
func Write(r *verify.Report, dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	var paths []string
	write := func(name string, make func() ([]byte, error)) error {
		data, err := make()
		if err != nil {
			return err
		}
		path := filepath.Join(dir, name)
		if err := outfile.WriteBytes(path, data); err != nil {
			return fmt.Errorf("page: %w", err)
		}
		paths = append(paths, path)
		return nil
	}
	if err := write("report.json", r.JSON); err != nil {
		return nil, err
	}
	if len(r.Best) > 0 { // its rows are of many budgets, and no table's
		return paths, nil
	}
	if err := write("report.csv", func() ([]byte, error) { return CSV(r) }); err != nil {
		return nil, err
	}
	if err := write("report.md", func() ([]byte, error) { return Markdown(r) }); err != nil {
		return nil, err
	}
	if err := write("report.html", func() ([]byte, error) { return HTML(r) }); err != nil {
		return nil, err
	}
	pictures, err := Pictures(r)
	if err != nil {
		return nil, err
	}
	for _, p := range pictures {
		if err := write(p.Name+".png", p.PNG); err != nil {
			return nil, err
		}
	}
	return paths, nil
}
