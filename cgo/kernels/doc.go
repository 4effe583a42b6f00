// Package kernels is the Go face of the C kernels in this folder: the LESS cache of one layer and one sequence, attention
// over it, and what a micro-batch does to it. lesskv.h is the contract and says what everything means; the runtime links
// the same sources through it, under names without this package's prefix. Tests and training come in here.
//
//	cache, err := kernels.NewCache(layer)
//	defer cache.Close()
//	err = cache.Attend(ubatch, threads) // writes ubatch.Out
//	err = cache.Commit(ubatch, threads) // scores, evicts, folds
//
// Symbols are those of algorithm.md and lesskv.h: T tokens of a micro-batch, D and Dv the sizes of a key and of a value,
// Hq and Hkv the numbers of query and KV heads, B slots a KV head, R and R' the rank and the hidden size of the kernels.
//
// C memory is freed by Close alone. A value of this package serves one goroutine at a time.
package kernels

/*
#cgo CFLAGS: -std=c11 -Wall -Wextra -DLESSKV_PREFIX=lesskv_go_
#cgo !asan CFLAGS: -O3
#cgo asan CFLAGS: -O1
#cgo LDFLAGS: -lm
*/
import "C"
