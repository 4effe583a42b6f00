//go:build race

package lesskv_test

// raced: the race detector's shadow memory is in the process's address space.
const raced = true
