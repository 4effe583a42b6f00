package lesskv

import (
	"io"
	"log/slog"

	llama "github.com/go-skynet/go-llama.cpp"
)

// SetLogOutput sets where the log lines of llama.cpp and of this project go, for the whole process, as llama.cpp's log is one;
// nil is os.Stderr, the default. The writer gets whole lines, one at a time, and must not call the model.
func SetLogOutput(w io.Writer) { llama.SetLESSKVLogOutput(w) }

// SetLogLevel sets the level from which lines are written: slog.LevelWarn by default. At slog.LevelInfo llama.cpp describes
// each model that it loads in about a hundred lines.
func SetLogLevel(level slog.Level) { llama.SetLESSKVLogLevel(level) }
