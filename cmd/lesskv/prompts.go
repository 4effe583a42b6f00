//go:build cgo

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lesskv/lesskv/integration/verify"
)

// readPrompts reads a file of JSON lines.
func readPrompts(path string) ([]verify.Prompt, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the prompts: %w", err)
	}
	all, err := parsePrompts(data)
	if err != nil {
		return nil, usageError{fmt.Errorf("--prompts %s%w", path, err)}
	}
	return all, nil
}

// parsePrompts reads JSON lines, of one prompt each. Its errors go behind the file's name.
func parsePrompts(data []byte) (all []verify.Prompt, err error) {
	s := bufio.NewScanner(bytes.NewReader(data))
	s.Buffer(nil, len(data)+1)
	for line := 1; s.Scan(); line++ {
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		var p verify.Prompt
		d := json.NewDecoder(bytes.NewReader(s.Bytes()))
		d.DisallowUnknownFields()
		err := d.Decode(&p)
		if err == nil && p.Prompt == "" {
			err = errors.New("no prompt")
		} else if _, end := d.Token(); err == nil && end != io.EOF {
			err = errors.New("something follows")
		}
		if err != nil {
			return nil, fmt.Errorf(", line %d: want {\"prompt\": \"…\", \"reference\": \"…\"}: %w", line, err)
		}
		all = append(all, p)
	}
	if len(all) == 0 && s.Err() == nil {
		return nil, errors.New(": no prompts")
	}
	return all, s.Err()
}
