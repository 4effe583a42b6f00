package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/lock"
	"github.com/lesskv/lesskv/weights/outfile"
)

// A Shape is the geometry of a model that is known by name: with random weights it is as fast as the real one.
type Shape struct {
	Name         string
	Architecture string // llama, qwen3 or granite
	Layers       int
	Embedding    int
	FeedForward  int
	Heads        int // Hq
	HeadsKV      int // Hkv
	HeadSize     int // D = Dv
	Vocab        int
	RopeBase     float32
}

// Shapes lists the shapes that Build knows, the largest first. All of them share the matrix of the embeddings with the output.
func Shapes() []Shape {
	return []Shape{
		{"granite-4.0-1b", "granite", 40, 2048, 4096, 16, 4, 128, 100352, 10000000},
		{"llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 500000},
		{"qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 1000000},
		{"smollm2-135m", "llama", 30, 576, 1536, 9, 3, 64, 49152, 100000},
		{"gopher-5m", "llama", 6, 256, 640, 4, 2, 64, 4096, 10000},
	}
}

// FindShape returns the shape of a name. It fails with ErrOption if there is none.
func FindShape(name string) (Shape, error) {
	var names []string
	for _, s := range Shapes() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Shape{}, fmt.Errorf("bench: no shape %q: want one of %s, or a model's file: %w", name, strings.Join(names, ", "), ErrOption)
}

// trainedContext is what the models say they were trained for, so that no context warns.
const trainedContext = 1 << 17

// Parameters counts the weights of the matrices.
func (s Shape) Parameters() int {
	n := 0
	for _, m := range s.matrices() {
		n += m.in * m.out
	}
	return n
}

type matrix struct {
	name    string
	in, out int
}

func (s Shape) matrices() []matrix {
	list := []matrix{{"token_embd.weight", s.Embedding, s.Vocab}}
	q, kv := s.Heads*s.HeadSize, s.HeadsKV*s.HeadSize
	for i := range s.Layers {
		for _, m := range []matrix{
			{"attn_q", s.Embedding, q}, {"attn_k", s.Embedding, kv}, {"attn_v", s.Embedding, kv}, {"attn_output", q, s.Embedding},
			{"ffn_gate", s.Embedding, s.FeedForward}, {"ffn_up", s.Embedding, s.FeedForward}, {"ffn_down", s.FeedForward, s.Embedding},
		} {
			m.name = fmt.Sprintf("blk.%d.%s.weight", i, m.name)
			list = append(list, m)
		}
	}
	return list
}

// shapeFormat goes into the name of a shape's file. It changes with what is written for one shape.
var shapeFormat = 1

// short returns some hex digits that differ with the parts.
func short(parts ...any) string {
	sum := sha256.Sum256(fmt.Append(nil, parts...))
	return hex.EncodeToString(sum[:6])
}

// file is what the shape's model in a type is called.
func (s Shape) file(kind string) string {
	return fmt.Sprintf("%s-%s-%s.gguf", s.Name, kind, short(shapeFormat, s))
}

// Build writes the shape as a model in a type of llama.cpp's, such as Q4_0, into a folder and returns its path. What is there
// already, whole, is not written again. The worker at path quantises it.
func (s Shape) Build(ctx context.Context, dir, kind, workerPath string, threads int) (path string, err error) {
	kind = strings.ToUpper(kind)
	path = filepath.Join(dir, s.file(kind))
	made := func() bool {
		f, err := gguf.Open(path)
		if err == nil {
			f.Close()
		}
		return err == nil
	}
	if made() {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	alone, err := lock.Wait(ctx, filepath.Join(dir, "lock"), nil) // who has it makes a shape: what else is half made is of a run that was killed
	if err != nil {
		return "", err
	}
	defer alone.Release()
	if err := removeHalves(dir); err != nil {
		return "", err
	}
	if made() { // by the run that had the lock before
		return path, nil
	}
	return path, outfile.Make(path, func(part string) error {
		raw := path + ".raw"
		defer os.Remove(raw)
		if err := gguf.WriteFile(raw, s.pairs(), s.tensors()); err != nil {
			return fmt.Errorf("bench: writing %s: %w", s.Name, err)
		}
		w, err := worker.Start(ctx, workerPath)
		if err != nil {
			return err
		}
		defer w.Close()
		if err := w.Quantize(raw, part, kind, threads); err != nil {
			return fmt.Errorf("bench: %s as %s: %w", s.Name, kind, err)
		}
		return nil
	})
}

// halves are the names of what is no shape yet.
var halves = func() *regexp.Regexp {
	var names []string
	for _, s := range Shapes() {
		names = append(names, regexp.QuoteMeta(s.Name))
	}
	return regexp.MustCompile(`^(` + strings.Join(names, "|") + `)-[A-Z0-9_]+-[0-9a-f]{12}\.gguf(\.raw|(\.raw)?\.part\.tmp)$`)
}()

// removeHalves deletes what runs that were killed have left, which may be gigabytes.
func removeHalves(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if outfile.Is(e, halves) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func (s Shape) pairs() []gguf.KeyValue {
	key := func(name string, value any) gguf.KeyValue {
		return gguf.KeyValue{Key: s.Architecture + "." + name, Value: value}
	}
	pairs := []gguf.KeyValue{
		{Key: "general.architecture", Value: s.Architecture},
		{Key: "general.name", Value: s.Name + ", random weights"},
		key("context_length", uint32(trainedContext)),
		key("block_count", uint32(s.Layers)),
		key("embedding_length", uint32(s.Embedding)),
		key("feed_forward_length", uint32(s.FeedForward)),
		key("attention.head_count", uint32(s.Heads)),
		key("attention.head_count_kv", uint32(s.HeadsKV)),
		key("attention.key_length", uint32(s.HeadSize)),
		key("attention.value_length", uint32(s.HeadSize)),
		key("attention.layer_norm_rms_epsilon", float32(1e-5)),
		key("rope.dimension_count", uint32(s.HeadSize)),
		key("rope.freq_base", s.RopeBase),
		key("vocab_size", uint32(s.Vocab)),
		{Key: "tokenizer.ggml.model", Value: "none"},
	}
	if s.Architecture == "granite" {
		pairs = append(pairs, key("attention.scale", 1/float32(s.HeadSize)), key("embedding_scale", float32(12)), key("residual_scale", float32(0.22)), key("logit_scale", float32(8)))
	}
	return pairs
}

// tensors are slices of one array of random numbers: a model of a billion weights is drawn in seconds, and no two layers
// are equal.
func (s Shape) tensors() []gguf.Tensor {
	const shift = 4099 // between two tensors' first elements
	matrices := s.matrices()
	n := 0
	for i, m := range matrices {
		n = max(n, m.in*m.out+i*shift)
	}
	pool := make([]float32, n)
	r := rand.New(rand.NewPCG(1, 6))
	block := make([]float32, min(n, 1<<20))
	for i := range block {
		block[i] = float32(r.NormFloat64()) / 32
	}
	for i := 0; i < n; i += len(block) {
		copy(pool[i:], block)
	}
	ones := make([]float32, max(s.Embedding, s.HeadSize))
	for i := range ones {
		ones[i] = 1
	}

	var list []gguf.Tensor
	for i, m := range matrices {
		values := pool[i*shift : i*shift+m.in*m.out]
		list = append(list, gguf.Tensor{Name: m.name, Type: gguf.F16, Dims: []uint64{uint64(m.in), uint64(m.out)}, Values: values})
	}
	norm := func(name string, n int) {
		list = append(list, gguf.Tensor{Name: name, Type: gguf.F32, Dims: []uint64{uint64(n)}, Values: ones[:n]})
	}
	norm("output_norm.weight", s.Embedding)
	for i := range s.Layers {
		norm(fmt.Sprintf("blk.%d.attn_norm.weight", i), s.Embedding)
		norm(fmt.Sprintf("blk.%d.ffn_norm.weight", i), s.Embedding)
		if s.Architecture == "qwen3" {
			norm(fmt.Sprintf("blk.%d.attn_q_norm.weight", i), s.HeadSize)
			norm(fmt.Sprintf("blk.%d.attn_k_norm.weight", i), s.HeadSize)
		}
	}
	return list
}

// adapterFile names the file of random phi and psi for a model. Two models may have files of one name: this one says whose it is.
func adapterFile(m *weights.Model, name string, o *Options) string {
	return fmt.Sprintf("%s-r%d-h%d-%s-%v-%s.lesskv.gguf", name, o.Rank, o.Hidden, o.Policy, o.KernelType, short(shapeFormat, m.Fingerprint, o.Ubatch))
}

// buildAdapter writes a random adapter for a model into a folder and returns its path.
func buildAdapter(m *weights.Model, dir, name string, o *Options) (string, error) {
	path := filepath.Join(dir, adapterFile(m, name, o))
	if _, err := weights.Read(path); err == nil {
		return path, nil
	}
	a := weights.Random(m, o.Rank, o.Hidden, weights.Trained{Policy: o.Policy, Heavy: 1, Recent: 1, Ubatch: o.Ubatch, Context: trainedContext}, 1)
	if err := a.Convert(o.KernelType); err != nil {
		return "", err
	}
	return path, a.Write(path)
}
