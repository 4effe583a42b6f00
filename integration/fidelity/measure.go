package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lesskv/lesskv/integration/activations"
	"github.com/lesskv/lesskv/integration/heldout"
	"github.com/lesskv/lesskv/integration/testdata"
	"github.com/lesskv/lesskv/integration/tune"
	"github.com/lesskv/lesskv/integration/verify"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/train"
)

const policy = "peak"

// A goal is a byte count of one sequence, what it came to before, what it is to come to, and the slots that are tried.
type goal struct {
	kib            int64
	before, target float64
	types          string
	effort
}

// effort is how many windows are tuned on, in how many rounds (-1: none).
type effort struct{ windows, rounds int }

var goals = []goal{
	{363, .1018, .012, "q8_0", effort{3, 4}},
	{679, .0467, .007, "q8_0", effort{2, 2}},
	{174, .1961, .03, "q4_0", effort{2, 2}},
	{1728, .0105, .002, "q8_0", effort{3, 3}},
}

type measurer struct {
	ctx     context.Context
	work    string
	threads int
	worker  string
	began   time.Time

	model, recall string // paths
	windows       [][]int32
	goText        corpus // to tune on: alone, and with look-ups
	lookUps       corpus
	start         []int32
	prose         []int32
}

// A corpus is what allocations are tuned on.
type corpus struct {
	tokens []int32
	suffix string // of what is kept of it
}

func newMeasurer(ctx context.Context, work string, threads int) (*measurer, error) {
	m := &measurer{ctx: ctx, work: work, threads: threads, began: time.Now()}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	var err error
	if m.worker, err = worker.Path(worker.Patched); err != nil {
		return nil, err
	}
	if m.model, err = testdata.PathIn(filepath.Join(work, "model"), testdata.Model); err != nil {
		return nil, err
	}
	if m.recall, err = testdata.InCheckout(".", testdata.RecallModel); err != nil {
		return nil, err
	}
	held, err := heldout.New(ctx, filepath.Join(work, "model"), heldout.Windows)
	if err != nil {
		return nil, err
	}
	m.windows = held.Windows
	r, err := activations.Open(ctx, m.worker, m.model, heldout.Tokens, 1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := os.ReadFile(filepath.Join("integration", "testdata", testdata.TrainSample))
	if err != nil {
		return nil, err
	}
	if m.goText.tokens, err = r.Tokenize(string(data)); err != nil {
		return nil, err
	}
	m.start = r.Start()
	m.lookUps.suffix = "-look-ups"
	if m.lookUps.tokens, err = withLookUps(m.goText.tokens, heldout.Tokens-len(m.start), r.Tokenize); err != nil {
		return nil, err
	}
	if data, err = os.ReadFile(filepath.Join("integration", "testdata", testdata.Prose)); err != nil {
		return nil, err
	}
	m.prose, err = r.Tokenize(string(data))
	return m, err
}

// withLookUps puts look-ups into a text, in each window of so many tokens: six numbers under names in its first half, which are asked for and
// answered in its second. None of the names is one of verify's recall tasks.
func withLookUps(text []int32, window int, tokenize func(string) ([]int32, error)) (all []int32, err error) {
	names := []string{"anchor", "basket", "candle", "dolphin", "ember", "falcon", "garden", "hammer", "island", "jacket", "kettle", "ladder"}
	const n = 6
	draw := rand.New(rand.NewPCG(1, 0))
	for len(text) >= window {
		var said [2 * n][]int32
		length := 0
		order, asked := draw.Perm(len(names))[:n], draw.Perm(n)
		for i, name := range order {
			name, number := names[name], fmt.Sprint(10000+draw.IntN(90000))
			if said[i], err = tokenize(verify.NeedleText(name, number)); err != nil {
				return nil, err
			}
			if said[n+asked[i]], err = tokenize(verify.Question(name) + " " + number + ".\n"); err != nil {
				return nil, err
			}
			length += len(said[i]) + len(said[n+asked[i]])
		}
		for i, s := range said {
			part := (window - length) * (i + 1) / len(said)
			part -= (window - length) * i / len(said)
			all = append(append(all, text[:part]...), s...)
			text = text[part:]
		}
	}
	return all[:len(all)/window/10*10*window], nil // validation is the last tenth: whole windows too
}

func (m *measurer) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
}

// An allocation is what was tuned for a byte count and a type of slots, and the adapter that it is in.
type allocation struct {
	result *tune.Result
	fitted []tune.Fitted // layers whose phi and psi are in the adapter
	types  string
	path   string
}

// found is what tune has come to: without phi and psi, and with them, unless in no layer they are worth their bytes.
type found struct {
	plain, with *allocation
	better      bool // with phi and psi, on a window that was not tuned on: what tune writes
}

// best is what tune writes.
func (f *found) best() *allocation {
	if f.better {
		return f.with
	}
	return f.plain
}

// all are those that there are, the best first.
func (f *found) all() []*allocation {
	switch {
	case f.with == nil:
		return []*allocation{f.plain}
	case f.better:
		return []*allocation{f.with, f.plain}
	}
	return []*allocation{f.plain, f.with}
}

// trained finds an allocation for a model and a budget in bytes, and what phi and psi add, from a text.
func (m *measurer) trained(model string, on corpus, budget worker.Budget, types string, e effort) (*found, error) {
	o, err := m.options(model, on, budget, types, e)
	if err != nil {
		return nil, err
	}
	t, err := m.training(model, on)
	if err != nil {
		return nil, err
	}
	defer t.Runtime.(*activations.Runtime).Close()
	r, err := tune.Train(m.ctx, *o, *t)
	if err != nil {
		return nil, err
	}
	f := &found{plain: m.allocation(r.Without, types, o.Work), better: r.Better}
	if err := m.write(model, f.plain); err != nil || r.With == nil {
		return f, err
	}
	f.with = m.allocation(r.With, types, o.Work+"-phi")
	f.with.fitted = slices.DeleteFunc(r.Layers, func(l tune.Fitted) bool { return r.Fitted.Kernels[l.Layer].Empty() })
	m.say("phi and psi: %+v", f.with.fitted)
	return f, r.Fitted.Write(f.with.path)
}

// training is that of phi and psi, on a text.
func (m *measurer) training(path string, on corpus) (*tune.Training, error) {
	model, err := weights.ReadModel(path)
	if err != nil {
		return nil, err
	}
	r, err := activations.Open(m.ctx, m.worker, path, heldout.Tokens, m.threads)
	if err != nil {
		return nil, err
	}
	w, err := train.Cut(on.tokens, heldout.Tokens, trainTokens, m.start)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	progress := func(e train.Event) {
		if e.Stage == train.Finished {
			m.say("layer %d: error %.3f of sparse only's", e.Layer, e.Valid)
		}
	}
	return &tune.Training{Options: train.Options{Model: model, Seed: 1, Type: gguf.Q8_0, Threads: m.threads, Progress: progress}, Runtime: r, Windows: w}, nil
}

// trainTokens of the training text are those that phi and psi learn from.
const trainTokens = 200_000

func (m *measurer) allocation(r *tune.Result, types, name string) *allocation {
	m.say("%s: %d slots a head, KL %.4f on what it was tuned on (equal %.4f), %.4f on what it was not (equal %.4f)", filepath.Base(name), r.Slots(), r.Tuned, r.Equal, r.TunedValid, r.EqualValid)
	return &allocation{result: r, types: types, path: name + ".lesskv.gguf"}
}

// write makes an adapter of an allocation alone.
func (m *measurer) write(model string, a *allocation) error {
	base, err := weights.ReadModel(model)
	if err != nil {
		return err
	}
	adapter := weights.New(base, weights.Trained{Ubatch: heldout.Ubatch, Context: heldout.Tokens})
	return errors.Join(a.result.Give(adapter, policy), adapter.Write(a.path))
}

// options are those of tuning on a text.
func (m *measurer) options(model string, on corpus, budget worker.Budget, types string, e effort) (*tune.Options, error) {
	w, err := train.CutInto(on.tokens, heldout.Tokens, e.windows, 1, m.start)
	if err != nil {
		return nil, err
	}
	o := &tune.Options{Model: model, Worker: m.worker, Windows: w.Train, Valid: w.Valid, Budget: budget, Policy: policy, Ubatch: heldout.Ubatch, Rounds: e.rounds, Threads: m.threads}
	o.Work = filepath.Join(m.work, fmt.Sprintf("%s-%.4g-%s", strings.TrimSuffix(filepath.Base(model), ".gguf"), float64(budget.Bytes)/1024, strings.ReplaceAll(types, ",", "-"))+on.suffix)
	o.TypeK, o.TypeV, err = worker.SlotTypes(types)
	return o, err
}

// verified measures allocations under so many bytes, beside equal budgets, on windows that nothing was tuned on.
func (m *measurer) verified(all []*allocation, budget worker.Budget, windows [][]int32, ubatches ...int) (*verify.Report, error) {
	var paths []string
	for _, a := range all {
		paths = append(paths, a.path)
	}
	return m.verify(verify.Plan{
		Model: m.model, Adapters: paths, Tokens: slices.Concat(windows...), Windows: len(windows), Stride: heldout.Tokens, NoStart: true, Contexts: []int{heldout.Tokens},
		Bytes: []verify.Budget{budget}, SlotTypes: []string{all[0].types}, Policies: []string{policy}, Ubatches: ubatches, Generate: -1, Recall: []string{},
	})
}

// verify measures a plan, and returns nothing of a build that is not what it claims to be.
func (m *measurer) verify(p verify.Plan) (*verify.Report, error) {
	p.Threads, p.Work = m.threads, filepath.Join(m.work, "verify")
	r, err := verify.Run(m.ctx, p)
	if err != nil {
		return nil, err
	}
	for _, c := range r.Failed() {
		return nil, fmt.Errorf("the build is not what it claims to be: %s", c)
	}
	return r, nil
}
