package tune

import (
	"context"
	"fmt"
	"slices"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
)

// Typed is what FindTypes found.
type Typed struct {
	Types  []weights.SlotTypes // of each layer
	Result *Result             // the allocation under them; nil: no others are predicted to be closer than those that were given
	Better bool                // on o.Valid, than those
	Why    string              // no other types can be tried; "": they can
}

// FindTypes looks for types of the slots by layer that bring a model closer to its full cache than those of o, under which a result was found, in the
// same bytes. It measures what Q4_0 costs, with nothing evicted and Q8_0 elsewhere, in the keys and in the values of each layer alone. These costs
// nearly add up, and what the heads cost at any number of slots is known: so it can be predicted what other types cost in all, with
// the slots that there are in the same bytes. From what is predicted to cost least it goes on as Run does from a result.
func FindTypes(ctx context.Context, o Options, model *weights.Model, r *Result) (*Typed, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if !o.Budget.InBytes() {
		o.Budget = worker.Budget{Bytes: r.Bytes}
	}
	o.From = r
	given, err := o.slotTypes(model)
	if err != nil {
		return nil, fmt.Errorf("tune: %w: %w", err, ErrOption)
	}
	t := &Typed{Types: given}
	if t.Why = unfilled(model); t.Why != "" {
		return t, nil
	}
	m, err := open(ctx, &o)
	if err != nil {
		return nil, fmt.Errorf("tune: %w", err)
	}
	s := &typeSearch{meter: m, model: model, r: r}
	types, begin, err := s.run(ctx, given)
	m.close()
	if err != nil || types == nil {
		return t, err
	}
	t.Types = types
	if o.TypeK, o.TypeV, err = worker.SlotTypes(worker.FormatTypes(types)); err != nil {
		return nil, err
	}
	o.From = begin
	if t.Result, err = Run(ctx, o); err != nil {
		return nil, err
	}
	if t.Better = t.Result.TunedValid < r.TunedValid; !t.Better {
		t.Types = given
	}
	return t, nil
}

// typeSearch predicts what types cost.
type typeSearch struct {
	*meter
	model *weights.Model
	r     *Result
	part  []typePart
	room  float64 // bytes that slots may take: those of equal budgets under the types that were given
}

// A typePart is the keys or the values of a layer, and what it costs that they are Q4_0.
type typePart struct {
	of   func(*weights.SlotTypes) *gguf.Type
	at   int // layer
	cost float64
}

// run returns the types that are predicted to cost least, and what to begin with under them; nil if none are better than those given.
func (s *typeSearch) run(ctx context.Context, given []weights.SlotTypes) ([]weights.SlotTypes, *Result, error) {
	if err := s.measureParts(ctx); err != nil {
		return nil, nil, err
	}
	return s.search(ctx, given)
}

// search is run behind the measurements. From where all are Q8_0, and from where all are Q4_0, it toggles the part that lowers the
// predicted cost most, until none does.
func (s *typeSearch) search(ctx context.Context, given []weights.SlotTypes) ([]weights.SlotTypes, *Result, error) {
	bytes, err := slotBytes(s.model, s.r.headLayers(), given)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range bytes {
		s.room += float64(s.budget) * float64(n)
	}
	least, err := s.predict(ctx, given)
	if err != nil {
		return nil, nil, err
	}
	best := given
	for _, typ := range []gguf.Type{gguf.Q8_0, gguf.Q4_0} { // from where all are alike, one after the other
		types := slices.Clone(given)
		for _, p := range s.part {
			*p.of(&types[p.at]) = typ
		}
		now, err := s.predict(ctx, types)
		for err == nil {
			next, toggled := now, -1
			for i := range s.part {
				var x *prediction
				if x, err = s.predict(ctx, s.toggled(types, i)); err != nil {
					break
				}
				if x.cost < next.cost {
					next, toggled = x, i
				}
			}
			if toggled < 0 {
				break
			}
			now, types = next, s.toggled(types, toggled)
		}
		if err != nil {
			return nil, nil, err
		}
		if now.cost < least.cost {
			least, best = now, types
		}
	}
	if slices.Equal(best, given) {
		return nil, nil, nil
	}
	return best, least.Result, nil
}

// toggled returns types in which one part is Q4_0 where it was Q8_0, and Q8_0 where it was not.
func (s *typeSearch) toggled(types []weights.SlotTypes, i int) []weights.SlotTypes {
	types = slices.Clone(types)
	t := s.part[i].of(&types[s.part[i].at])
	if *t == gguf.Q8_0 {
		*t = gguf.Q4_0
	} else {
		*t = gguf.Q8_0
	}
	return types
}

// unfilled says which layer's heads do not fill blocks of Q8_0 and Q4_0; "" if all do.
func unfilled(m *weights.Model) string {
	for i := range m.Layers {
		if s := m.Layer(i); m.Attends(i) && (s.KeyLength%32 > 0 || s.ValueLength%32 > 0) {
			return fmt.Sprintf("q8_0 and q4_0 need heads whose sizes are multiples of 32, and those of layer %d are %d and %d", i, s.KeyLength, s.ValueLength)
		}
	}
	return ""
}

// measureParts measures what each part costs.
func (s *typeSearch) measureParts(ctx context.Context) error {
	slots := s.limited(nil, 0)
	all := []cache{{slots, "q8_0", "q8_0"}}
	for _, heads := range byLayer(s.heads) {
		layer := s.heads[heads[0]].Layer
		other := fmt.Sprintf("q8_0,%d=q4_0", layer)
		s.part = append(s.part, typePart{of: func(t *weights.SlotTypes) *gguf.Type { return &t.Key }, at: layer}, typePart{of: func(t *weights.SlotTypes) *gguf.Type { return &t.Value }, at: layer})
		all = append(all, cache{slots, other, "q8_0"}, cache{slots, "q8_0", other})
	}
	d, err := s.measure(ctx, Types, s.o.Windows, all)
	for i := range s.part {
		if err == nil {
			s.part[i].cost = max(0, d[1+i]-d[0])
		}
	}
	return err
}

// predict says what types cost in all, with the slots that there are in the same bytes where they gain most.
func (s *typeSearch) predict(ctx context.Context, types []weights.SlotTypes) (*prediction, error) {
	r := *s.r
	r.Heads = slices.Clone(s.r.Heads)
	bytes, err := slotBytes(s.model, r.headLayers(), types)
	if err != nil {
		return nil, err
	}
	sum := 0.0
	for _, n := range bytes {
		sum += float64(n)
	}
	m := &meter{context: s.context, slot: unlike(bytes)}
	r.Budget = min(s.context, max(1, int(s.room/sum)))
	slots, err := m.greedy(ctx, &r)
	if err != nil {
		return nil, err
	}
	p := &prediction{Result: &r}
	for j := range r.Heads {
		r.Heads[j].Slots = slots[j]
		p.cost += curve(r.Levels, r.Heads[j].Distance, s.context, slots[j])
	}
	for _, part := range s.part {
		if *part.of(&types[part.at]) == gguf.Q4_0 {
			p.cost += part.cost
		}
	}
	return p, nil
}
