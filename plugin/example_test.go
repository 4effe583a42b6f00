package lesskv_test

import (
	"context"
	"errors"
	"flag"
	"fmt"

	llama "github.com/go-skynet/go-llama.cpp"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

func Example() {
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		panic(err)
	}
	adapter, err := testdata.Path(testdata.H2O102)
	if err != nil {
		panic(err)
	}
	model, err := llama.New(path, llama.SetContext(2048), lesskv.Enable(lesskv.Config{Adapter: adapter}))
	if err != nil {
		panic(err)
	}
	defer model.Free()
	if _, err := model.Predict("package main", llama.SetTokens(200), llama.SetThreads(1), llama.IgnoreEOS); err != nil {
		panic(err)
	}
	s, err := lesskv.Stats(model)
	if err != nil {
		panic(err)
	}
	l := s.Layers[0]
	fmt.Println(l.Seen, "tokens seen,", l.Kept, "kept,", l.Folded, "folded")
	fmt.Println("smaller than the full cache:", s.CacheBytes < s.FullBytes)
	// Output:
	// 202 tokens seen, 102 kept, 100 folded
	// smaller than the full cache: true
}

func ExampleEnable() {
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		panic(err)
	}
	_, err = llama.New(path, lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(0)}))
	fmt.Println(errors.Is(err, lesskv.ErrBudget))
	fmt.Println(err)
	// Output:
	// true
	// failed loading model: budget "0": nothing would be kept; want slots a head (1024), a share of the context (5%), memory (64MiB), or a share of the full cache's (1/16)
}

// A call ends with its request.
func ExampleWithContext() {
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		panic(err)
	}
	model, err := llama.New(path, lesskv.Enable(lesskv.Config{Adapter: lesskv.NoAdapter}))
	if err != nil {
		panic(err)
	}
	defer model.Free()
	request, cancel := context.WithCancel(context.Background())
	defer cancel()
	tokens := 0
	text, err := model.Predict("package main", llama.SetTokens(-1), llama.SetThreads(1), llama.IgnoreEOS, lesskv.WithContext(request),
		llama.SetTokenCallback(func(string) bool {
			if tokens++; tokens == 10 {
				cancel() // the client has gone
			}
			return true
		}))
	fmt.Println(errors.Is(err, context.Canceled))
	fmt.Println("what there was:", text != "")
	// Output:
	// true
	// what there was: true
}

func ExampleRegisterFlags() {
	fs := flag.NewFlagSet("app", flag.ContinueOnError)
	less := lesskv.RegisterFlags(fs, "lesskv-")
	if err := fs.Parse([]string{"-lesskv-budget", "10%", "-lesskv-policy", "peak"}); err != nil {
		panic(err)
	}
	fmt.Println(less.Config().Policy, less.Config().Budget)
	// then: llama.New(path, less.Option())
	// Output:
	// peak 10%
}
