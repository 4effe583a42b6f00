package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/weights"
)

// What the commands share that take long, and go on where they stopped.

// textArgs refuses arguments: texts are flags.
func textArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q: a text is given with -d", args[0])}
	}
	return nil
}

// fillOutputs puts the adapter beside the model and the picture beside the adapter, where they were not named.
func fillOutputs(model string, adapter, plot *string) {
	if *adapter == "" {
		*adapter = besideName(model)
	}
	if *plot == "" {
		*plot = strings.TrimSuffix(*adapter, ".gguf") + ".png"
	}
}

// besideName is the path at which the runtime looks for a model's adapter.
func besideName(model string) string { return strings.TrimSuffix(model, ".gguf") + ".lesskv.gguf" }

// adapterBeside returns the path of the adapter that lies beside a model's file, where the runtime looks for it; "" if there is none.
func adapterBeside(model string) string {
	beside := besideName(model)
	for _, path := range []string{model, beside} {
		if _, err := os.Stat(path); err != nil {
			return ""
		}
	}
	return beside
}

// noAdapter is what -w says where an adapter beside the model is not to count.
const noAdapter = "none"

// adapterOf returns the adapter of a command line: the one that -w names, or without -w the one beside the model; "" if there is none.
func adapterOf(named, model string) string {
	switch named {
	case noAdapter:
		return ""
	case "":
		return adapterBeside(model)
	}
	return named
}

// readAdapter reads an adapter that is to fit a model.
func readAdapter(path string, model *weights.Model) (*weights.Adapter, error) {
	a, err := weights.Read(path)
	if err != nil {
		return nil, err
	}
	if _, err := weights.Check(a, model); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return a, nil
}

// stopped returns what a run failed with: errInterrupted, which it says, where the context has ended.
func stopped(ctx context.Context, w io.Writer, err error) error {
	if ctx.Err() == nil {
		return err
	}
	fmt.Fprintln(w, "interrupted; the same command goes on where this one stopped")
	return errInterrupted
}
