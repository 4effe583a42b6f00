package provenance

import (
	"encoding/json"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/worker"
)

// A report's build is told in full, in JSON and in a line, and one that is not known says nothing.
func TestOf(t *testing.T) {
	path, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	b := Of(path)
	data, err := json.Marshal(b)
	require.NoError(t, err)
	var fields map[string]string
	require.NoError(t, json.Unmarshal(data, &fields))
	for _, name := range []string{"commit", "cpu", "system", "compiler", "flags", "isa"} {
		assert.NotEmpty(t, fields[name], name)
		assert.Contains(t, b.Line(), fields[name], name)
	}
	assert.Equal(t, b, Of(path), "equal inputs give equal reports")

	alone := Of(t.TempDir() + "/bin/worker")
	assert.Empty(t, alone.Compiler)
	assert.Equal(t, b.Commit, alone.Commit)
	assert.Empty(t, Build{}.Line())
	data, err = json.Marshal(Build{})
	require.NoError(t, err)
	assert.Equal(t, "{}", string(data))
}

// go test records no commit: the checkout's is found.
func TestVersionOfACheckout(t *testing.T) {
	head, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		t.Skip("not a checkout with git: ", err)
	}
	assert.Contains(t, Version(), "commit "+string(head[:12]))
}

func TestRecorded(t *testing.T) {
	info := &debug.BuildInfo{Main: debug.Module{Path: module, Version: "v1.2.3"}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"}}}
	version, commit, changed := recorded(info)
	assert.Equal(t, "v1.2.3 abc true", strings.Join([]string{version, commit, map[bool]string{true: "true"}[changed]}, " "))

	info.Main.Path = "an/app" // whose commit is not lesskv's
	info.Deps = []*debug.Module{{Path: "other", Version: "v9"}, {Path: module, Version: "v1.2.4"}}
	version, commit, changed = recorded(info)
	assert.Equal(t, "v1.2.4", version)
	assert.Empty(t, commit)
	assert.False(t, changed)
}
