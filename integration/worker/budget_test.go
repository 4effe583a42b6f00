package worker_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/worker"
)

func TestParseBudget(t *testing.T) {
	for text, want := range map[string]worker.Budget{
		"102": {Tokens: 102}, "5%": {Share: .05}, " 10 % ": {Share: .1}, "100%": {Share: 1},
		"64MiB": {Bytes: 64 << 20}, "0.5 GiB": {Bytes: 1 << 29}, "363KiB": {Bytes: 363 << 10}, "1/16": {Full: 1. / 16}, "3 / 64": {Full: 3. / 64}, "1/1": {Full: 1},
	} {
		b, err := worker.ParseBudget(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, b, text)
		assert.Equal(t, b.Bytes > 0 || b.Full > 0, b.InBytes(), text)
		var l worker.LESS
		b.Limit(&l)
		assert.Equal(t, want, worker.Budget{Tokens: l.Budget, Share: l.BudgetShare, Bytes: l.BudgetBytes, Full: l.BudgetFull})
	}
	for _, text := range []string{"", "0", "-1", "1.5", "1e2", "0%", "101%", "NaN%", "Inf%", "0MiB", "-1KiB", "1e300GiB", "64MB", "NaNMiB", "1/0", "0/4", "2/1", "1/", "/2", "1/2/3", "1/2.5", "99999999999"} {
		_, err := worker.ParseBudget(text)
		assert.ErrorContains(t, err, `"`+text+`"`)
	}
	assert.Equal(t, 64, worker.Budget{Share: .01}.Slots(2048))
	assert.Equal(t, 102, worker.Budget{Share: .05}.Slots(2048))
	assert.Equal(t, 7, worker.Budget{Tokens: 7}.Slots(2048))
}
