package worker

import (
	"fmt"
	"os"

	"github.com/lesskv/lesskv/patches/layout"
)

// Tree says which of the two runtimes a worker is built from.
type Tree int

const (
	Patched    Tree = iota // with the LESS cache
	Unmodified             // as its authors made it
)

func (t Tree) String() string {
	if t == Unmodified {
		return "unmodified"
	}
	return "patched"
}

// Path returns the worker of a tree: the file that LESSKV_WORKER or LESSKV_WORKER_UNMODIFIED names, else that of the runtime
// assembled for the module around the working directory. The error wraps [layout.ErrNotAssembled] if there is none.
func Path(t Tree) (string, error) {
	env := "LESSKV_WORKER"
	if t == Unmodified {
		env = "LESSKV_WORKER_UNMODIFIED"
	}
	if path := os.Getenv(env); path != "" {
		return there(path, t)
	}
	l, err := layout.Find(".")
	if err != nil {
		return "", fmt.Errorf("worker: %w", err)
	}
	return In(l, t)
}

// In returns the worker of a tree in a build folder. The error wraps [layout.ErrNotAssembled] if there is none.
func In(l layout.Layout, t Tree) (string, error) {
	if t == Unmodified {
		return there(l.UnmodifiedWorker(), t)
	}
	return there(l.Worker(), t)
}

func there(path string, t Tree) (string, error) {
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("worker: no worker of the %s tree: %w: %w", t, err, layout.ErrNotAssembled)
	}
	return path, nil
}
