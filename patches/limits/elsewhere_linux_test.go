package limits

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// An app knows its machine's memory on systems that are not Linux, macOS among them: compiled as for one, on this.
func TestMemoryElsewhere(t *testing.T) {
	program := compile(t, "-U__linux__")
	if program == "" {
		t.Skip("no compiler here")
	}
	out, err := exec.Command(program).CombinedOutput()
	require.NoError(t, err, string(out))
	var limit, left uint64
	_, err = fmt.Sscan(string(out), &limit, &left)
	require.NoError(t, err, string(out))
	var machine unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&machine))
	require.Positive(t, limit)
	require.LessOrEqual(t, limit, uint64(machine.Totalram)*uint64(machine.Unit))
	require.LessOrEqual(t, left, limit)
}
