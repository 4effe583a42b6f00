//go:build cgo

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tinymodels"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
)

// playCommand, an environment variable, makes the test binary the command itself.
const playCommand = "LESSKV_TEST_COMMAND"

// dieAt, another, has it killed when it says that.
const dieAt = "LESSKV_TEST_DIE_AT"

func TestMain(m *testing.M) {
	if os.Getenv(playCommand) != "" {
		var out, err io.Writer = os.Stdout, os.Stderr // which may be a terminal
		if os.Getenv(dieAt) != "" {
			out, err = mortal{out}, mortal{err}
		}
		os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, out, err))
	}
	os.Exit(m.Run())
}

// mortal is an output that ends its process, as kill -9 does, once it has written what dieAt says.
type mortal struct{ io.Writer }

func (m mortal) Write(p []byte) (int, error) {
	n, err := m.Writer.Write(p)
	if last := os.Getenv(dieAt); last != "" && bytes.Contains(p, []byte(last)) {
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {}
	}
	return n, err
}

// quickly are flags for a training of seconds: three windows and few steps.
var quickly = []string{"-c256", "--text-tokens=768", "-b64", "--policy=h2o", "--steps=100", "--ubatch=16", "--hidden=4", "--rank=4", "-t1"}

// trainFiles returns a folder with the model, some text and a lesskv that is this binary, and an environment that finds it.
func trainFiles(t *testing.T) (dir string, env []string) {
	dir = t.TempDir()
	model, err := testdata.PathIn(dir, testdata.Model)
	require.NoError(t, err)
	require.NoError(t, os.Rename(model, filepath.Join(dir, "model.gguf")))
	texts := filepath.Join(dir, "texts")
	require.NoError(t, os.MkdirAll(filepath.Join(texts, ".hidden"), 0o755))
	held, err := os.ReadFile("../../integration/testdata/heldout.txt")
	require.NoError(t, err)
	for name, data := range map[string]string{
		"a.txt": string(held[:4000]), "b/c.go": string(held[4000:8000]), "picture.png": "\x89PNG\xff", ".hidden/d.txt": "\xff\xfe",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(texts, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(texts, name), []byte(data), 0o644))
	}
	binary, err := os.Executable()
	require.NoError(t, err)
	bin := filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	require.NoError(t, os.Symlink(binary, filepath.Join(bin, "lesskv")))
	path, err := worker.Path(worker.Patched)
	require.NoError(t, err)
	env = append(os.Environ(), playCommand+"=1", "LESSKV_WORKER="+path, "PATH="+bin+":"+os.Getenv("PATH"))
	return dir, env
}

// TestTrain: killed in the middle, asked again, the command makes an adapter that run takes.
func TestTrain(t *testing.T) {
	dir, env := trainFiles(t)
	args := append([]string{"train", "-m", "model.gguf", "-d", "texts", "--plot", "plot.png"}, quickly...)
	start := func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(dir, "bin", "lesskv"), args...)
		cmd.Dir, cmd.Env = dir, env
		return cmd
	}
	work := filepath.Join(dir, "model.lesskv.gguf.work")
	killed := start()
	killed.Env = append(killed.Env, dieAt+"=layer 0: validation")
	out, err := killed.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	require.False(t, exit.Exited(), "it was to be killed: %s", out)
	finished, err := os.ReadFile(filepath.Join(work, "layer-000.gguf"))
	require.NoError(t, err)
	assert.NotEmpty(t, finished)

	again := start()
	out, err = again.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.NotContains(t, string(out), "layer 0: validation", "what is finished is not fitted again")
	assert.Contains(t, string(out), "layer 5: validation")
	assert.Contains(t, string(out), "baseline+")
	assert.NoDirExists(t, work)
	assert.FileExists(t, filepath.Join(dir, "plot.png"))

	adapter := filepath.Join(dir, "model.lesskv.gguf")
	status, text, report := greedy("", "-m", filepath.Join(dir, "model.gguf"), "-n40", strings.Repeat("func main() {\n", 20))
	require.Equal(t, exitOK, status, report)
	assert.NotEmpty(t, text)
	assert.Contains(t, report, "phi and psi of rank 4", "run finds %s", adapter)

	// inspect has the validation by layer that train printed
	status, said, stderr := command("", "inspect", adapter)
	require.Equal(t, exitOK, status, stderr)
	_, said, ok := strings.Cut(said, "validation   error by layer, sparse only being 1:\n")
	require.True(t, ok, said)
	rows := regexp.MustCompile(`(?m)^ +(\d) +[\d.]+ +[\d.]+ +([\d.]+) +`).FindAllStringSubmatch(string(out), -1)
	require.Len(t, rows, 6)
	for _, row := range rows {
		assert.Contains(t, said, row[1]+": "+row[2])
	}
}

// TestTrainSparseLayer: of a layer that nothing can be fitted to, here one whose keys are no numbers, the user is told, and the others are
// trained.
func TestTrainSparseLayer(t *testing.T) {
	dir, _ := trainFiles(t)
	model, out := filepath.Join(dir, "model.gguf"), filepath.Join(dir, "out.gguf")
	require.NoError(t, tinymodels.Spoil(model, "blk.5.attn_k.weight", 0))
	args := []string{"train", "-m", model, "-d", filepath.Join(dir, "texts", "a.txt"), "-o", out, "--plot", "none"}
	status, stdout, stderr := command("", append(args, quickly...)...)
	require.Equal(t, exitOK, status, stderr)
	said := stdout + stderr
	assert.Regexp(t, `(?m)^layer 0: validation \d`, said)
	assert.Regexp(t, `(?m)^layer 5: warning: it gets no phi and psi and runs sparse only: .*beyond single precision`, said)
	a, err := weights.Read(out)
	require.NoError(t, err)
	assert.False(t, a.Kernels[0].Empty())
	assert.True(t, a.Kernels[5].Empty())
}

// TestTrainFullDisk: on a disk that is too small the command says so; with more room the same command goes on.
func TestTrainFullDisk(t *testing.T) {
	dir, env := trainFiles(t)
	disk := filepath.Join(dir, "disk")
	require.NoError(t, os.Mkdir(disk, 0o755))
	mount := exec.Command("unshare", "-Urm", "mount", "-t", "tmpfs", "none", disk)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Skipf("a disk of a chosen size can't be had here: %v: %s", err, out)
	}
	train := strings.Join(append([]string{"lesskv train -m model.gguf -d texts -o disk/a.gguf --disk 1G"}, quickly...), " ")
	cmd := exec.Command("unshare", "-Urm", "sh", "-c", "mount -t tmpfs -o size=4M none disk && { "+
		train+"; echo status $?; ls disk; mount -o remount,size=64M disk; "+train+"; echo status $?; cp disk/a.gguf .; }")
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	first, again, both := strings.Cut(string(out), "status 1\na.gguf.work\n")
	require.True(t, both, "%s", out)
	assert.Contains(t, first, "recording: 0 of 3 windows")
	assert.Contains(t, first, "no space left on device")
	assert.Contains(t, first, "what is done is kept; make room and run the same command again")
	assert.Contains(t, again, "recording: 1 of 3 windows", "what is on the disk is not recorded again")
	assert.Contains(t, again, "status 0")
	_, err = weights.Read(filepath.Join(dir, "a.gguf"))
	assert.NoError(t, err)
}

// TestTrainJobs runs the job files of docs as they stand, task after task, and merges what they make.
func TestTrainJobs(t *testing.T) {
	slurm, err := filepath.Abs("../../docs/train-array.sbatch")
	require.NoError(t, err)
	data, err := os.ReadFile("../../docs/train-job.yaml")
	require.NoError(t, err)
	var job struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Command []string
						Env     []struct{ Name, Value string }
					}
				}
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(data, &job))
	container := job.Spec.Template.Spec.Containers[0]
	var given []string
	for _, e := range container.Env {
		given = append(given, e.Name+"="+e.Value)
	}
	for name, c := range map[string]struct {
		command []string
		env     []string
		index   string
	}{
		"slurm":      {[]string{"bash", slurm}, []string{"SLURM_ARRAY_TASK_COUNT=2"}, "SLURM_ARRAY_TASK_ID"},
		"kubernetes": {container.Command, append(given, "COMPLETIONS=2"), "JOB_COMPLETION_INDEX"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, env := trainFiles(t)
			env = append(append(env, c.env...), "MODEL=model.gguf", "DATA=texts", "LAYERS=2", "SLURM_CPUS_PER_TASK=1", "ARGS="+strings.Join(quickly, " "))
			for _, i := range []string{"0", "1"} {
				cmd := exec.Command(c.command[0], c.command[1:]...)
				cmd.Dir, cmd.Env = dir, append(env, c.index+"="+i)
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
			all := filepath.Join(dir, "all.gguf")
			status, out, stderr := command("", "merge", "-o", all, filepath.Join(dir, "adapter.0.gguf"), filepath.Join(dir, "adapter.1.gguf"))
			require.Equal(t, exitOK, status, stderr)
			assert.Contains(t, out, "phi and psi for 2 of 6 layers")
			a, err := weights.Read(all)
			require.NoError(t, err)
			assert.False(t, a.Kernels[0].Empty() || a.Kernels[1].Empty())
		})
	}
}

func TestTrainUsage(t *testing.T) {
	model, err := testdata.PathIn(t.TempDir(), testdata.Model)
	require.NoError(t, err)
	text := filepath.Join(t.TempDir(), "short.txt")
	require.NoError(t, os.WriteFile(text, []byte("too short"), 0o644))
	for want, args := range map[string][]string{
		"want a model and a text":    {"train"},
		"--budget 7.5":               {"train", "-m", model, "-d", text, "-b", "7.5"},
		"nothing is evicted":         {"train", "-m", model, "-d", text, "-b", "64MiB"},
		"one slot in every head":     {"train", "-m", model, "-d", text, "-b", "1KiB"},
		"--layers 4-9":               {"train", "-m", model, "-d", text, "--layers", "4-9"},
		"--layers 0,,1":              {"train", "-m", model, "-d", text, "--layers", "0,,1"},
		"--rank 4,0":                 {"train", "-m", model, "-d", text, "--rank", "4,0"},
		"--hidden 4,0=0":             {"train", "-m", model, "-d", text, "--hidden", "4,0=0"},
		"rank 8 of layer 6":          {"train", "-m", model, "-d", text, "--rank", "4,5-6=8"},
		"--phi-type q4":              {"train", "-m", model, "-d", text, "--phi-type", "q4"},
		"--disk lots":                {"train", "-m", model, "-d", text, "--disk", "lots"},
		"a text is given with -d":    {"train", "-m", model, text},
		"want adapters and a name":   {"merge", "a.gguf"},
		"want the budget of the":     {"import", "-m", model, "-o", "x.gguf", "dir"},
		"want a model, a name for t": {"import", "dir"},
	} {
		status, _, stderr := command("", args...)
		assert.Equal(t, exitUsage, status, "%v: %s", args, stderr)
		assert.Contains(t, stderr, want)
	}
	status, _, stderr := command("", "train", "-m", model, "-d", text)
	assert.Equal(t, exitFailed, status)
	assert.Contains(t, stderr, "not enough text")
}
