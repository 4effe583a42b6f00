//go:build !cgo

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// errNoRuntime names the one command that makes a lesskv with everything.
var errNoRuntime = errors.New("this lesskv was built without cgo and can't run models: in a checkout, make lesskv builds one that can, elsewhere go run github.com/lesskv/lesskv/patches@VERSION -install")

// runtimeCommands returns the commands that run models, each of which says that this build cannot.
func runtimeCommands() (all []*cobra.Command) {
	for _, c := range []struct{ name, short string }{
		{"run", "Stream a completion"},
		{"chat", "Chat with a model"},
		{"tune", "Find how a budget is best spread over a model's layers and heads"},
		{"train", "Train an adapter for a model"},
		{"verify", "Measure how close to the full cache a model is, and at what memory"},
		{"bench", "Measure speed and memory against the unmodified runtime"},
	} {
		all = append(all, &cobra.Command{
			Use:                c.name,
			Short:              c.short + " (not in this build)",
			DisableFlagParsing: true,
			RunE:               func(*cobra.Command, []string) error { return errNoRuntime },
		})
	}
	return all
}

// senseless are the faults that packages find in a command line.
var senseless []error

// linked is none.
var linked linkedRuntime

// policyNames, policyText and methodNames are words of commands that this build does not have.
func policyNames() []string       { return nil }
func policyText() string          { return "" }
func methodNames(string) []string { return nil }
func recallNames() []string       { return nil }

// linkedFolder returns the build folder of the runtime in this command: none.
func linkedFolder() string { return "" }
