package usage

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"testing"

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
