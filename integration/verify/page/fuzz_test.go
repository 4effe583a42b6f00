package page

import (
	"encoding/json"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/fuzztest"
	"github.com/lesskv/lesskv/integration/verify"
)

// FuzzReport: whatever JSON is a report is shown as tables, CSV, Markdown and a page, and comes out of JSON as it went in.
func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"version":1,"rows":[
{"context":256,"ubatch":16,"budget":41,"method":"less","policy":"peak","slots":41,"bytes":{"total":5000},"kl":{"value":0.1,"low":0.05,"high":0.2},
 "positions":5,"buckets":[{"from":0,"to":16,"kl":{"value":0.1}}],"closed_kl":{"value":0.5},"generation":{"tokens":5},"common":{"kl":{"value":0.1}}},
{"context":256,"ubatch":16,"budget":41,"method":"q8_0","slots":256,"bytes":{"total":9000},"fault":"none"}],
"recall":[{"kind":"needle","length":5,"tasks":3,"full":2,"methods":[{"policy":"peak","method":"less","budget":5,"right":1}]}],
"peaks":[{"context":512,"unmodified":100,"less":50,"slots":41}],"frontier":[{"context":256,"ubatch":16,"rows":[{"method":"less","bytes":5}]}],
"checks":[{"claim":"kl","holds":true}],"findings":["a"],"notes":["b"]}`))
	if text, err := os.ReadFile("testdata/report.json"); err == nil {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzztest.Bounded(t, 256<<20+4096*len(b), func() {
			var r, again verify.Report
			if json.Unmarshal(b, &r) != nil {
				return
			}
			text, err := r.JSON()
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(text, &again))
			text2, err := again.JSON()
			require.NoError(t, err)
			require.Equal(t, string(text), string(text2))

			require.NoError(t, Table(io.Discard, &r))
			_, err = CSV(&r)
			require.NoError(t, err)
			_, err = Markdown(&r)
			require.NoError(t, err)
			_, err = Pictures(&r)
			require.NoError(t, err)
		})
	})
}
