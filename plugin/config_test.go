package lesskv_test

import (
	"os"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/testdata"
	lesskv "github.com/lesskv/lesskv/plugin"
)

func TestConfigResolved(t *testing.T) {
	for name, test := range map[string]struct {
		config        lesskv.Config
		policy        string
		budget, heavy int
		pinned        int
	}{
		"zero":            {lesskv.Config{}, "peak", 1024, 256, 1},
		"tokens":          {lesskv.Config{Budget: lesskv.Tokens(300)}, "peak", 300, 75, 1},
		"share":           {lesskv.Config{Budget: lesskv.Share(0.25)}, "peak", 512, 128, 1},
		"small share":     {lesskv.Config{Budget: lesskv.Share(0.001)}, "peak", 64, 16, 1},
		"whole context":   {lesskv.Config{Budget: lesskv.Share(1)}, "peak", 2048, 512, 1},
		"above context":   {lesskv.Config{Budget: lesskv.Tokens(1e6)}, "peak", 2048, 512, 1},
		"memory":          {lesskv.Config{Budget: lesskv.MiB(1)}, "peak", 1 << 20 / (6 * 2 * (68 + 68 + 8)), 151, 1},
		"bytes":           {lesskv.Config{Budget: lesskv.Bytes(1 << 20)}, "peak", 1 << 20 / (6 * 2 * (68 + 68 + 8)), 151, 1},
		"part":            {lesskv.Config{Budget: lesskv.Part(1, 16)}, "peak", 2048 * 256 / 16 / (68 + 68 + 8), 56, 1},
		"part of f16":     {lesskv.Config{Budget: lesskv.Part(1, 16), Keys: lesskv.F16, Values: lesskv.F16, Policy: lesskv.H2O}, "h2o", 2048 * 256 / 16 / (2*64*2 + 8), 62, 1},
		"f32":             {lesskv.Config{Budget: lesskv.MiB(1), Keys: lesskv.F32, Values: lesskv.F32, Policy: lesskv.H2O}, "h2o", 1 << 20 / (6 * 2 * (2*64*4 + 8)), 84, 1},
		"q4_0":            {lesskv.Config{Budget: lesskv.MiB(0.5), Keys: lesskv.Q4, Values: lesskv.Q4, Policy: lesskv.H2O}, "h2o", 1 << 19 / (6 * 2 * (36 + 36 + 8)), 273, 1},
		"q4_0 and q8_0":   {lesskv.Config{Budget: lesskv.MiB(0.5), Keys: lesskv.Q4, Policy: lesskv.H2O}, "h2o", 1 << 19 / (6 * 2 * (36 + 68 + 8)), 195, 1},
		"lambda":          {lesskv.Config{Policy: lesskv.Lambda}, "lambda", 1024, 4, 1},
		"h2o":             {lesskv.Config{Policy: lesskv.H2O}, "h2o", 1024, 512, 1},
		"heavy, pinned":   {lesskv.Config{Heavy: 30, Pinned: 20}, "peak", 1024, 30, 20},
		"nothing pinned":  {lesskv.Config{Pinned: lesskv.None}, "peak", 1024, 256, 0},
		"recent ones":     {lesskv.Config{Heavy: lesskv.None, Pinned: lesskv.None}, "peak", 1024, 0, 0},
		"everything once": {lesskv.Config{Budget: lesskv.Tokens(64), Policy: lesskv.Peak, Heavy: 64, Pinned: 64}, "peak", 64, 64, 64},
	} {
		t.Run(name, func(t *testing.T) {
			test.config.Adapter = lesskv.NoAdapter
			s := stats(t, open(t, lesskv.Enable(test.config)))
			assert.True(t, s.Enabled)
			assert.Equal(t, test.policy, s.Policy)
			assert.Equal(t, test.budget, s.Budget)
			assert.Equal(t, test.heavy, s.Heavy)
			assert.Equal(t, s.Budget-s.Heavy, s.Recent)
			assert.Equal(t, test.pinned, s.Pinned)
			assert.Zero(t, s.Rank)
			assert.Empty(t, s.Layers, "no token yet")
		})
	}
}

func TestConfigRefused(t *testing.T) {
	for name, test := range map[string]struct {
		config lesskv.Config
		kind   error
		says   []string
	}{
		"budget 0":        {lesskv.Config{Budget: lesskv.Tokens(0)}, lesskv.ErrBudget, []string{`"0"`, "nothing would be kept"}},
		"budget below 0":  {lesskv.Config{Budget: lesskv.Tokens(-5)}, lesskv.ErrBudget, []string{`"-5"`}},
		"share 0":         {lesskv.Config{Budget: lesskv.Share(0)}, lesskv.ErrBudget, []string{`"0%"`}},
		"share below 0":   {lesskv.Config{Budget: lesskv.Share(-0.1)}, lesskv.ErrBudget, []string{"nothing would be kept"}},
		"0 MiB":           {lesskv.Config{Budget: lesskv.MiB(0)}, lesskv.ErrBudget, []string{`"0MiB"`}},
		"0 bytes":         {lesskv.Config{Budget: lesskv.Bytes(0)}, lesskv.ErrBudget, nil},
		"too few bytes":   {lesskv.Config{Budget: lesskv.Bytes(100)}, lesskv.ErrConfig, []string{"too small"}},
		"policy":          {lesskv.Config{Policy: "newest"}, lesskv.ErrConfig, append([]string{`"newest"`}, kernels.PolicyNames()...)},
		"type":            {lesskv.Config{Keys: "f8"}, lesskv.ErrConfig, []string{"f8", "q8_0"}},
		"too heavy":       {lesskv.Config{Budget: lesskv.Tokens(64), Heavy: 65}, lesskv.ErrConfig, []string{"65", "64"}},
		"too many pinned": {lesskv.Config{Budget: lesskv.Tokens(64), Pinned: 17}, lesskv.ErrConfig, []string{"17", "16"}},
		"NUL":             {lesskv.Config{Policy: "h2o\x00"}, lesskv.ErrConfig, []string{"NUL"}},
	} {
		t.Run(name, func(t *testing.T) {
			model, err := llama.New(file(t, testdata.Model), lesskv.Enable(test.config))
			assert.Nil(t, model)
			assertSays(t, err, test.kind, append(test.says, "failed loading model")...)
			assert.ErrorIs(t, err, lesskv.ErrConfig)
		})
	}
}

// The runtime's policies are those of the kernels' own package: none was left out when it was linked.
func TestPolicies(t *testing.T) {
	var names []string
	for _, p := range lesskv.Policies() {
		assert.NotEmpty(t, p.Help)
		names = append(names, p.Name)
	}
	assert.Equal(t, kernels.PolicyNames(), names)
}

// Each page that lists the policies has all of them.
func TestPoliciesOnPages(t *testing.T) {
	for _, page := range []string{"doc.go", "../docs/glossary.md", "../docs/algorithm.md"} {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, p := range lesskv.Policies() {
			assert.Regexp(t, `\b`+p.Name+`\b`, string(text), page)
		}
	}
}

func TestDisabled(t *testing.T) {
	s := stats(t, open(t, lesskv.Enable(lesskv.Config{}), lesskv.Disable()))
	assert.False(t, s.Enabled)
	assert.EqualValues(t, 6*2*2048*2*64*2, s.CacheBytes, "six layers, two heads, 64 wide, f16")
	assert.Equal(t, s.CacheBytes, s.FullBytes)
}

func TestEnvironment(t *testing.T) {
	t.Run("off", func(t *testing.T) {
		for _, v := range []string{"", "0", "off", "false", "OFF"} {
			t.Setenv("LESSKV", v)
			assert.False(t, stats(t, open(t)).Enabled, "LESSKV=%s", v)
		}
	})
	t.Run("everything", func(t *testing.T) {
		for name, value := range map[string]string{
			"LESSKV": "on", "LESSKV_POLICY": "peak", "LESSKV_BUDGET": "10%", "LESSKV_HEAVY": "50", "LESSKV_PINNED": "0",
			"LESSKV_TYPE": "f32,f16", "LESSKV_ADAPTER": "none", "LESSKV_FORCE_ADAPTER": "1", "LESSKV_DEVICE": "off",
		} {
			t.Setenv(name, value)
		}
		model := open(t)
		predict(t, model, prompt)
		s := stats(t, model)
		assert.Equal(t, "peak", s.Policy)
		assert.Equal(t, []int{204, 50, 154, 0}, []int{s.Budget, s.Heavy, s.Recent, s.Pinned})
		assert.EqualValues(t, 6*2*204*(64*4+64*2+8), s.SlotBytes)
	})
	t.Run("on the device", func(t *testing.T) {
		t.Setenv("LESSKV", "on")
		t.Setenv("LESSKV_BUDGET", "64")
		assert.Zero(t, stats(t, open(t)).SlotBytes, "nothing was decoded")
		t.Setenv("LESSKV_DEVICE", "on")
		assert.Positive(t, stats(t, open(t)).SlotBytes, "room is taken at once")
		_, err := llama.New(file(t, testdata.Model), lesskv.Enable(lesskv.Config{OnDevice: true, Keys: lesskv.Q8}))
		assertSays(t, err, lesskv.ErrConfig, "LESS on the device does not cover slots of type q8_0")
	})
	t.Run("an option goes before it", func(t *testing.T) {
		t.Setenv("LESSKV", "on")
		t.Setenv("LESSKV_BUDGET", "not even a budget")
		s := stats(t, open(t, sparse(77)))
		assert.Equal(t, 77, s.Budget)
		assert.False(t, stats(t, open(t, lesskv.Disable())).Enabled)
	})
	t.Run("wrong values", func(t *testing.T) {
		for name, value := range map[string]string{
			"LESSKV": "maybe", "LESSKV_BUDGET": "5 apples", "LESSKV_HEAVY": "-1", "LESSKV_PINNED": "x", "LESSKV_TYPE": "f64",
			"LESSKV_FORCE_ADAPTER": "2", "LESSKV_DEVICE": "cuda", "LESSKV_CHECKPOINTS": "-1", "LESSKV_POLICY": "newest", "LESSKV_ADAPTER": "/no/such.gguf",
		} {
			t.Run(name, func(t *testing.T) {
				t.Setenv("LESSKV", "1")
				t.Setenv(name, value)
				_, err := llama.New(file(t, testdata.Model))
				kind := lesskv.ErrConfig
				if name == "LESSKV_ADAPTER" {
					kind = lesskv.ErrAdapter
				}
				assertSays(t, err, kind, name+"="+value)
			})
		}
	})
	t.Run("without the switch", func(t *testing.T) {
		lines := captureLog(t)
		t.Setenv("LESSKV_BUDGET", "5%")
		assert.False(t, stats(t, open(t)).Enabled)
		assert.Contains(t, lines.String(), "LESSKV_BUDGET=5% without effect")
	})
}

func TestParseBudget(t *testing.T) {
	for _, good := range []string{"", "1", "1024", "5%", "0.5%", "150%", "5 %", "64MiB", "1.5GiB", "10 KiB", "2147483647", "1/16", "3/64", "1 / 2", "1/1"} {
		b, err := lesskv.ParseBudget(good)
		require.NoError(t, err, good)
		sameBudget(t, good)
		assert.Equal(t, good, b.String())
		var again lesskv.Budget
		text, err := b.MarshalText()
		require.NoError(t, err)
		require.NoError(t, again.UnmarshalText(text))
		assert.Equal(t, b, again)
	}
	for _, bad := range []string{"0", "-1", "1.5", "x", "%", "0%", "-5%", "NaN%", "Inf%", "MiB", "0MiB", "-1MiB", "1e300GiB", "64MB", "1024 ", "2147483648", "99999999999999999999", "1/0", "0/4", "2/1", "1/", "/2", "1/2/3", "-1/2", "1/2.5", "1/4294967297"} {
		_, err := lesskv.ParseBudget(bad)
		require.Error(t, err, bad)
		sameBudget(t, bad)
		assert.Contains(t, err.Error(), `"`+bad+`"`)
		assert.Contains(t, err.Error(), "want slots a head (1024), a share of the context (5%), memory (64MiB), or a share of the full cache's (1/16)")
	}
	assert.Equal(t, "25%", lesskv.Share(0.25).String())
	assert.Equal(t, "7%", lesskv.Share(0.07).String())
	assert.Equal(t, "1/16", lesskv.Part(1, 16).String())
}
