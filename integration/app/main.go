// Command app is a program as users of go-llama.cpp write them: it knows nothing of lesskv. It goes on with each line of
// standard input, and keeps what was said before in the prompt.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"

	llama "github.com/go-skynet/go-llama.cpp"
)

func main() {
	model := flag.String("m", "model.gguf", "model file")
	context := flag.Int("c", 2048, "context in tokens")
	tokens := flag.Int("n", 64, "tokens to generate for each line")
	seed := flag.Int("s", 1, "seed")
	flag.Parse()

	l, err := llama.New(*model, llama.EnableF16Memory, llama.SetContext(*context))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer l.Free()

	text := ""
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		text += lines.Text() + "\n"
		reply, err := l.Predict(text, llama.SetTokens(*tokens), llama.SetSeed(*seed), llama.SetThreads(1),
			llama.SetTokenCallback(func(token string) bool {
				fmt.Print(token)
				return true
			}))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println()
		text += reply + "\n"
	}
}
