package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lesskv/lesskv/integration/worker"
)

// A Check is one method's cell reached in two ways.
type Check struct {
	Method         string
	Context        int
	Prompt, Decode Spread  // speed of the cell as Run reaches it, divided by that after a whole prompt
	Whole          float64 // tokens a second of that prompt, but for its last micro-batch
}

// CompareFilled decodes whole prompts and compares the speed behind them with that of the cells which Run fills or settles: the last
// of o.Contexts, o.Repeat rounds, both ways in turn.
func CompareFilled(ctx context.Context, o Options) ([]Check, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	c := o.top()
	if c < 2*o.Ubatch {
		return nil, fmt.Errorf("bench: checking a context of %d tokens: want two micro-batches (%d) at least: %w", c, 2*o.Ubatch, ErrOption)
	}
	b := &bench{ctx: ctx, o: &o, rng: newRand()}
	defer b.close()
	if err := b.load(); err != nil {
		return nil, err
	}
	if err := b.fits(); err != nil {
		return nil, err
	}
	if err := b.open(); err != nil {
		return nil, err
	}
	var checks []Check
	for i, r := range b.runners {
		check := Check{Method: r.Name, Context: c}
		prompt, decode := map[bool][]float64{}, map[bool][]float64{}
		var whole []byte // the state after a whole prompt, but for the last micro-batch
		for round := range o.Repeat {
			for _, real := range []bool{true, false} {
				o.Progress(float64(i*o.Repeat+round), float64(o.Repeat*len(b.runners)), "checking "+r.Name)
				pos, err := c-o.Ubatch, error(nil)
				switch {
				case !real:
					pos, err = r.prepare(pos)
				case whole == nil:
					if err = r.w.Clear(); err == nil {
						var fed *worker.Output
						if fed, err = r.w.Feed(0, 0, b.tokens(pos), worker.None); err == nil {
							check.Whole = float64(pos) / fed.Elapsed.Seconds()
						}
					}
					if err == nil {
						whole, err = r.w.Save(0)
					}
				default:
					_, err = r.w.Load(0, whole)
				}
				if err != nil {
					return nil, err
				}
				out, err := r.w.Decode(0, pos, b.tokens(o.Ubatch), worker.Last)
				if err != nil {
					return nil, err
				}
				prompt[real] = append(prompt[real], out.Elapsed.Seconds())
				pos += o.Ubatch
				var t time.Duration
				for _, n := range []int{warmTokens, 32} {
					_, out, err := r.w.Greedy(0, pos, 0, n, false)
					if err != nil {
						return nil, err
					}
					pos += n
					t = out.Elapsed
				}
				decode[real] = append(decode[real], t.Seconds())
			}
		}
		check.Prompt, check.Decode = ratios(prompt[true], prompt[false]), ratios(decode[true], decode[false])
		checks = append(checks, check)
	}
	return checks, nil
}

// ratios divides pair by pair.
func ratios(a, b []float64) Spread {
	x := slices.Clone(a)
	for i := range x {
		x[i] /= b[i]
	}
	return spread(x)
}

func (c Check) String() string {
	return fmt.Sprintf("%s at %d tokens: prompt %.3fx (%.3f-%.3f), decoding %.3fx (%.3f-%.3f) of the speed behind a whole prompt, which ran at %.1f tokens/s",
		c.Method, c.Context, c.Prompt.Median, c.Prompt.Min, c.Prompt.Max, c.Decode.Median, c.Decode.Min, c.Decode.Max, c.Whole)
}
