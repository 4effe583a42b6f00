package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	llama "github.com/go-skynet/go-llama.cpp"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

// The prompts that an app goes to and fro between.
var prompts = []string{
	"// Copy copies from src to dst until either EOF is reached on src or an error occurs. It returns the number of bytes\n// copied and the first error encountered while copying, if any.\nfunc Copy(dst Writer, src Reader) (written int64, err error) {\n",
	"package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() {\n\tfor _, name := range os.Args[1:] {\n",
}

func open(less bool) (*llama.LLama, error) {
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		return nil, err
	}
	lesskv.SetLogLevel(slog.LevelError)
	option := lesskv.Disable()
	if less {
		adapter, err := testdata.Path(testdata.Peak41)
		if err != nil {
			return nil, err
		}
		option = lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(41), Policy: lesskv.Peak, Adapter: adapter})
	}
	return llama.New(path, llama.SetContext(512), option)
}

// write is the app: after each file it says so.
func write(what, path string, less bool) error {
	model, err := open(less)
	if err != nil {
		return err
	}
	defer model.Free()
	for i := 0; ; i++ {
		prompt := prompts[i%len(prompts)]
		if what == "state" {
			if err = model.Eval(prompt, llama.SetThreads(1)); err == nil {
				err = model.SaveState(path)
			}
		} else {
			_, err = model.Predict(prompt, llama.SetThreads(1), llama.SetTokens(1), llama.SetSeed(1), llama.SetTemperature(0),
				llama.SetPathPromptCache(path), llama.EnablePromptCacheAll)
		}
		if err != nil {
			return err
		}
		fmt.Println("written")
	}
}

// app kills the app n times. Its file must be read by another process, whenever it was killed.
func (k *killer) app(what string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	written, halves := 0, 0
	for _, less := range []bool{false, true} {
		path := filepath.Join(k.dir, "less-"+strconv.FormatBool(less))
		reader, err := open(less)
		if err != nil {
			return "", err
		}
		defer reader.Free()
		n := k.n / 2
		if less {
			n = k.n - n
		}
		for kills := range n {
			did, err := k.killApp(self, what, path, less)
			if err != nil {
				return "", fmt.Errorf("after %d kills: %w", kills, err)
			}
			written += did
			if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && written == 0 {
				continue
			}
			if err := reader.LoadState(path); err != nil {
				return "", fmt.Errorf("after kill %d, LESS %t: %w", kills+1, less, err)
			}
			if _, err := reader.Predict(prompts[kills%2], llama.SetThreads(1), llama.SetTokens(1), llama.SetPathPromptCache(path), llama.EnablePromptCacheRO); err != nil {
				return "", fmt.Errorf("after kill %d, LESS %t: %w", kills+1, less, err)
			}
			left, _ := fs.Glob(os.DirFS(filepath.Dir(path)), filepath.Base(path)+"?*")
			if len(left) > 1 {
				return "", fmt.Errorf("after %d kills, LESS %t: the halves of files gather: %v", kills+1, less, left)
			}
			halves += len(left)
		}
	}
	return fmt.Sprintf("after each the file was whole to another process; kills that left a half beside it, which the next save took away: %d", halves), nil
}

// killApp starts the app, and kills it at some moment after its first file, of which it takes a few milliseconds each.
func (k *killer) killApp(self, what, path string, less bool) (written int, err error) {
	cmd := exec.CommandContext(k.ctx, self, "-app", what, "-less="+strconv.FormatBool(less), path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	wait := time.Duration(k.random.Float64() * float64(100*time.Millisecond))
	var timer *time.Timer
	for s := bufio.NewScanner(out); s.Scan(); written++ {
		if timer == nil {
			timer = time.AfterFunc(wait, func() { cmd.Process.Kill() })
		}
	}
	err = cmd.Wait()
	if k.ctx.Err() != nil {
		return written, k.ctx.Err()
	}
	if timer == nil || cmd.ProcessState.Exited() {
		return written, fmt.Errorf("the app ended by itself: %w", err)
	}
	return written, nil
}
