// Package verify measures how close a LESS cache stays to the unmodified runtime, at what memory: every way to hold the
// cache, on the same tokens, against the full cache of a runtime that was built without this project's patches and runs in
// a process of its own.
//
// It is what the command lesskv verify runs, and what an app's own tests can ask:
//
//	report, err := verify.Run(ctx, verify.Plan{
//		Model: "model.gguf", Adapters: []string{"model.lesskv.gguf"}, Text: text,
//		Budgets: []verify.Budget{verify.Tokens(512)}, Methods: []string{verify.LESS},
//	})
//	…
//	for _, c := range report.Check(verify.Must("less: kl <= 0.05")) {
//		if !c.OK {
//			t.Error(c)
//		}
//	}
//
// # Methods
//
//	full        the unmodified runtime's f16 cache, which all others are measured against
//	f32         the same in f32: how much of a distance is rounding
//	q8_0, q4_0  the runtime's own quantised caches, with flash attention
//	window      the newest tokens alone
//	sparse      a policy (Policies): what it evicts is lost
//	Baseline+   sparse, with the bytes of LESS's state as more slots
//	Baseline++  sparse, with the bytes of LESS's state, phi and psi as extra slots
//	LESS        sparse, and what is evicted is folded into the state
//
// Three more say whether the build is to be trusted, and are checked in every run: off (the patched runtime without LESS,
// which must equal the unmodified one bit for bit), nothing-evicted (a budget of the whole context, which must equal it to
// rounding), and reference (the reference loops, which must agree with the kernels).
//
// # Positions
//
// Until something is evicted every method is exact, so means are over the positions from B + T on: B slots, micro-batches of T.
// Rows of one context, micro-batch and budget count the same positions. To compare budgets, Row.Common counts those that all
// budgets of the report have in common.
//
// # Intervals
//
// All are of 95 %, by bootstrap over blocks of consecutive positions (their errors are alike), with the same draws for all
// methods, so that differences are paired. The same plan gives the same report.
package verify
