package lesskv_test

import (
	"flag"
	"io"
	"reflect"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lesskv "github.com/lesskv/lesskv/plugin"
)

func parse(prefix string, args ...string) (*lesskv.Flags, error) {
	fs := flag.NewFlagSet("app", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	f := lesskv.RegisterFlags(fs, prefix)
	return f, fs.Parse(args)
}

func TestFlags(t *testing.T) {
	f, err := parse("lesskv-", "-lesskv", "-lesskv-budget", "7%", "-lesskv-policy=peak", "-lesskv-heavy=0", "-lesskv-pinned", "0",
		"-lesskv-type", "f32,q8_0", "-lesskv-adapter", "a.gguf", "-lesskv-force-adapter", "-lesskv-device", "-lesskv-checkpoints", "3")
	require.NoError(t, err)
	budget, err := lesskv.ParseBudget("7%")
	require.NoError(t, err)
	assert.Equal(t, lesskv.Config{
		Budget: budget, Policy: lesskv.Peak, Heavy: lesskv.None, Pinned: lesskv.None,
		Keys: lesskv.F32, Values: lesskv.Q8, Adapter: "a.gguf", ForceAdapter: true, OnDevice: true, Checkpoints: 3,
	}, f.Config())
	for field, c := 0, reflect.ValueOf(f.Config()); field < c.NumField(); field++ {
		assert.False(t, c.Field(field).IsZero(), "no flag sets %s", c.Type().Field(field).Name)
	}
	for field, o := 0, reflect.ValueOf(*llama.NewModelOptions(f.Option()).LESSKV); field < o.NumField(); field++ {
		if name := o.Type().Field(field).Name; name != "Off" {
			assert.False(t, o.Field(field).IsZero(), "Enable leaves out %s", name)
		}
	}

	f, err = parse("", "-type", "f32")
	require.NoError(t, err)
	assert.Equal(t, lesskv.Config{Keys: lesskv.F32, Values: lesskv.F32}, f.Config())

	f, err = parse("", "-type", "q4_0,q8_0")
	require.NoError(t, err)
	assert.Equal(t, lesskv.Config{Keys: lesskv.Q4, Values: lesskv.Q8}, f.Config())

	for _, bad := range [][]string{
		{"-budget", "0"}, {"-heavy", "-1"}, {"-pinned", "many"}, {"-less=perhaps"}, {"-force-adapter=perhaps"}, {"-device=perhaps"}, {"-checkpoints", "-1"},
	} {
		_, err = parse("", bad...)
		require.Error(t, err, bad)
		assert.Contains(t, err.Error(), "want", bad)
	}
}

// What the flags say, none of them leaving the choice to the environment.
func TestFlagsOption(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want *llama.LESSKVOptions
	}{
		"none":            {nil, nil},
		"on":              {[]string{"-less"}, &llama.LESSKVOptions{Type: ","}},
		"off":             {[]string{"-less=off"}, &llama.LESSKVOptions{Off: true}},
		"off and a field": {[]string{"-budget=5", "-less=off"}, &llama.LESSKVOptions{Off: true}},
		"a field":         {[]string{"-budget=5"}, &llama.LESSKVOptions{Type: ",", Budget: "5"}},
	} {
		f, err := parse("", test.args...)
		require.NoError(t, err)
		assert.Equal(t, test.want, llama.NewModelOptions(f.Option()).LESSKV, name)
		assert.Equal(t, test.want != nil && test.want.Off, f.Off(), name)
	}
}
