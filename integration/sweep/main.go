// Command sweep measures how close trained adapters bring gopher-5m to the full cache, by training tokens, rank and hidden
// size: it trains an adapter for every point with the defaults of lesskv train, and measures KL(full || LESS) on the
// held-out windows. It prints the tables of docs/training.md and draws their picture.
//
//	go run ./integration/sweep [-policy h2o] [-work DIR] [-o docs/training.png]
//
// A point changes one thing against the base. The work folder keeps recordings (about 13 GB for a million tokens) and finished adapters: the
// same command goes on where it was interrupted.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/distance"
	"github.com/lesskv/lesskv/integration/heldout"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/patches/limits"
	"github.com/lesskv/lesskv/patches/usage"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/outfile"
	"github.com/lesskv/lesskv/weights/train"
)

// A point is what one adapter is trained with.
type point struct{ tokens, rank, hidden int }

var base = point{200_000, train.DefaultRank, train.DefaultHidden}

// A series varies one size.
type series struct {
	title, unit string
	values      []int
	set         func(*point, int)
}

var sweeps = []series{
	{"Hidden size of phi and psi", "hidden size", []int{2, 4, 8, 16, 32, 64}, func(p *point, x int) { p.hidden = x }},
	{"Rank of the state", "rank", []int{4, 8, 16, 32}, func(p *point, x int) { p.rank = x }},
	{"Training tokens", "tokens", []int{40_000, 200_000, 1_000_000}, func(p *point, x int) { p.tokens = x }},
}

// A result is a point and what was measured of it.
type result struct {
	x          int
	slots      int64 // bytes
	state      int64
	kernels    int64
	kl         float64
	same       float64 // KL of sparse-only with the bytes of state, phi and psi as extra slots: Baseline++
	plus       float64 // with those of the state: Baseline+
	validation float64 // mean of the layers' errors, sparse-only's being 1
}

func main() {
	s := &sweep{}
	flag.StringVar(&s.policy, "policy", "h2o", "sparse policy, which says what stays: "+kernels.PolicyHelp())
	flag.IntVar(&s.budget, "budget", 102, "slots per KV head")
	flag.IntVar(&s.steps, "steps", 0, "steps of the optimiser, 0 for the default")
	flag.IntVar(&s.threads, "threads", limits.CPUs(), "layers to fit at a time; a model this small runs on one thread")
	windows := flag.Int("windows", heldout.Windows, "held-out windows of 2,048 tokens to measure, 1 to 6")
	flag.StringVar(&s.work, "work", usage.WorkFolder("sweep"), "folder for recordings and adapters")
	flag.StringVar(&s.source, "d", filepath.Join("integration", "testdata", testdata.TrainSample), "text to train on")
	out := flag.String("o", filepath.Join("docs", "training.png"), "where the picture goes")
	usage.Main("sweep", func(ctx context.Context) error {
		s.ctx = ctx
		return s.run(*windows, *out)
	})
}

type sweep struct {
	ctx            context.Context
	policy         string
	budget         int
	steps, threads int
	work, source   string

	model   string
	windows *heldout.Runner
	full    [][]float32
	text    []int32
	sparse  map[int]float64 // KL by budget, without phi and psi
	done    map[point]result
}

func (s *sweep) run(windows int, out string) (err error) {
	if err := os.MkdirAll(s.work, 0o755); err != nil {
		return err
	}
	if s.model, err = testdata.PathIn(s.work, testdata.Model); err != nil {
		return err
	}
	if s.windows, err = heldout.New(s.ctx, s.work, windows); err != nil {
		return err
	}
	if s.full, _, err = s.windows.Logits(worker.Unmodified, worker.Config{}); err != nil {
		return err
	}
	s.sparse, s.done = map[int]float64{}, map[point]result{}
	sparse, err := s.sparseOnly(s.budget)
	if err != nil {
		return err
	}
	fmt.Printf("gopher-5m, policy %s with %d slots, adapters in f16; sparse-only's KL is %.4f\n", s.policy, s.budget, sparse)
	all := make([][]result, len(sweeps))
	for i, v := range sweeps {
		fmt.Printf("\n| %s | state, KiB | phi and psi, KiB | validation error | KL, nats | gap closed | per 100 KiB of state, phi and psi | per 100 KiB of all | Baseline+ | Baseline++ |\n|---|---|---|---|---|---|---|---|---|---|\n", v.unit)
		for _, x := range v.values {
			p := base
			v.set(&p, x)
			r, err := s.measure(p)
			if err != nil {
				return err
			}
			r.x = x
			closed := 1 - r.kl/sparse
			fmt.Printf("| %d | %.1f | %.1f | %.3f | %.4f | %.1f %% | %.1f %% | %.2f %% | %.4f | %.4f |\n", x, kib(r.state), kib(r.kernels), r.validation, r.kl, 100*closed,
				100*closed*100/kib(r.state+r.kernels), 100*closed*100/kib(r.slots+r.state+r.kernels), r.plus, r.same)
			all[i] = append(all[i], r)
		}
	}
	if err := drawSweeps(out, sparse, all); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "drawn:", out)
	return nil
}

func kib(n int64) float64 { return float64(n) / 1024 }

// measure trains a point's adapter, unless it is there, and runs it over the held-out windows.
func (s *sweep) measure(p point) (result, error) {
	if r, ok := s.done[p]; ok {
		return r, nil
	}
	path := filepath.Join(s.work, fmt.Sprintf("%s-%d-tokens-%d-rank-%d-hidden-%d-steps-%d.lesskv.gguf", s.policy, s.budget, p.tokens, p.rank, p.hidden, s.steps))
	if _, err := os.Stat(path); err != nil {
		if err := s.train(p, path); err != nil {
			return result{}, err
		}
	}
	r := result{}
	data, err := os.ReadFile(reportOf(path))
	if err != nil {
		return r, fmt.Errorf("%w; remove %s to train it again", err, path)
	}
	var layers []train.LayerReport
	if err := json.Unmarshal(data, &layers); err != nil {
		return r, fmt.Errorf("%s: %w", reportOf(path), err)
	}
	for _, l := range layers {
		r.validation += l.Valid / float64(len(layers))
	}
	kl, info, err := s.kl(worker.LESS{Policy: s.policy, Budget: s.budget, Adapter: path})
	if err != nil {
		return r, err
	}
	r.kl, r.slots, r.state, r.kernels = kl, info.SlotBytes, info.StateBytes, info.KernelBytes
	slot := info.SlotBytes / int64(s.budget)
	if r.plus, err = s.sparseOnly(s.budget + int(r.state/slot)); err != nil {
		return r, err
	}
	if r.same, err = s.sparseOnly(s.budget + int((r.state+r.kernels)/slot)); err != nil {
		return r, err
	}
	s.done[p] = r
	return r, nil
}

// train makes an adapter, and a report beside it.
func (s *sweep) train(p point, path string) error {
	bin, err := worker.Path(worker.Patched)
	if err != nil {
		return err
	}
	r, err := activations.Open(s.ctx, bin, s.model, heldout.Tokens, 1)
	if err != nil {
		return err
	}
	defer r.Close()
	if s.text == nil {
		text, err := os.ReadFile(s.source)
		if err != nil {
			return err
		}
		if s.text, err = r.Tokenize(string(text)); err != nil {
			return err
		}
		s.text = append(r.Start(), s.text...)
	}
	windows, err := train.Cut(s.text, heldout.Tokens, p.tokens, r.Start())
	if err != nil {
		return err
	}
	o := train.Options{
		Output: path, Recordings: filepath.Join(s.work, "recordings"), Policy: s.policy, Budgets: []int{s.budget}, Ubatch: heldout.Ubatch,
		Rank: p.rank, Hidden: p.hidden, Steps: s.steps, Seed: 1, Threads: s.threads, Type: gguf.F16,
	}
	if o.Model, err = weights.ReadModel(s.model); err != nil {
		return err
	}
	report, err := train.Run(s.ctx, o, r, windows)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(report.Layers, "", "  ")
	if err != nil {
		return err
	}
	return outfile.WriteBytes(reportOf(path), data)
}

// reportOf is where an adapter's report lies.
func reportOf(path string) string { return strings.TrimSuffix(path, ".lesskv.gguf") + ".json" }

func (s *sweep) sparseOnly(budget int) (float64, error) {
	kl, ok := s.sparse[budget]
	if ok {
		return kl, nil
	}
	kl, _, err := s.kl(worker.LESS{Policy: s.policy, Budget: budget})
	s.sparse[budget] = kl
	return kl, err
}

// kl returns KL(full || LESS) over the windows' positions past the sweep's budget and one micro-batch.
func (s *sweep) kl(less worker.LESS) (float64, worker.LESSInfo, error) {
	got, info, err := s.windows.Logits(worker.Patched, worker.Config{LESS: &less})
	if err != nil {
		return 0, info, err
	}
	all := make([]*distance.Points, len(s.windows.Windows))
	for i, w := range s.windows.Windows {
		if all[i], err = distance.Compare(s.full[i], got[i], w); err != nil {
			return 0, info, err
		}
	}
	return distance.Mean(s.budget+heldout.Ubatch, all...).KL, info, nil
}
