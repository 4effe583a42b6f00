//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/patches/limits"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Every number of every command refuses what is none, and what is far out of any use, as a wrong command line.
func TestNumbers(t *testing.T) {
	model, err := testdata.PathIn(t.TempDir(), testdata.Model)
	require.NoError(t, err)
	text := filepath.Join(t.TempDir(), "text.txt")
	require.NoError(t, os.WriteFile(text, []byte("too short"), 0o644))
	before := map[string][]string{
		"run": {"x"}, "tune": {"-m", model, "-d", text}, "train": {"-m", model, "-d", text}, "verify": {"-m", model, "-d", text}, "bench": {"gopher-5m"}, "import": {"-m", model, "-o", "x.gguf", "dir"},
	}
	numbers := 0
	for _, cmd := range newRoot().Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !slices.Contains([]string{"int", "uint", "float", "intSlice", "duration"}, f.Value.Type()) &&
				!slices.Contains([]string{"budget", "heavy", "pinned", "checkpoints", "disk", "memory", "bytes", "context", "ubatch", "prompt-limit", "growth", "peaks", "tokens", "text-tokens", "stride", "read"}, f.Name) {
				return
			}
			numbers++
			values := []string{"NaN", "Inf", "-Inf", "1e30", "99999999999999999999", "-7", "0x10", "many", ""}
			for _, v := range values {
				args := append([]string{cmd.Name(), "--" + f.Name + "=" + v}, before[cmd.Name()]...)
				status, out, stderr := command("", args...)
				assert.Equal(t, exitUsage, status, "%v: %s", args, stderr)
				assert.Contains(t, stderr, v, "%v", args)
				assert.Empty(t, out)
			}
		})
	}
	assert.Greater(t, numbers, 40, "the flags are found")
}

// The status is 2 for a command line that makes no sense, whoever finds it out, and 1 where a file or the machine is at fault.
func TestStatus(t *testing.T) {
	dir := t.TempDir()
	model, err := testdata.PathIn(dir, testdata.Model)
	require.NoError(t, err)
	adapter, err := testdata.PathIn(dir, testdata.H2O102)
	require.NoError(t, err)
	text, long, empty, none := filepath.Join(dir, "text.txt"), filepath.Join(dir, "long.txt"), filepath.Join(dir, "empty.gguf"), filepath.Join(dir, "none")
	held, err := testdata.Read(testdata.Heldout)
	require.NoError(t, err)
	for path, data := range map[string][]byte{text: held[:1000], long: held[:9000], empty: nil} {
		require.NoError(t, os.WriteFile(path, data, 0o644))
	}
	tuned, err := weights.Read(adapter)
	require.NoError(t, err)
	tuned.Budget = []float32{1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2}
	byHead := filepath.Join(dir, "tuned.gguf")
	require.NoError(t, tuned.Write(byHead))
	tuned.Budget, tuned.SlotTypes = nil, weights.SameSlotTypes(weights.SlotTypes{Key: gguf.F16, Value: gguf.Q8_0}, tuned.Layers)
	withTypes := filepath.Join(dir, "types.gguf")
	require.NoError(t, tuned.Write(withTypes))
	train := func(args ...string) []string {
		return append([]string{"train", "-t1", "-c256", "-m", model, "-d", long, "-o", filepath.Join(dir, "new.gguf")}, args...)
	}
	tune := func(args ...string) []string {
		return append([]string{"tune", "-t1", "-c256", "-b32", "-m", model, "-d", long, "-o", filepath.Join(dir, "new.gguf")}, args...)
	}
	verify := func(args ...string) []string {
		return append([]string{"verify", "-t1", "-c192", "-b41", "-m", model, "-d", text, "-o", filepath.Join(dir, "report")}, args...)
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"chat, an argument":      {[]string{"chat", "Hello"}, exitUsage, "turns are read from"},
		"chat, no tokens":        {[]string{"chat", "-n0"}, exitUsage, "--tokens 0"},
		"chat, no model":         {[]string{"chat", "-m", "no such.gguf"}, exitFailed, "no such.gguf"},
		"run, threads":           {[]string{"run", "-t-3", "x"}, exitUsage, "--threads -3: want a number from 1 to 512"},
		"run, heavy":             {[]string{"run", "--heavy=5000", "x"}, exitUsage, "heavy 5000"},
		"run, type":              {[]string{"run", "--type=q9", "x"}, exitUsage, `type "q9`},
		"run, policy":            {[]string{"run", "--policy=newest", "x"}, exitUsage, strings.Join(kernels.PolicyNames(), ", ")},
		"run, temperature":       {[]string{"run", "--temp=-1", "x"}, exitUsage, "--temp -1"},
		"run, a prompt with -":   {[]string{"run", "- one"}, exitUsage, "a prompt that begins with - goes behind --"},
		"run, a prompt with --":  {[]string{"run", "--one"}, exitUsage, "a prompt that begins with - goes behind --"},
		"run, empty model":       {[]string{"run", "-m", "", "x"}, exitUsage, "--model is empty"},
		"run, empty adapter":     {[]string{"run", "--adapter", "", "x"}, exitUsage, "empty"},
		"run, empty stop word":   {[]string{"run", "--stop", "", "x"}, exitUsage, "--stop is empty"},
		"run, no such model":     {[]string{"run", "-m", none, "x"}, exitFailed, "No such file"},
		"run, empty file":        {[]string{"run", "-m", empty, "x"}, exitFailed, "it has 0 bytes"},
		"run, a text as model":   {[]string{"run", "-m", text, "x"}, exitFailed, "is not a GGUF file: it begins with the bytes"},
		"run, a folder as model": {[]string{"run", "-m", dir, "x"}, exitFailed, "is not a file"},
		"run, a folder for one":  {[]string{"run", "--adapter", dir, "x"}, exitFailed, "is not a file"},
		"run, an empty adapter":  {[]string{"run", "--adapter", empty, "x"}, exitFailed, "it is empty"},
		"run, too long":          {[]string{"run", strings.Repeat("x ", 3000)}, exitFailed, "the context holds 2048"},
		"run, no memory":         {[]string{"run", "-c1000000000", "--less=off", "x"}, exitFailed, "a context of 1000000000 tokens takes"},
		"verify, no memory":      {verify("--memory=1M"), exitFailed, "and the bound is 1 MiB"},
		"plan, budget":           {[]string{"plan", "-m", model, "-b", "1"}, exitUsage, "budget"},
		"plan, budget in bytes":  {[]string{"plan", "-m", model, "-b", "1KiB"}, exitUsage, "budget"},
		"run, budget":            {[]string{"run", "--budget", "1KiB", "x"}, exitUsage, "budget"},
		"plan, an empty model":   {[]string{"plan", "-m", empty}, exitFailed, "found a file of 0 bytes"},
		"plan, a folder":         {[]string{"plan", "-m", dir}, exitFailed, "found a folder, wanted a regular file"},
		"inspect, a folder":      {[]string{"inspect", dir}, exitFailed, "a folder"},
		"merge, a folder":        {[]string{"merge", "-o", none, dir}, exitFailed, "found a folder, wanted a regular file"},
		"merge, a file with -":   {[]string{"merge", "-part.gguf"}, exitUsage, "a file that begins with - goes behind --, as in lesskv merge --"},
		"bench, a file with -":   {[]string{"bench", "-x.gguf"}, exitUsage, "goes behind --"},
		"verify, a flag":         {verify("--txt=a"), exitUsage, "unknown flag: --txt\n"},
		"bench, a folder":        {[]string{"bench", "-c0", "--method=less", "-m", dir}, exitFailed, "found a folder, wanted a regular file"},
		"bench, an empty file":   {[]string{"bench", "-c0", "--method=less", "-m", empty}, exitFailed, "found a file of 0 bytes"},
		"train, policy":          {train("--policy=newest"), exitUsage, "newest"},
		"train, budget":          {train("-b500"), exitUsage, "nothing is evicted before the end of a window of 256 tokens"},
		"train, heavy":           {train("-b64", "--heavy=100"), exitUsage, "100 are heavy"},
		"train, rank":            {train("-b64", "--rank=65536", "--hidden=65536"), exitFailed, "B are free"},
		"train, rank in bytes":   {train("-b1/16", "--rank=65536", "--hidden=65536"), exitFailed, "B are free"},
		"tune, rank":             {tune("--train", "--rank=65536", "--hidden=65536"), exitFailed, "B are free"},
		"train, rate":            {train("--rate=NaN"), exitUsage, "--rate NaN"},
		"train, an adapter":      {[]string{"train", "-m", adapter, "-d", long}, exitFailed, "give the base model's file"},
		"train, an empty model":  {[]string{"train", "-m", empty, "-d", long}, exitFailed, "empty.gguf"},
		"train, empty text":      {[]string{"train", "-m", model, "-d", ""}, exitUsage, "--data is empty"},
		"train, short text":      {[]string{"train", "-m", model, "-d", text}, exitFailed, "not enough text"},
		"train, allocation":      {train("-w", adapter), exitUsage, "that one has no budgets by head: lesskv tune makes one"},
		"tune, policy":           {tune("--policy=newest"), exitUsage, "newest"},
		"tune, budget":           {tune("-b500"), exitUsage, "lesskv tune: a budget of 500 slots"},
		"tune, bytes":            {tune("-b1GiB"), exitUsage, "lesskv tune: a budget of"},
		"tune, nonsense":         {tune("-b7.5"), exitUsage, "lesskv tune: --budget 7.5: want slots a head (1024)"},
		"tune, types":            {tune("--type=q9"), exitUsage, `slots of type "q9"`},
		"tune, plot":             {tune("--plot=a.jpeg"), exitUsage, ".png or .svg"},
		"tune, nothing":          {[]string{"tune"}, exitUsage, "want a model and a text"},
		"tune, short text":       {[]string{"tune", "-m", model, "-d", text}, exitFailed, "not enough text"},
		"tune, the policy's own": {tune("-w", adapter, "--policy=lambda"), exitUsage, "was trained with"},
		"tune, onto phi, psi":    {tune("-o", adapter), exitFailed, "that is not an allocation alone"},
		"train, onto its input":  {train("-w", adapter, "-o", adapter), exitUsage, "that one has no budgets by head"},
		"train, onto budgets":    {train("-o", byHead), exitFailed, "that is not an adapter without budgets by head"},
		"import, onto budgets":   {[]string{"import", "-m", model, "--heavy=51", "--recent=51", "-o", byHead, dir}, exitFailed, "that is not an adapter without budgets by head"},
		"merge, onto budgets":    {[]string{"merge", "-o", byHead, adapter}, exitFailed, "that is not an adapter without budgets by head"},
		"train, onto types":      {train("-o", withTypes), exitFailed, "that is not an adapter without budgets by head (lesskv tune) and types of slots"},
		"train -w, onto types":   {train("-w", byHead, "-o", withTypes), exitFailed, "that is not an adapter without types of slots"},
		"import, onto types":     {[]string{"import", "-m", model, "--heavy=51", "--recent=51", "-o", withTypes, dir}, exitFailed, "types of slots, which would be lost"},
		"merge, onto types":      {[]string{"merge", "-o", withTypes, adapter}, exitFailed, "types of slots, which would be lost"},
		"tune, onto the model":   {tune("-o", model), exitUsage, "which is read"},
		"verify, windows":        {verify("--windows=200"), exitFailed, "200 windows of 192 tokens want 38201 tokens of text, and there are 330"},
		"verify, method":         {verify("--method=best"), exitUsage, `method "best"`},
		"verify, empty model":    {[]string{"verify", "-m", "", "-d", text}, exitUsage, "--model is empty"},
		"bench, shape":           {[]string{"bench", "no-such-shape"}, exitUsage, "no shape"},
		"bench, growth":          {[]string{"bench", "--growth=9000k", "gopher-5m"}, exitUsage, "a growth to 9216000 tokens"},
		"bench, policy":          {[]string{"bench", "--policy=newest", "gopher-5m"}, exitUsage, "newest"},
		"bench, rank":            {[]string{"bench", "--rank=65536", "--hidden=65536", "--dir", dir, "-c0", model}, exitFailed, "B are free"},
		"bench, cell":            {[]string{"bench", "--cell=0s", "gopher-5m"}, exitUsage, "--cell 0s"},
		"merge, a model":         {[]string{"merge", "-o", none, model}, exitFailed, "not a LESS adapter"},
		"merge, no such part":    {[]string{"merge", "-o", none, filepath.Join(dir, "part")}, exitFailed, "no such file"},
		"import, rotary":         {[]string{"import", "-m", model, "-o", none, "--heavy=1", "--rotary=odd", dir}, exitUsage, "--rotary odd"},
		"import, no checkpoints": {[]string{"import", "-m", model, "-o", none, "--heavy=1", dir}, exitFailed, "no layer_0.pth"},
		"no command":             {[]string{"walk"}, exitUsage, "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, ok := limits.Memory(); !ok && strings.Contains(c.says, "are free") {
				t.Skip("the system does not say how much memory is free")
			}
			status, out, stderr := command("", c.args...)
			assert.Equal(t, c.status, status, stderr)
			assert.Contains(t, stderr, c.says)
			assert.NotContains(t, stderr, "recording: ", "before the work")
			assert.Empty(t, out)
		})
	}
	assert.NoFileExists(t, none)
}

// The environment says what the flags of the cache would, where none is given.
func TestRunEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		env    map[string]string
		args   []string
		status int
		says   string
	}{
		"off":                    {map[string]string{"LESSKV": "off"}, nil, exitOK, "without LESS"},
		"off, and nonsense":      {map[string]string{"LESSKV": "off", "LESSKV_BUDGET": "garbage"}, nil, exitOK, "without LESS"},
		"a policy and a budget":  {map[string]string{"LESSKV_POLICY": "h2o", "LESSKV_BUDGET": "77"}, nil, exitOK, "h2o, 77 of 2048 tokens"},
		"on, without an adapter": {map[string]string{"LESSKV": "on", "LESSKV_ADAPTER": "none"}, nil, exitOK, "sparse only"},
		"a flag goes before":     {map[string]string{"LESSKV": "off"}, []string{"--budget=70"}, exitOK, "70 of 2048 tokens"},
		"nonsense":               {map[string]string{"LESSKV_BUDGET": "garbage"}, nil, exitUsage, "LESSKV_BUDGET=garbage: want slots a head (1024)"},
		"a switch that is none":  {map[string]string{"LESSKV": "perhaps"}, nil, exitUsage, "LESSKV=perhaps: want on or off"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range os.Environ() {
				if k, _, _ := strings.Cut(v, "="); k == "LESSKV" || slices.Contains([]string{"LESSKV_BUDGET", "LESSKV_POLICY", "LESSKV_ADAPTER"}, k) {
					t.Setenv(k, "")
				}
			}
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			status, _, stderr := greedy("", append(append([]string{"-n3"}, c.args...), "x")...)
			assert.Equal(t, c.status, status, stderr)
			assert.Contains(t, stderr, c.says)
		})
	}
}

// A prompt that was interrupted is not reported as computed whole.
func TestReportOfPrompt(t *testing.T) {
	assert.Equal(t, "2.00 s, 768.0 tokens/s; 13466 of them were not reached", prompt(lesskv.Timings{Prompt: 15002, Evaluated: 1536, PromptTime: 2 * time.Second}))
	assert.Equal(t, "0.02 s, all of them from a checkpoint", prompt(lesskv.Timings{Prompt: 15, Cached: 15, PromptTime: 20 * time.Millisecond}))
	assert.Equal(t, "2.00 s, 5.0 tokens/s", prompt(lesskv.Timings{Prompt: 15, Cached: 5, Evaluated: 10, PromptTime: 2 * time.Second}))
	assert.Equal(t, "at once", prompt(lesskv.Timings{Prompt: 15, Cached: 15}))
}
