package lesskv_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/tinymodels"
	lesskv "github.com/lesskv/lesskv/plugin"
	"github.com/lesskv/lesskv/weights/gguf"
)

// A model with one number of its metadata wrong is refused, or answers something; llama.cpp's own way with many of them is an
// assertion, which would end the process and this test. Whatever it was, a good model answers afterwards as before.
func TestDamagedMetadata(t *testing.T) {
	lesskv.SetLogOutput(&log{})
	t.Cleanup(func() { lesskv.SetLogOutput(nil) })
	numbers := []uint32{0, 1, 3, 1 << 13, math.MaxUint32}
	floats := []uint32{0, math.Float32bits(-1), math.Float32bits(float32(math.NaN()))}
	gaveUp := 0
	for _, name := range []string{"llama", "gemma3", "phi3", "falcon", "gpt2", "gpt-oss", "bert", "mamba", "deepseek2", "qwen2vl"} {
		m, err := tinymodels.Find(name)
		require.NoError(t, err)
		dir := t.TempDir()
		path, err := m.WriteIn(dir, gguf.F16, 1)
		require.NoError(t, err)
		good, err := os.ReadFile(path)
		require.NoError(t, err)
		before := answer(path, 2)
		require.NotContains(t, before, "damaged", name)
		bad := filepath.Join(dir, "bad.gguf")
		for i, n := range metadata(good) {
			values := numbers
			if n.float {
				values = floats
			}
			if testing.Short() { // one of them
				values = values[i%len(values):][:1]
			}
			threads := 1
			if i%32 == 0 { // one of them ggml's own; two wait for each other by spinning
				threads = 2
			}
			for _, v := range values {
				data := bytes.Clone(good)
				for i := range n.n {
					binary.LittleEndian.PutUint32(data[n.at+4*i:], v)
				}
				require.NoError(t, os.WriteFile(bad, data, 0o644))
				t.Logf("%s: %s = %#x", name, n.key, v) // seen where the process ends
				if strings.Contains(answer(bad, threads), "gave up") {
					gaveUp++
				}
			}
		}
		assert.Equal(t, before, answer(path, 2), name)
	}
	least := 10
	if testing.Short() {
		least = 1
	}
	assert.Greater(t, gaveUp, least, "assertions: or else this tests less than it says")
}

// answer is what a model of a path says, or why it does not.
func answer(path string, threads int) string {
	model, err := llama.New(path, llama.SetContext(64), lesskv.Disable())
	if err != nil {
		return err.Error()
	}
	defer model.Free()
	out, err := model.Predict("func", llama.SetThreads(threads), llama.SetTokens(2), llama.SetTemperature(0))
	if err != nil {
		return err.Error()
	}
	return out
}

type number struct {
	key   string
	at    int // in the file
	n     int // how many, one after another
	float bool
}

// metadata finds the numbers of 32 bits in a GGUF file's metadata, and short arrays of them.
func metadata(file []byte) []number {
	size := map[uint32]int{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(file[at:]) }
	u64 := func(at int) int { return int(binary.LittleEndian.Uint64(file[at:])) }
	const str, array = 8, 9
	var found []number
	at := 24
	for range u64(16) {
		key := string(file[at+8 : at+8+u64(at)])
		at += 8 + len(key)
		kind := u32(at)
		at += 4
		switch kind {
		case 4, 5, 6:
			found = append(found, number{key, at, 1, kind == 6})
			at += 4
		case str:
			at += 8 + u64(at)
		case array:
			of, n := u32(at), u64(at+4)
			at += 12
			if n < 64 && size[of] == 4 { // of layers, of dimensions
				found = append(found, number{key, at, n, of == 6})
			}
			for range n {
				if of == str {
					at += 8 + u64(at)
				} else {
					at += size[of]
				}
			}
		default:
			at += size[kind]
		}
	}
	return found
}
