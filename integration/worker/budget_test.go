package worker_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/lesskv/lesskv/integration/worker"
)

func TestLimit(t *testing.T) {
	for _, want := range []worker.Budget{{Tokens: 102}, {Share: .05}, {Bytes: 64 << 20}, {Full: 1. / 16}} {
		l := worker.LESS{Budget: 1, BudgetShare: 1, BudgetBytes: 1, BudgetFull: 1}
		l.Limit(want)
		assert.Equal(t, want, worker.Budget{Tokens: l.Budget, Share: l.BudgetShare, Bytes: l.BudgetBytes, Full: l.BudgetFull})
	}
}
