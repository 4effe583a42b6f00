package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/lesskv/lesskv/integration/pieces"
	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/memory"
)

// verifier is a plan on its way to a report.
type verifier struct {
	plan     Plan
	model    *weights.Model
	info     ModelInfo
	adapters []*adapter
	sums     [3]string // SHA-256 of the model and of the two workers
	paths    [2]string // of the workers, by tree

	vocab     int
	budgeted  []int         // layers with a budget
	fullBytes map[int]int64 // f16, by context, of sliding windows no more than the window, as the workers have it
	devices   onDevices
	fits      map[int][]candidate // of Plan.Bytes, by context
	text      []int32
	start     []int32 // the token that the model wants first
	prompts   []prompt
	tasks     map[int][]task // recall, by context
	store     *pieces.Store
	draw      sampler

	mu          sync.Mutex
	notes       []string
	stage       string
	done, total int64
}

// Run measures what a plan says. When ctx is done or it fails, finished work stays in Plan.Work, and the same plan goes on
// there. Errors wrap one of this package's faults, the workers', the adapters' or the context's.
func Run(ctx context.Context, p Plan) (*Report, error) {
	v, err := begin(ctx, p)
	if err != nil {
		return nil, err
	}
	defer v.store.Close()
	if len(v.plan.Bytes) > 0 {
		v.fits = map[int][]candidate{}
		for _, context := range v.plan.Contexts {
			if v.fits[context], err = v.fit(ctx, context); err != nil {
				return nil, err
			}
		}
	}
	groups, err := v.groups()
	if err != nil {
		return nil, err
	}
	if err := v.admit(groups); err != nil {
		return nil, err
	}
	v.count(groups)
	for _, g := range groups {
		if err := v.measure(ctx, g); err != nil {
			return nil, err
		}
	}
	r := &Report{}
	if len(v.plan.Bytes) > 0 {
		return r, v.report(r, groups)
	}
	if r.Profiles, err = v.profiles(ctx, groups); err != nil {
		return nil, err
	}
	if r.Reading, err = v.reading(ctx, groups); err != nil {
		return nil, err
	}
	if r.Peaks, err = v.peaks(ctx, groups); err != nil {
		return nil, err
	}
	v.say("report", 0)
	return r, v.report(r, groups)
}

// begin checks everything that can be checked before anything long begins.
func begin(ctx context.Context, p Plan) (_ *verifier, err error) {
	v := &verifier{plan: p, fullBytes: map[int]int64{}, tasks: map[int][]task{}}
	if v.model, err = weights.ReadModel(p.Model); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if err := v.plan.fill(v.model.Context); err != nil {
		return nil, err
	}
	for _, t := range append([]string{v.plan.SlotType}, v.plan.SlotTypes...) {
		if v.types(t) == nil {
			return nil, fmt.Errorf("verify: slots of type %q: the model has %d layers, counted from 0: %w", t, v.model.Layers, ErrPlan)
		}
	}
	if err := v.checkTypes(v.plan.SlotType); err != nil { // before slots of that size are counted
		return nil, fmt.Errorf("verify: slots of type %q: %w: %w", v.plan.SlotType, err, ErrPlan)
	}
	if v.plan.SlotType != "f16" {
		v.note("sparse caches and LESS keep their slots in %s", v.plan.SlotType)
	}
	v.draw = sampler{samples: v.plan.Samples, seed: v.plan.Seed, drawn: map[int][][]float64{}}
	for tree, given := range map[worker.Tree]string{worker.Patched: p.Worker, worker.Unmodified: p.UnmodifiedWorker} {
		if v.paths[tree] = given; given == "" {
			if v.paths[tree], err = worker.Path(tree); err != nil {
				return nil, fmt.Errorf("verify: %w", err)
			}
		}
		if v.sums[1+int(tree)], err = pieces.HashFile(v.paths[tree]); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
	}
	for _, path := range p.Adapters {
		a, err := weights.Read(path)
		if err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		warnings, err := weights.Check(a, v.model)
		if err != nil && !(p.Force && errors.Is(err, weights.ErrFingerprint)) {
			return nil, fmt.Errorf("verify: %s: %w", path, err)
		}
		for _, w := range warnings {
			v.note("%s: %s", path, w)
		}
		v.adapters = append(v.adapters, &adapter{a, path})
	}
	size, err := os.Stat(p.Model)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if v.plan.Memory == 0 {
		v.plan.Memory = available()
	}
	v.info = ModelInfo{Bytes: size.Size()}
	if need := v.info.Bytes + overhead; need > v.plan.Memory {
		return nil, fmt.Errorf("verify: %s alone takes %s, and the bound is %s: %w", p.Model, memory.Size(need), memory.Size(v.plan.Memory), ErrMemory)
	}
	v.say("reading the model", 0)
	if v.sums[0], err = pieces.HashFile(p.Model); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if v.store, err = pieces.Open(p.Work); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if err = v.probe(ctx); err == nil {
		err = v.probeDevices(ctx)
	}
	if err != nil {
		v.store.Close()
		return nil, err
	}
	return v, nil
}

// probe asks the patched runtime what only it knows: whether it serves the model, the bytes of full caches, the tokens.
func (v *verifier) probe(ctx context.Context) error {
	w, err := worker.Start(ctx, v.paths[worker.Patched])
	if err != nil {
		return err
	}
	defer w.Close()
	ok, reason, err := w.Supported(v.plan.Model)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if !ok {
		return fmt.Errorf("verify: %s: %s: %w", v.plan.Model, reason, ErrModel)
	}
	for _, context := range slices.Concat(v.plan.Contexts, v.plan.Peaks, []int{v.plan.Read}) {
		if context == 0 {
			continue
		}
		if _, ok := v.fullBytes[context]; ok {
			continue
		}
		info, err := w.Open(worker.Config{Model: v.plan.Model, Context: context, Batch: 32, Ubatch: 32, WindowOnly: true, LESS: &worker.LESS{Policy: "lambda", Budget: min(16, context)}})
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		less, err := w.LESS()
		if err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		v.vocab, v.fullBytes[context] = info.Vocab, less.FullBytes
		if err := w.CloseModel(); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
	}
	if _, err := w.Open(worker.Config{Model: v.plan.Model, Context: 64, Batch: 32, Ubatch: 32, LESS: &worker.LESS{Policy: "lambda", Budget: 16}}); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if _, err := w.Decode(0, 0, []int32{0}, worker.None); err != nil { // before it no layer has a cache
		return fmt.Errorf("verify: %w", err)
	}
	layers, err := w.Layers(0)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	v.budgeted = nil
	for _, l := range layers {
		if !l.Window {
			v.budgeted = append(v.budgeted, l.Layer)
		}
	}
	if len(v.budgeted) == 0 {
		return fmt.Errorf("verify: %s: every layer has a sliding window, so that nothing is evicted: %w", v.plan.Model, ErrModel)
	}
	return v.readText(ctx, w)
}

// readText tokenises the text, the prompts and the recall tasks.
func (v *verifier) readText(ctx context.Context, w *worker.Worker) error {
	v.say("reading the text", 0)
	if v.text = v.plan.Tokens; v.text == nil {
		var err error
		if v.text, err = w.TokenizeLong(v.plan.Text, 2<<20, v.plan.NoStart); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
	}
	for i, t := range v.text {
		if t < 0 || int(t) >= v.vocab {
			return fmt.Errorf("verify: token %d of the text is %d, the model has %d: %w", i, t, v.vocab, ErrText)
		}
	}
	if !v.plan.NoStart {
		var err error
		if v.start, err = w.StartToken(); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
	}
	if n := v.plan.Read; n > len(v.start)+len(v.text) {
		return fmt.Errorf("verify: %d tokens to read, and the text has %d: %w", n, len(v.start)+len(v.text), ErrText)
	}
	if err := v.readPrompts(w); err != nil {
		return err
	}
	for _, context := range v.plan.Contexts { // before tasks are made that are as long
		if err := v.enough(context); err != nil {
			return err
		}
	}
	for _, context := range v.plan.Contexts {
		if err := v.readTasks(ctx, w, context); err != nil {
			return err
		}
	}
	return nil
}

// enough refuses a text that is too short for the windows of a context.
func (v *verifier) enough(context int) error {
	n := context - len(v.start)
	stride := v.stride()
	need, apart := (v.plan.Windows-1)*stride+n, fmt.Sprintf(", %d apart,", stride)
	if v.plan.Stride == 0 && v.plan.Windows > 1 { // they lie evenly, and none over another
		need, apart = (v.plan.Windows-1)*n+slices.Max(v.plan.Contexts), ""
	}
	if need > len(v.text) {
		return fmt.Errorf("verify: %d windows of %d tokens%s want %d tokens of text, and there are %d: give more text, fewer windows or a smaller context: %w",
			v.plan.Windows, context, apart, need, len(v.text), ErrText)
	}
	return nil
}

// windows cuts the text, of which there is enough.
func (v *verifier) windows(context int) (all [][]int32) {
	n, stride := context-len(v.start), v.stride()
	if stride < n && v.plan.Windows > 1 {
		v.note("windows of %d tokens that begin every %d overlap: intervals are too narrow", context, stride)
	}
	if context > v.model.Context {
		v.note("a context of %d tokens, the model was trained with %d", context, v.model.Context)
	}
	for i := range v.plan.Windows {
		all = append(all, slices.Concat(v.start, v.text[i*stride:][:n]))
	}
	return all
}

// stride is the distance of two windows' starts: as far as the text allows for the longest.
func (v *verifier) stride() int {
	if v.plan.Stride > 0 {
		return v.plan.Stride
	}
	if v.plan.Windows == 1 {
		return 1
	}
	room := len(v.text) - slices.Max(v.plan.Contexts)
	return max(room/(v.plan.Windows-1), 0)
}

func (v *verifier) note(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := fmt.Sprintf(format, args...); !slices.Contains(v.notes, s) {
		v.notes = append(v.notes, s)
	}
}

// say tells how far the run has come: units more are done.
func (v *verifier) say(stage string, units int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if stage != "" {
		v.stage = stage
	}
	v.done = min(v.done+units, v.total)
	if v.plan.Progress != nil {
		v.plan.Progress(Progress{v.stage, v.done, v.total})
	}
}
