package main

import (
	"context"
	"fmt"
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
	"github.com/lesskv/lesskv/weights/train"
)

const policy = "peak"

// A goal is a byte count of one sequence, what it came to before, what it is to come to, and the slots that are tried.
type goal struct {
	kib            int64
	before, target float64
	types          []string
	effort
}

// effort is how many windows are tuned on, in how many rounds (-1: none).
type effort struct{ windows, rounds int }

var goals = []goal{
	{363, .1018, .012, []string{"q8_0"}, effort{3, 4}},
	{679, .0467, .007, []string{"q8_0"}, effort{2, 2}},
	{174, .1961, .03, []string{"q4_0"}, effort{2, 2}},
	{1728, .0105, .002, []string{"q8_0"}, effort{3, 3}},
}

type measurer struct {
	ctx     context.Context
	work    string
	threads int
	worker  string
	began   time.Time

	model, recall string // paths
	windows       [][]int32
	text          []int32 // to tune on
	start         []int32
	prose         []int32
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
	if m.text, err = r.Tokenize(string(data)); err != nil {
		return nil, err
	}
	m.start = r.Start()
	prose, err := proseText()
	if err != nil {
		return nil, err
	}
	m.prose, err = r.Tokenize(prose)
	return m, err
}

// proseText is a text that is not Go: this repository's own pages, without those that this program writes.
func proseText() (string, error) {
	var b strings.Builder
	for _, name := range []string{"README.md", "docs/algorithm.md", "docs/reliability.md", "docs/compatibility.md", "docs/models.md", "patches/README.md"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		b.Write(data)
		b.WriteString("\n\n")
	}
	return b.String(), nil
}

func (m *measurer) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
}

// An allocation is what was tuned for a byte count and a type of slots, and the adapter that it is in.
type allocation struct {
	result *tune.Result
	types  string
	path   string
}

// tuned finds an allocation for a model and a budget in bytes.
func (m *measurer) tuned(model string, budget worker.Budget, types string, e effort) (*allocation, error) {
	name := fmt.Sprintf("%s-%.4g-%s", strings.TrimSuffix(filepath.Base(model), ".gguf"), float64(budget.Bytes)/1024, strings.ReplaceAll(types, ",", "-"))
	a := &allocation{types: types, path: filepath.Join(m.work, name+".lesskv.gguf")}
	o, err := m.options(model, budget, types, e)
	if err != nil {
		return nil, err
	}
	o.Work = filepath.Join(m.work, name)
	if a.result, err = tune.Run(m.ctx, *o); err != nil {
		return nil, err
	}
	r := a.result
	m.say("%s: %d slots a head, KL %.4f on what it was tuned on (equal %.4f), %.4f on what it was not (equal %.4f)", name, r.Budget, r.Tuned, r.Equal, r.TunedValid, r.EqualValid)
	weights := make([]float32, len(r.Heads))
	for j, h := range r.Heads {
		weights[j] = h.Weight
	}
	return a, m.write(model, a, weights)
}

// write makes an adapter of an allocation's weights.
func (m *measurer) write(model string, a *allocation, w []float32) error {
	base, err := weights.ReadModel(model)
	if err != nil {
		return err
	}
	b := a.result.Budget
	adapter := weights.New(base, 1, 1, weights.Trained{Policy: policy, Heavy: b / 4, Recent: b - b/4, Ubatch: heldout.Ubatch, Context: heldout.Tokens})
	adapter.Budget = w
	return adapter.Write(a.path)
}

// options are those of tuning on the training text.
func (m *measurer) options(model string, budget worker.Budget, types string, e effort) (*tune.Options, error) {
	w, err := train.Cut(m.text, heldout.Tokens, (e.windows+1)*heldout.Tokens, m.start)
	if err != nil {
		return nil, err
	}
	o := &tune.Options{Model: model, Worker: m.worker, Windows: w.Train[:e.windows], Valid: w.Valid[:1], Budget: budget, Policy: policy, Ubatch: heldout.Ubatch, Rounds: e.rounds, Threads: m.threads}
	o.TypeK, o.TypeV, err = worker.SlotTypes(types)
	return o, err
}

// verified measures an allocation under so many bytes, beside equal budgets, on windows that nothing was tuned on.
func (m *measurer) verified(a *allocation, budget worker.Budget, windows [][]int32, ubatches ...int) (*verify.Report, error) {
	return m.verify(verify.Plan{
		Model: m.model, Adapters: []string{a.path}, Tokens: slices.Concat(windows...), Windows: len(windows), Stride: heldout.Tokens, NoStart: true, Contexts: []int{heldout.Tokens},
		Bytes: []verify.Budget{budget}, SlotTypes: []string{a.types}, Policies: []string{policy}, Ubatches: ubatches, Generate: -1, Recall: []string{},
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
