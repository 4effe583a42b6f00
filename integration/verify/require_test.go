package verify

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
)

func TestParseRequirement(t *testing.T) {
	for text, want := range map[string]Requirement{
		"kl <= 0.2":                             {Method: LESS, Measure: "kl", Less: true, Equal: true, Bound: 0.2},
		"KL<0.2":                                {Method: LESS, Measure: "kl", Less: true, Bound: 0.2},
		"peak less 102: minus.baseline+.high<0": {Method: LESS, Policy: "peak", Budget: 102, Measure: "minus.baseline+.high", Less: true},
		"Baseline++: top1.low >= 0.8":           {Method: PlusPlus, Measure: "top1.low", Equal: true, Bound: 0.8},
		"q8_0: kl.max > 1e-3":                   {Method: Q8, Measure: "kl.max", Bound: 1e-3},
	} {
		got, err := ParseRequirement(text)
		require.NoError(t, err, text)
		want.text = text
		assert.Equal(t, want, got)
	}
	for _, text := range []string{"", "kl", "kl = 3", "kl <=", "magic: kl < 1", "speed > 3", "less: kl < 0.1.2", "-3: kl < 1", "off: kl < 1"} {
		_, err := ParseRequirement(text)
		assert.ErrorIs(t, err, ErrPlan, text)
	}
	assert.Panics(t, func() { Must("nonsense") })
}

func TestCheck(t *testing.T) {
	r := &Report{Rows: []*Row{
		{Method: LESS, Policy: "peak", Budget: 41, Measures: Measures{KL: Estimate{Value: 0.2, Low: 0.1, High: 0.3}}, Against: map[string]Difference{Plus: {KL: Estimate{Value: -0.01, Low: -0.03, High: 0.01}}}},
		{Method: LESS, Policy: "peak", Budget: 102, Measures: Measures{KL: Estimate{Value: 0.1, Low: 0.05, High: 0.15}}},
		{Method: LESS, Policy: "h2o", Budget: 41, Fault: "position 3: logits that are not finite"},
		{Method: Off, Measures: Measures{KL: Estimate{Value: 9}}},
	}}
	for text, want := range map[string][]string{ // reasons, "" for what holds
		"kl <= 0.2":                              {"", "", "position 3: logits that are not finite"},
		"peak less: kl < 0.2":                    {"found 0.2", ""},
		"peak less 41: kl.high <= 0.2":           {"found 0.3"},
		"peak less: minus.baseline+ < 0":         {"", "was not measured"},
		"peak less 41: minus.baseline+.high < 0": {"found 0.01"},
		"sparse: kl < 1":                         {"nothing that it is about was measured"},
	} {
		q := *r
		var got []string
		for _, c := range q.Check(Must(text)) {
			assert.Equal(t, c.Reason == "", c.OK)
			got = append(got, c.Reason)
		}
		assert.Equal(t, want, got, text)
	}
}

// FuzzRequirement: any text is a requirement, of which a report says whether it holds, or refused by quoting it.
func FuzzRequirement(f *testing.F) {
	for _, s := range []string{"kl <= 0.2", "peak less 41: top1.low > 0.1", "LESS : kl<1e-3", "sparse 0: kl < 1", "h2o h2o q4_0 window: ppl >= nan", "kl <= 1e999", ": <=", "", strings.Repeat("1 ", 4000) + ": kl < 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		fuzztest.Bounded(t, 1<<20+128*len(s), func() {
			q, err := ParseRequirement(s)
			if err != nil {
				require.ErrorIs(t, err, ErrPlan)
				require.ErrorContains(t, err, fmt.Sprintf("%q", s))
				return
			}
			require.False(t, math.IsNaN(q.Bound) || math.IsInf(q.Bound, 0), "a number that JSON has")
			r := &Report{Rows: []*Row{{Method: LESS, Policy: "h2o", Budget: 41}, {Method: Sparse, Policy: "peak", Budget: 41, Fault: "none"}}}
			checks := r.Check(q)
			require.NotEmpty(t, checks)
			for _, c := range checks {
				require.Equal(t, strings.TrimSpace(s), c.Requirement)
			}
		})
	})
}
