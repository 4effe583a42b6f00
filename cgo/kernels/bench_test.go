package kernels

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkAttend repeats the last micro-batch of every case of the table, and of the sizes below, on one thread. GFLOPS
// counts two operations for each of D + Dv elements of every pair that a query sees.
func BenchmarkAttend(b *testing.B) {
	benchmark(b, func(b *testing.B, cache *Cache, u *Ubatch) {
		for b.Loop() {
			require.NoError(b, cache.Attend(u, 1))
		}
		if l := cache.layer; l.Window == 0 {
			pairs := float64(u.Tokens) * (float64(cache.Stats().Kept) + float64(u.Tokens+1)/2)
			flop := 2 * pairs * float64(l.Heads*(l.KeySize+l.ValueSize)) * float64(b.N)
			b.ReportMetric(flop/b.Elapsed().Seconds()*1e-9, "GFLOPS")
		}
	})
}

// BenchmarkStep lets the sequence go on: attend and commit.
func BenchmarkStep(b *testing.B) {
	benchmark(b, func(b *testing.B, cache *Cache, u *Ubatch) {
		for b.Loop() {
			require.NoError(b, cache.Attend(u, 1))
			require.NoError(b, cache.Commit(u, 1))
			u.Pos += u.Tokens
		}
	})
}

func benchmark(b *testing.B, f func(b *testing.B, cache *Cache, u *Ubatch)) {
	list := cases()
	for _, big := range []struct {
		name         string
		b, tokens    int
		keys, values Type
		size         int
	}{
		{"1024 slots, 512 tokens, f16", 1024, 512, F16, F16, 128},
		{"1024 slots, 512 tokens, q8_0", 1024, 512, Q80, Q80, 128},
		{"1024 slots, 512 tokens, q4_0 and q8_0", 1024, 512, Q40, Q80, 128},
		{"1024 slots of 64, 512 tokens, f16", 1024, 512, F16, F16, 64},
		{"1024 slots of 64, 512 tokens, q8_0", 1024, 512, Q80, Q80, 64},
		{"1024 slots, decoding, f32", 1024, 1, F32, F32, 128},
		{"1024 slots, decoding, f16", 1024, 1, F16, F16, 128},
		{"1024 slots, decoding, q8_0", 1024, 1, Q80, Q80, 128},
		{"1024 slots, decoding, q4_0 and q8_0", 1024, 1, Q40, Q80, 128},
	} {
		list = append(list, testCase{name: big.name, rank: 8, hidden: 16, tokens: []int{1024, big.tokens}, layer: Layer{
			Heads: 8, HeadsKV: 2, KeySize: big.size, ValueSize: big.size, KeyType: big.keys, ValueType: big.values,
			Policy: "h2o", Budget: big.b, Heavy: big.b / 2, Pinned: 1}})
	}
	for _, c := range list {
		b.Run(c.name, func(b *testing.B) {
			rng := rand.New(rand.NewPCG(21, 1))
			c.kernels(b, rng)
			cache := c.cache(b)
			n := len(c.tokens) - 1
			c.run(b, cache, rng, 0, c.tokens[:n]...)
			u := c.ubatch(rng, c.tokens[n], sum(c.tokens[:n]))
			f(b, cache, u)
		})
	}
}

// BenchmarkPhiPsi is a layer of q8_0 slots that evicts: sparse only, with phi and psi, and with queries and keys that come rotated, as the
// runtime's do.
func BenchmarkPhiPsi(b *testing.B) {
	for _, shape := range []struct {
		name                   string
		heads, headsKV, budget int
	}{{"gopher-5m", 4, 2, 102}, {"llama-3.2-1b", 32, 8, 1638}} {
		for _, tokens := range []int{1, 512} {
			for _, with := range []struct {
				name           string
				rank, rotation int
			}{{"sparse only", 0, 0}, {"phi and psi", 8, 0}, {"rotated", 8, 64}} {
				b.Run(fmt.Sprintf("%s, %d tokens, %s", shape.name, tokens, with.name), func(b *testing.B) {
					l := layer(shape.heads, shape.headsKV, 64, 64, shape.budget, "peak")
					l.KeyType, l.ValueType, l.Rotation = Q80, Q80, with.rotation
					c := testCase{layer: l, rank: with.rank, hidden: 16, kernelType: F16}
					rng := rand.New(rand.NewPCG(24, 1))
					c.kernels(b, rng)
					cache := c.cache(b)
					c.run(b, cache, rng, 0, shape.budget)
					u := c.ubatch(rng, tokens, shape.budget)
					for b.Loop() {
						require.NoError(b, cache.Attend(u, 1))
						require.NoError(b, cache.Commit(u, 1))
						u.Pos += tokens
					}
				})
			}
		}
	}
}

// BenchmarkProducts is what decoding does with the slots, by level of instruction sets: their keys times the queries of a KV head, and
// the queries' weights times their values. GFLOPS counts two operations for each element of a row and each query.
func BenchmarkProducts(b *testing.B) {
	const rows = 1024
	names := levels()
	defer useLevel(len(names) - 1)
	for level, name := range names {
		for _, kind := range []Type{F32, F16, Q80, Q40} {
			for _, n := range []int{64, 128} {
				for nq := 1; nq <= 8; nq++ {
					rng := rand.New(rand.NewPCG(23, 1))
					data := kind.FromF32(normal(rng, rows*n, 1))
					wide, long := normal(rng, nq*n, 1), normal(rng, nq*rows, 1)
					at := fmt.Sprintf("%s/%v/%d/%d queries", name, kind, n, nq)
					for product, run := range map[string]func(){
						"keys":   func() { rowsFew(kind, data, n, wide, nq, long) },
						"values": func() { colsFew(kind, data, n, long, nq, wide) },
					} {
						b.Run(at+"/"+product, func(b *testing.B) {
							useLevel(level)
							for b.Loop() {
								run()
							}
							b.ReportMetric(2*float64(rows*n*nq*b.N)/b.Elapsed().Seconds()*1e-9, "GFLOPS")
							b.ReportMetric(b.Elapsed().Seconds()/float64(rows*b.N)*1e9, "ns/slot")
						})
					}
				}
			}
		}
	}
}
