//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/cgo/kernels"
	_ "github.com/lesskv/lesskv/cmd/lesskv/internal/assembled" // says what to do where no runtime is
	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/verify"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/train"
)

// runtimeCommands returns the commands that run models. The others are in every build, with cgo and the runtime or without.
func runtimeCommands() []*cobra.Command {
	return []*cobra.Command{newRun(), newChat(), newTune(), newTrain(), newVerify(), newBench()}
}

// senseless are the faults that packages find in a command line.
var senseless = []error{lesskv.ErrConfig, lesskv.ErrArgument, train.ErrOption, tune.ErrOption, verify.ErrPlan, bench.ErrOption}

var linked = func() linkedRuntime {
	level, ggml := llama.LESSKVLevels()
	return linkedRuntime{llama.LesskvRuntime, llama.LesskvFlags, llama.LesskvCompiler, llama.LesskvArchive, level, ggml}
}()

// policyNames and methodNames are the words that flags of these names take, policyText what policies are.
func policyNames() []string { return kernels.PolicyNames() }
func policyText() string    { return kernels.PolicyHelp() }

func methodNames(command string) (names []string) {
	if command == "verify" {
		return verify.Methods()
	}
	for _, m := range bench.Methods() {
		names = append(names, m.Name)
	}
	return names
}

// recallNames are the words that --recall takes.
func recallNames() []string { return append(verify.RecallKinds(), "none") }

// linkedFolder returns the build folder of the runtime in this command, from where its source lay; "" if it was built with -trimpath.
func linkedFolder() string {
	file, _ := runtime.FuncForPC(reflect.ValueOf(llama.New).Pointer()).FileLine(reflect.ValueOf(llama.New).Pointer())
	if !filepath.IsAbs(file) {
		return ""
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(file), "libbinding.a")); err != nil {
		return ""
	}
	return filepath.Dir(filepath.Dir(file))
}
