// Command soak runs go-llama.cpp's calls over and over in one process and prints the least memory that it had in the first quarter of
// them, the ten first ones left out, and in the last quarter. It fails where that has grown by more than 1 % of what was resident then.
// The least counts, since what C's heap keeps free for the next call changes from call to call by some hundred KiB; and a row that is
// above that is run again, since what leaks does so each time.
//
//	go run ./integration/soak
//
// A process takes some 300 KiB for itself before it settles, whatever it runs first: threads and their stacks, and what Go's
// garbage collector keeps. The rows that warm it up show that, and are not judged.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"

	llama "github.com/go-skynet/go-llama.cpp"

	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

const (
	settled = 10  // runs after which memory is measured
	bound   = 1.0 // per cent by which it may grow from there
	tries   = 3   // what leaks does so each time
)

func main() {
	predicts := flag.Int("predicts", 500, "calls of Predict")
	loads := flag.Int("loads", 200, "models that are loaded, used and freed")
	flag.Parse()
	if *predicts <= 2*settled || *loads <= 2*settled {
		fmt.Fprintf(os.Stderr, "soak: memory is measured from run %d on: want more than %d of them\n", settled, 2*settled)
		os.Exit(2)
	}
	if err := soak(*predicts, *loads); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func soak(predicts, loads int) error {
	path, err := testdata.Path(testdata.Model)
	if err != nil {
		return err
	}
	adapter, err := testdata.Path(testdata.Peak102)
	if err != nil {
		return err
	}
	lesskv.SetLogLevel(slog.LevelError)
	modes := []struct {
		name   string
		option llama.ModelOption
	}{
		// the first model with LESS sets the C heap (plugin/doc.go, "Memory outside the cache"): in glibc's own, off settles later
		{"on", lesskv.Enable(lesskv.Config{Budget: lesskv.Tokens(64), Policy: lesskv.Peak, Adapter: adapter})},
		{"off", lesskv.Disable()},
	}
	grown := false
	fmt.Printf("%-8s  %-4s  %-18s  %5s  %16s  %14s  %7s\n", "", "LESS", "what", "times", "KiB, 1st quarter", "KiB, last", "growth")
	for _, warm := range []bool{true, false} {
		name := ""
		if warm {
			name = "warm-up"
		}
		for _, mode := range modes {
			for _, what := range []struct {
				name string
				n    int
				run  func(path string, option llama.ModelOption, n int, each func()) error
			}{
				{"Predict", predicts, predict},
				{"New, Predict, Free", loads, load},
			} {
				n := what.n
				if warm {
					n = max(n/4, 2*settled+1)
				}
				again := true
				for range tries {
					by, first, last, err := grow(n, func(each func()) error { return what.run(path, mode.option, n, each) })
					if err != nil {
						return err
					}
					fmt.Printf("%-8s  %-4s  %-18s  %5d  %16d  %14d  %+6.2f%%\n", name, mode.name, what.name, n, first, last, by)
					if again = !warm && by > bound; !again {
						break
					}
				}
				grown = grown || again
			}
		}
	}
	if grown {
		return fmt.Errorf("memory has grown by more than %g %%", bound)
	}
	return nil
}

// grow returns the least memory, in KiB, of n turns' first quarter and of their last one, and by how many per cent of what was resident
// it has grown.
func grow(n int, run func(each func()) error) (by float64, first, last int, err error) {
	turn, whole := 0, 0
	first, last = math.MaxInt, math.MaxInt
	err = run(func() {
		turn++
		early, late := turn >= settled && turn <= settled+n/4, turn > n-n/4
		if !early && !late {
			return
		}
		switch own, resident := memory(); {
		case late:
			last = min(last, own)
		case own < first:
			first, whole = own, resident
		}
	})
	return 100 * float64(last-first) / float64(whole), first, last, err
}

// prompts differ, as those of an app do: none goes on where the last one ended.
func prompt(i int) string {
	return fmt.Sprintf("// F%d returns %s\nfunc F%d(", i%7, strings.Repeat("the number of bytes ", i%5), i%7)
}

func predict(path string, option llama.ModelOption, n int, each func()) error {
	model, err := llama.New(path, llama.SetContext(0), option)
	if err != nil {
		return err
	}
	defer model.Free()
	for i := range n {
		if err := one(model, i); err != nil {
			return err
		}
		each()
	}
	return nil
}

func load(path string, option llama.ModelOption, n int, each func()) error {
	for i := range n {
		model, err := llama.New(path, llama.SetContext(0), llama.EnableEmbeddings, option)
		if err != nil {
			return err
		}
		if err = one(model, i); err == nil {
			_, err = model.Embeddings(prompt(i), llama.SetThreads(1))
		}
		each() // while there is a model: without one the memory is the program's own
		model.Free()
		if err != nil {
			return err
		}
	}
	return nil
}

func one(model *llama.LLama, i int) error {
	_, err := model.Predict(prompt(i), llama.SetTokens(16), llama.SetThreads(1), llama.SetSeed(i), llama.SetStopWords("}\n"),
		llama.SetTokenCallback(func(string) bool { return true }))
	return err
}

// memory returns the process's own memory in KiB, and all that is resident with the files that it has mapped: of those, the machine takes
// pages back, and gives them again, as it likes. Go's own garbage is in neither: what its heap keeps free for the next allocations is up to
// 512 KiB for each processor even after FreeOSMemory.
func memory() (own, resident int) {
	debug.FreeOSMemory()
	free := []metrics.Sample{{Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(free)
	data, err := os.ReadFile("/proc/self/statm")
	var size, rss, files int
	if _, serr := fmt.Sscan(string(data), &size, &rss, &files); err != nil || serr != nil {
		panic(fmt.Sprintf("reading /proc/self/statm: %v, %v", err, serr))
	}
	garbage := int(free[0].Value.Uint64())
	return ((rss-files)*os.Getpagesize() - garbage) >> 10, (rss*os.Getpagesize() - garbage) >> 10
}
