package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

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
func fillOutputs(model string, adapter, plot *string) error {
	if *adapter == "" {
		*adapter = besideName(model)
	}
	if *plot == "" {
		*plot = strings.TrimSuffix(*adapter, ".gguf") + ".png"
	}
	if ext := filepath.Ext(*plot); *plot != "none" && ext != ".png" && ext != ".svg" {
		return fmt.Errorf("--plot %s: want a name that ends in .png or .svg, or none", *plot)
	}
	return nil
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

// interruptible returns a context that ends with the first SIGINT or SIGTERM. The second ends the program: what is not to be
// interrupted may take long.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// stopped returns what a run failed with: errInterrupted, which it says, where the context has ended.
func stopped(ctx context.Context, w io.Writer, err error) error {
	if ctx.Err() == nil {
		return err
	}
	fmt.Fprintln(w, "interrupted; the same command goes on where this one stopped")
	return errInterrupted
}

// onTerminal reports whether somebody looks at what is written: a bar is for them.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// newBar returns a bar that counts.
func newBar(w io.Writer, total int, what string) *progressbar.ProgressBar {
	return progressbar.NewOptions(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
		progressbar.OptionSetWidth(20), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
}
