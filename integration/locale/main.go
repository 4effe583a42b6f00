// Command locale loads a model and calls it in a program that has set the locale of its environment, as programs with a window do, and
// prints how numbers were read and written. Where the locale has no decimal comma it fails.
//
//	LC_ALL=de_DE.UTF-8 go run ./integration/locale
package main

/*
#include <locale.h>
#include <stdlib.h>

static int set(void) { return setlocale(LC_ALL, "") != NULL; }
static int comma(void) { return strtod("0,5", NULL) == 0.5; }
*/
import "C"

import (
	"context"
	"errors"
	"fmt"

	llama "github.com/go-skynet/go-llama.cpp"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/patches/usage"
	lesskv "github.com/lesskv/lesskv/plugin"
)

func main() { usage.Main("locale", run) }

func run(context.Context) error {
	if C.set() == 0 || C.comma() == 0 {
		return errors.New("the environment's locale has no decimal comma, or is not on this machine")
	}
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		return err
	}
	_, err = llama.New(path, llama.SetContext(128), llama.WithRopeFreqBase(-0.5))
	fmt.Println("printed:", err)
	_, err = llama.New(path, llama.SetContext(128), lesskv.Enable(lesskv.Config{Budget: lesskv.Bytes(1 << 10)}))
	fmt.Println("printed:", err)
	model, err := llama.New(path, llama.SetContext(128), llama.SetTensorSplit("0.5,1.5"), lesskv.Disable())
	if err != nil {
		return err
	}
	defer model.Free()
	inside := C.int(-1)
	_, err = model.Predict("func", llama.SetTokens(2), llama.SetLogitBias("5-0.5"), llama.SetTokenCallback(func(string) bool {
		inside = C.comma()
		return true
	}))
	fmt.Println("read:", err)
	fmt.Println("the program's own:", inside != 0, C.comma() != 0)
	return nil
}
