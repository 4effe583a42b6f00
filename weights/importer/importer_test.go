package importer

import (
	"archive/zip"
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/checkpoints"
	"github.com/lesskv/lesskv/integration/fuzztest"
	"github.com/lesskv/lesskv/weights"
)

type tensor = checkpoints.Tensor

const (
	d, rank, hidden = 8, 3, 5
)

func model(arch string, heads, headsKV int) *weights.Model {
	return &weights.Model{
		Name: "m", Architecture: arch, Geometry: weights.Geometry{Layers: 2, Heads: heads, HeadsKV: headsKV, KeyLength: d, ValueLength: d},
		Fingerprint: fmt.Sprintf("%064d", 1),
	}
}

func state(r *rand.Rand, heads, headsKV int, linear bool) map[string]tensor {
	return checkpoints.Layer(r, checkpoints.Shape{Heads: heads, HeadsKV: headsKV, Size: d, Hidden: hidden, Rank: rank}, linear)
}

func gelu(x float64) float64 { return x / 2 * math.Erfc(-x/math.Sqrt2) }

// at returns an element of a [heads][in][out] matrix as the authors' code multiplies with it.
func at(t tensor, head, i, j int) float64 {
	s := t.Size
	if len(s) == 2 { // nn.Linear: x W^T
		return float64(t.Values[j*s[1]+i])
	}
	return float64(t.Values[(head*s[1]+i)*s[2]+j])
}

func either(s map[string]tensor, name string) tensor {
	if t, ok := s[name+".weight"]; ok {
		return t
	}
	return s[name]
}

func product(x []float64, t tensor, head, out int, f func(float64) float64) []float64 {
	y := make([]float64, out)
	for j := range y {
		for i := range x {
			y[j] += x[i] * at(t, head, i, j)
		}
		y[j] = f(y[j])
	}
	return y
}

// direct evaluates phi and psi as the authors' code does.
func direct(s map[string]tensor, head, headKV int, x []float64) (phi, psi []float64) {
	same := func(x float64) float64 { return x }
	phi = product(product(x, s["kernel_q_mat1"], head, hidden, gelu), s["kernel_q_mat2"], head, rank, gelu)
	k := product(product(x, either(s, "kernel_k_mat1"), headKV, hidden, gelu), either(s, "kernel_k_mat2"), headKV, rank, gelu)
	for i := range k {
		k[i] *= math.Abs(float64(s["scalingD"].Values[headKV*rank+i]))
	}
	mixed := product(k, either(s, "interaction_k"), headKV, rank, same)
	psi = make([]float64, rank)
	for i := range psi {
		phi[i] = math.Abs(phi[i])
		psi[i] = math.Abs(k[i] + mixed[i]*float64(s["scalingD2"].Values[headKV*rank+i]))
	}
	return phi, psi
}

func TestImport(t *testing.T) {
	for _, test := range []struct {
		name           string
		arch           string
		heads, headsKV int
		linear         bool
		rotary         Rotary
		interleaved    bool
	}{
		{"llama", "llama", 3, 3, false, Auto, true},
		{"llama, halves", "llama", 3, 3, false, Halves, false},
		{"falcon", "falcon", 3, 1, true, Auto, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			dir := t.TempDir()
			s := state(r, test.heads, test.headsKV, test.linear)
			checkpoints.Write(t, filepath.Join(dir, "layer_1.pth"), "kernel_q_mat1", s)
			a, err := Import(dir, Options{Model: model(test.arch, test.heads, test.headsKV), Rotary: test.rotary, Trained: weights.Trained{Policy: "h2o", Heavy: 1, Recent: 1, Ubatch: 1, Context: 9}})
			require.NoError(t, err)
			assert.True(t, a.Kernels[0].Empty())
			assert.Equal(t, []int{rank, hidden}, []int{a.Kernels[1].Rank, a.Kernels[1].Hidden})
			require.NoError(t, a.Write(filepath.Join(dir, "a.gguf")))

			w := a.Kernels[1]
			mat := func(m weights.Matrix) kernels.Mat {
				return kernels.Mat{Type: kernels.F32, Data: kernels.F32.FromF32(m.Values)}
			}
			k, err := kernels.NewKernels(kernels.Shape{Heads: test.heads, HeadsKV: test.headsKV, KeySize: d, Rank: rank, Hidden: hidden},
				[2]kernels.Mat{mat(w.Phi[0]), mat(w.Phi[1])}, [3]kernels.Mat{mat(w.Psi[0]), mat(w.Psi[1]), mat(w.Psi[2])}, nil)
			require.NoError(t, err)
			defer k.Close()
			for head := range test.heads {
				x := checkpoints.Random(r, d).Values
				hf := make([]float64, d) // the same vector in Hugging Face's order
				for i, v := range x {
					at := i
					if test.interleaved {
						at = i/2 + i%2*d/2
					}
					hf[at] = float64(v)
				}
				headKV := min(head, test.headsKV-1)
				phi, psi := direct(s, head, headKV, hf)
				got, err := k.Phi(head, x)
				require.NoError(t, err)
				for i := range got {
					assert.InDelta(t, phi[i], got[i], 1e-4)
				}
				got, err = k.Psi(headKV, x)
				require.NoError(t, err)
				for i := range got {
					assert.InDelta(t, psi[i], got[i], 1e-4)
				}
			}
		})
	}
}

func TestImportRefuses(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	o := Options{Model: model("llama", 3, 3), Trained: weights.Trained{Policy: "h2o"}}
	refused := func(message string, make func(path string)) {
		t.Helper()
		dir := t.TempDir()
		make(filepath.Join(dir, "layer_0.pth"))
		_, err := Import(dir, o)
		require.ErrorIs(t, err, ErrCheckpoint)
		assert.ErrorContains(t, err, message)
	}
	refused("no layer_0.pth", func(string) {})
	refused("layer_0.pth", func(p string) { require.NoError(t, os.WriteFile(p, []byte("not a checkpoint"), 0o644)) })
	refused("there is no scalingD", func(p string) {
		s := state(r, 3, 3, false)
		delete(s, "scalingD")
		checkpoints.Write(t, p, "", s)
	})
	refused("want [3 8 5]", func(p string) { checkpoints.Write(t, p, "", state(r, 2, 3, false)) })
	refused("is NaN", func(p string) {
		s := state(r, 3, 3, false)
		s["scalingD2"].Values[1] = float32(math.NaN())
		checkpoints.Write(t, p, "", s)
	})
	refused("class not found: os system", func(p string) { archive(t, p, zip.Store, "\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.") })
}

// archive makes a checkpoint of a pickle and more members of eight bytes, "0", "1", ….
func archive(t testing.TB, path string, method uint16, pickle string, more ...string) {
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	z := zip.NewWriter(f)
	for i, content := range append([]string{pickle}, more...) {
		name := "x/data.pkl"
		if i > 0 {
			name = fmt.Sprint("x/data/", i-1)
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: method})
		require.NoError(t, err)
		_, err = w.Write([]byte(content))
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
}

// TestImportHostile: no length that a file claims is allocated.
func TestImportHostile(t *testing.T) {
	const eight = "8 bytes."
	tensor := func(size int) string {
		var p checkpoints.Pickler
		p.WriteString("\x80\x02}")
		p.Str("kernel_q_mat2")
		p.Tensor("0", []int{3, 5, 3}, []int{15, 3, 1}, size)
		p.WriteString("s.")
		return p.String()
	}
	overlapping := func(p string) {
		archive(t, p, zip.Store, tensor(2), eight, eight)
		data, err := os.ReadFile(p)
		require.NoError(t, err)
		directory := bytes.LastIndex(data, []byte("PK\x01\x02"))
		copy(data[directory+42:], data[bytes.LastIndex(data[:directory], []byte("PK\x01\x02"))+42:][:4]) // where the member before it begins
		require.NoError(t, os.WriteFile(p, data, 0o644))
	}
	plain := func(pickle string, more ...string) func(string) {
		return func(p string) { archive(t, p, zip.Store, pickle, more...) }
	}
	for want, make := range map[string]func(path string){
		"it wants 4294967283":         plain("\x80\x02X\xef\xff\xff\xff."),
		"operation 0x95":              plain("\x80\x04\x95\xff\xff\xff\xff\xff\x00\x00\x00."),
		"operation 0x8e":              plain("\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00."),
		"to have 2147483647 elements": plain(tensor(math.MaxInt32), eight),
		"to have -1 elements":         plain(tensor(-1), eight),
		`no member "0"`:               plain(tensor(2)),
		"want at most 262144":         plain(strings.Repeat("(", maxPickle+1)),
		"does not end":                plain(strings.Repeat("(", 99)),
		"a name without an end":       plain("ctorch"),
		"is compressed":               func(p string) { archive(t, p, zip.Deflate, tensor(2), eight) },
		"begins at byte":              overlapping,
		"no data.pkl":                 func(p string) { archive(t, p, zip.Store, ""); rename(t, p) },
		"a persistent string":         plain("X\x01\x00\x00\x00aQ."),
		"without type, name or size":  plain("(X\x07\x00\x00\x00storageNNNNtQ."),
	} {
		path := filepath.Join(t.TempDir(), "layer_0.pth")
		make(path)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Import(filepath.Dir(path), Options{Model: model("llama", 3, 3), Trained: weights.Trained{Policy: "h2o"}})
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, ErrCheckpoint, want)
		assert.ErrorContains(t, err, want)
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(16<<20), want)
	}
}

// rename gives data.pkl another name.
func rename(t testing.TB, path string) {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, bytes.ReplaceAll(data, []byte("data.pkl"), []byte("data.txt")), 0o644))
}

// FuzzImport: any file is read, in memory of its own size, or refused as no checkpoint.
func FuzzImport(f *testing.F) {
	path := filepath.Join(f.TempDir(), "layer_0.pth")
	checkpoints.Write(f, path, "", state(rand.New(rand.NewPCG(5, 6)), 3, 3, false))
	data, err := os.ReadFile(path)
	require.NoError(f, err)
	f.Add(data)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "layer_0.pth"), data, 0o644))
		imported(t, dir, len(data))
	})
}

// FuzzPickle: any pickle, in an archive that is whole, is read or refused in the same way. Zip's sums stand before the pickle in a
// file, and what FuzzImport makes of one seldom gets past them.
func FuzzPickle(f *testing.F) {
	var p checkpoints.Pickler
	p.WriteString("\x80\x02}(")
	p.Str("kernel_q_mat2")
	p.Tensor("0", []int{1, 2, 1}, []int{2, 1, 1}, 2)
	p.WriteString("u.")
	f.Add(p.Bytes(), []byte("8 bytes."))
	f.Add([]byte("\x80\x02}(X\x01\x00\x00\x00aK\x01q\x00h\x00\x8a\x02\xff\x7fG12345678(]}N\x88\x89tsu."), []byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, pickle, storage []byte) {
		archive(t, filepath.Join(dir, "layer_0.pth"), zip.Store, string(pickle), string(storage))
		imported(t, dir, len(pickle)+len(storage))
	})
}

// imported imports a folder that holds so many bytes.
func imported(t *testing.T, dir string, size int) {
	fuzztest.Bounded(t, 8<<20+512*size, func() {
		a, err := Import(dir, Options{Model: model("llama", 3, 3), Trained: weights.Trained{Policy: "h2o", Ubatch: 1, Context: 1}})
		if err != nil {
			require.ErrorIs(t, err, ErrCheckpoint)
			return
		}
		if err := a.Write(filepath.Join(dir, "a.gguf")); err != nil { // beyond what an adapter may be
			var e *weights.Error
			require.ErrorAs(t, err, &e)
		}
	})
}
