package layout

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
)

// StampFile is the Go file of Package whose constants say what the runtime was built from.
const StampFile = "zz_lesskv_build.go"

// A Stamp is what a runtime was built from.
type Stamp struct {
	Archive  string // SHA-256 of libbinding.a
	Runtime  string // the version of llama.cpp
	Flags    string // for the CPU
	Compiler string
}

// Stamp reads the constants of the StampFile.
func (l Layout) Stamp() (Stamp, error) {
	path := filepath.Join(l.Package(), StampFile)
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return Stamp{}, fmt.Errorf("what the runtime was built from: %w", err)
	}
	var s Stamp
	fields := map[string]*string{"LesskvArchive": &s.Archive, "LesskvRuntime": &s.Runtime, "LesskvFlags": &s.Flags, "LesskvCompiler": &s.Compiler}
	ast.Inspect(file, func(n ast.Node) bool {
		c, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range c.Names {
			if to := fields[name.Name]; to != nil && i < len(c.Values) {
				if text, ok := c.Values[i].(*ast.BasicLit); ok {
					*to, _ = strconv.Unquote(text.Value)
				}
			}
		}
		return false
	})
	return s, nil
}
