// Package docs carries the page of models, so that a command can answer from the list that tests compare with the runtime.
package docs

import (
	_ "embed"
	"regexp"
)

//go:embed models.md
var models string

// An Architecture is a row of models.md.
type Architecture struct {
	Name   string // general.architecture
	Models string // that have it
	Memory string // what they keep of a text
	LESS   string // "yes", with a restriction perhaps, or "no: " and why
}

var rows = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\| ([^|]+) \\| ([^|]+) \\| [\\w, ]+ \\|$")

// Architectures returns the rows of models.md. An architecture that stands in none is served if its layers attend in the usual way.
func Architectures() (all []Architecture) {
	for _, row := range rows.FindAllStringSubmatch(models, -1) {
		all = append(all, Architecture{row[1], row[2], row[3], row[4]})
	}
	return all
}
