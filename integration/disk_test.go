//go:build linux

package integration

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lesskv/lesskv/integration/bench"
	"github.com/lesskv/lesskv/integration/checkpoints"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
)

// Every command that writes files meets a disk that is full, at several moments, and one that is read-only: it fails, names the file and
// the reason, leaves the outputs that were there as they were and no half beside them, and does its work once there is room. (The
// plugin's files: TestStateOnAFullDisk.)
func TestFullAndReadOnlyDisks(t *testing.T) {
	tools := t.TempDir()
	program := filepath.Join(tools, "lesskv")
	out, err := exec.Command("go", "build", "-o", program, "../cmd/lesskv").CombinedOutput()
	require.NoError(t, err, string(out))
	for from, to := range map[string]string{testdata.Model: "model.gguf", testdata.Lambda: "model.lesskv.gguf"} {
		path, err := testdata.PathIn(tools, from)
		require.NoError(t, err)
		require.NoError(t, os.Rename(path, filepath.Join(tools, to)))
	}
	text, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(tools, "text.txt"), text[:9000], 0o644))
	env := os.Environ()
	for tree, name := range map[worker.Tree]string{worker.Patched: "LESSKV_WORKER", worker.Unmodified: "LESSKV_WORKER_UNMODIFIED"} {
		path, err := worker.Path(tree)
		require.NoError(t, err)
		env = append(env, name+"="+path)
	}
	train := []string{"train", "-m", "model.gguf", "-d", "text.txt", "-c", "256", "-b", "41", "--rank", "4", "--hidden", "8", "--steps", "2", "-t", "1", "--layers", "0-1"}
	tune := []string{"tune", "-m", "model.gguf", "-d", "text.txt", "-c", "96", "-b", "16", "--ubatch", "16", "--windows", "1", "--rounds", "0", "-t", "1"}
	measure := []string{"bench", "--method", "less", "-c", "64", "--ubatch", "64", "-r", "1", "-t", "1", "-q"}
	for part, layers := range map[string]string{"part1.gguf": "0-1", "part2.gguf": "2-5"} {
		cmd := exec.Command(program, append(train, "--plot", "none", "-o", part, "--layers", layers)...)
		cmd.Dir, cmd.Env = tools, env
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	dir := filepath.Join(tools, "checkpoints")
	require.NoError(t, os.Mkdir(dir, 0o755))
	draw := rand.New(rand.NewPCG(1, 2))
	for i := range 6 {
		checkpoints.Write(t, filepath.Join(dir, fmt.Sprintf("layer_%d.pth", i)), "", checkpoints.Layer(draw, checkpoints.Shape{Heads: 4, HeadsKV: 2, Size: 64, Hidden: 8, Rank: 4}, false))
	}
	results := filepath.Join(tools, "results")
	require.NoError(t, os.Mkdir(results, 0o755))
	require.NoError(t, (&bench.Result{Model: "gopher-5m"}).Write(filepath.Join(results, "gopher-5m-growth.json")))
	const page = "<!-- lesskv bench: the table below is written by it -->\n<!-- lesskv bench: end -->\n"
	require.NoError(t, os.WriteFile(filepath.Join(tools, "page.md"), []byte(page), 0o644))
	for name, test := range map[string]struct {
		args    []string
		outputs []string // on the disk; page.md is there before
		rooms   []int64  // KiB that are free; what is needed is more
	}{
		"train, the recordings": {append(train, "--plot", "none", "-o", "DISK/x.gguf"), []string{"x.gguf"}, []int64{0, 8, 500}},
		"train, the adapter":    {append(train, "--plot", "none", "-o", "DISK/x.gguf", "--recordings", "TOOLS/recordings"), []string{"x.gguf"}, []int64{0, 24}},
		"train, the picture":    {append(train, "-o", "TOOLS/x.gguf", "--plot", "DISK/x.png"), []string{"x.png"}, []int64{0, 8}},
		"tune, the work":        {append(tune, "--plot", "none", "-o", "DISK/x.gguf"), []string{"x.gguf"}, []int64{0}},
		"tune, the picture":     {append(tune, "-o", "TOOLS/tuned.gguf", "--plot", "DISK/x.png"), []string{"x.png"}, []int64{8}},
		"plan, the picture":     {[]string{"plan", "-m", "model.gguf", "-c", "512,2048", "-o", "DISK/x.png"}, []string{"x.png"}, []int64{0, 8}},
		"import":                {[]string{"import", "-m", "model.gguf", "--heavy", "20", "--recent", "21", "-o", "DISK/x.gguf", "checkpoints"}, []string{"x.gguf"}, []int64{0, 8}},
		"merge":                 {[]string{"merge", "part1.gguf", "part2.gguf", "-o", "DISK/x.gguf"}, []string{"x.gguf"}, []int64{0, 8}},
		"tune --train": {append(tune, "--train", "--rank", "1", "--hidden", "1", "--steps", "2", "--text-tokens", "960", "--plot", "none", "-o", "DISK/x.gguf"),
			[]string{"x.gguf"}, []int64{0, 40, 1500}},
		"verify": {[]string{"verify", "-m", "model.gguf", "-d", "text.txt", "-c", "192", "-b", "41", "--windows", "2", "--policy", "lambda",
			"--method", "sparse,LESS", "--recall", "none", "-n", "4", "--samples", "50", "-t", "1", "-o", "DISK/v"}, []string{"v/report.json", "v/report.html"}, []int64{0, 4, 40, 100}},
		"bench, the samples":    {append(measure, "--dir", "TOOLS/bench", "-o", "DISK/x.json", "model.gguf"), []string{"x.json"}, []int64{0}},
		"bench, the picture":    {append(measure, "--dir", "TOOLS/bench", "--plot", "DISK/x.png", "model.gguf"), []string{"x.png"}, []int64{0, 8}},
		"bench, a shape":        {append(measure, "--dir", "DISK", "gopher-5m"), nil, []int64{0, 500, 5000}},
		"bench, a page":         {[]string{"bench", "--targets", "TOOLS/results", "gopher-5m-growth", "--into", "DISK/page.md"}, []string{"page.md"}, []int64{0}},
		"run, what is built in": {[]string{"run", "-n", "1", "func"}, nil, []int64{0, 5000}},
	} {
		t.Run(name, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			require.NoError(t, os.Mkdir(disk, 0o755))
			if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=32m"); err != nil {
				t.Skipf("mounting a disk of its own takes root: %v", err)
			}
			defer func() { require.NoError(t, unix.Unmount(disk, unix.MNT_DETACH)) }()
			for _, path := range test.outputs {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(disk, path)), 0o755))
			}
			run := func() (string, error) {
				cmd := exec.Command(program)
				for _, a := range test.args {
					cmd.Args = append(cmd.Args, strings.NewReplacer("DISK", disk, "TOOLS", tools).Replace(a))
				}
				cmd.Dir, cmd.Env = tools, append(env, "XDG_CACHE_HOME="+disk)
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			if slices.Contains(test.outputs, "page.md") {
				require.NoError(t, os.WriteFile(filepath.Join(disk, "page.md"), []byte(page), 0o644))
			}
			finish := func() {
				t.Helper()
				out, err := run()
				require.NoError(t, err, out)
				left, err := filepath.Glob(filepath.Join(disk, "*.work*"))
				require.NoError(t, err)
				assert.Empty(t, left, "work that is finished")
			}
			finish() // what is there before is of the kind that the command writes
			before := filesOn(t, disk)
			require.NotEmpty(t, before)
			for _, path := range test.outputs {
				require.Contains(t, before, path)
			}
			if test.outputs == nil { // what is made for later: it is to be made again
				entries, err := os.ReadDir(disk)
				require.NoError(t, err)
				for _, e := range entries {
					require.NoError(t, os.RemoveAll(filepath.Join(disk, e.Name())))
				}
			}
			check := func(reason, out string, err error) {
				t.Helper()
				require.Error(t, err, out)
				assert.Regexp(t, reason, out)
				assert.Contains(t, out, disk, "the file is named")
				assert.NotContains(t, out, "panic")
				have := filesOn(t, disk)
				for path, data := range have {
					want, ok := before[path]
					assert.True(t, ok, "%s lies beside", path)
					assert.True(t, !ok || want == data, "%s is as it was", path)
				}
				if test.outputs != nil {
					assert.Len(t, have, len(before), "nothing is gone")
				}
			}
			filler := filepath.Join(disk, "filler")
			for _, room := range test.rooms {
				fill(t, filler, room<<10)
				out, err := run()
				check(syscall.ENOSPC.Error()+"|not enough disk", out, err)
				require.NoError(t, os.Remove(filler))
			}
			require.NoError(t, unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			out, err := run()
			check(syscall.EROFS.Error(), out, err)
			require.NoError(t, unix.Mount("", disk, "", unix.MS_REMOUNT, ""))
			finish()
			assert.Equal(t, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(filesOn(t, disk))))
		})
	}
}

// filesOn returns the files on a disk with what is in them, but for the filler and what is kept of work that is not finished.
func filesOn(t *testing.T, disk string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, fs.WalkDir(os.DirFS(disk), ".", func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == "work" || strings.HasSuffix(name, ".work") || strings.HasSuffix(name, ".work.train")):
			return fs.SkipDir
		case d.IsDir() || name == "filler":
			return nil
		}
		data, err := os.ReadFile(filepath.Join(disk, path))
		files[path] = string(data)
		return err
	}))
	return files
}

// fill writes a file that leaves so many bytes on its disk.
func fill(t *testing.T, path string, room int64) {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(filepath.Dir(path), &fs))
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bavail)*fs.Bsize-room))
	require.NoError(t, f.Close())
}
