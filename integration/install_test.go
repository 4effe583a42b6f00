package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/layout"
)

// Outside a checkout, with nothing in GOPATH and this module from a proxy, the command of docs/commands.md installs lesskv, which then runs
// and finds its workers in any folder. Only -build is added: what is compiled is not compiled anew.
func TestInstall(t *testing.T) {
	if !soak() {
		t.Skip("it compiles the command and all that it imports in a module cache of its own: make soak-install")
	}
	build, err := layout.Find(".")
	require.NoError(t, err)
	page, err := os.ReadFile("../docs/commands.md")
	require.NoError(t, err)
	_, line, ok := strings.Cut(string(page), "\n    go run github.com/lesskv/lesskv/patches@VERSION -install")
	require.True(t, ok)
	line, _, _ = strings.Cut(line, "\n")
	require.Empty(t, strings.TrimSpace(line))

	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	require.NoError(t, err)
	version, env := publish(t)
	gopath, dir := t.TempDir(), t.TempDir()
	env = append(env, "GOPATH="+gopath, "GOBIN=", "XDG_CACHE_HOME="+t.TempDir(), "GOCACHE="+strings.TrimSpace(string(cache)), layout.Variable+"=")
	run := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s\n%s", strings.Join(cmd.Args, " "), out)
		return string(out)
	}
	out := run("go", "run", "github.com/lesskv/lesskv/patches@"+version, "-install", "-build", string(build))
	lesskv := filepath.Join(gopath, "bin", "lesskv")
	assert.Contains(t, out, "lesskv: installed "+lesskv+"\n")

	out = run(lesskv, "version")
	assert.Contains(t, out, version)
	assert.Contains(t, out, "up to date, and the one in this lesskv")
	assert.Contains(t, run(lesskv, "run", "-n", "3", "func main() {"), "peak, 102 of 2048 tokens")
	assert.Contains(t, run(lesskv, "doctor"), "LESS is the unmodified runtime to")
}
