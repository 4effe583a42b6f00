//go:build !race

package lesskv_test

const raced = false
