package usage

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStatus(t *testing.T) {
	require.Equal(t, 0, Status(nil))
	require.Equal(t, 0, Status(flag.ErrHelp))
	require.Equal(t, 1, Status(fs.ErrNotExist))
	wrong := fmt.Errorf("program: %w", Errorf("-n %d: %w", 3, fs.ErrInvalid))
	require.Equal(t, 2, Status(errors.Join(fs.ErrNotExist, wrong)))
	require.ErrorIs(t, wrong, fs.ErrInvalid)
	require.EqualError(t, wrong, "program: -n 3: invalid argument")

	f := flag.NewFlagSet("program", flag.ContinueOnError)
	require.NoError(t, f.Parse(nil))
	require.NoError(t, NoArguments(f))
	require.NoError(t, f.Parse([]string{"build"}))
	require.ErrorContains(t, NoArguments(f), `"build"`)
	require.Equal(t, 2, Status(NoArguments(f)))
}

// The test binary is a program too, which does as it is told by a signal or not.
func TestMain(m *testing.M) {
	kind := os.Getenv("LESSKV_TEST_PROGRAM")
	if kind == "" {
		os.Exit(m.Run())
	}
	Main("program", func(ctx context.Context) error {
		fmt.Println("begun")
		<-ctx.Done()
		if kind == "stuck" {
			time.Sleep(time.Minute)
		}
		return ctx.Err()
	})
}

// A program refuses arguments. The first signal asks it to end, the second ends it.
func TestProgram(t *testing.T) {
	program := func(kind string, args ...string) (*exec.Cmd, *strings.Builder) {
		c, stderr := exec.Command(os.Args[0], args...), new(strings.Builder)
		c.Env, c.Stderr = append(os.Environ(), "LESSKV_TEST_PROGRAM="+kind), stderr
		return c, stderr
	}
	c, stderr := program("obedient", "build")
	require.EqualError(t, c.Run(), "exit status 2")
	require.Contains(t, stderr.String(), `program: unexpected argument "build"`)

	for kind, end := range map[string]string{"obedient": "exit status 1 program: context canceled\n", "stuck": "signal: terminated "} {
		c, stderr := program(kind)
		out, err := c.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, c.Start())
		_, err = out.Read(make([]byte, 100))
		require.NoError(t, err)
		require.NoError(t, c.Process.Signal(syscall.SIGTERM))
		ended := make(chan error)
		go func() { ended <- c.Wait() }()
		for err = nil; err == nil; {
			select {
			case err = <-ended:
			case <-time.After(10 * time.Millisecond):
				if kind == "stuck" { // it may not have seen the first yet
					c.Process.Signal(syscall.SIGTERM)
				}
			}
		}
		require.Equal(t, end, err.Error()+" "+stderr.String())
	}
}
