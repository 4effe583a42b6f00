package kernels

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSHA256(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	data := make([]byte, 1000)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	for n := range 300 {
		want := sha256.Sum256(data[:n])
		cut := rng.IntN(n + 1)
		require.Equal(t, hex.EncodeToString(want[:]), SHA256(data[:cut], data[cut:n]), "%d bytes", n)
	}
	want := sha256.Sum256(data)
	require.Equal(t, hex.EncodeToString(want[:]), SHA256(data))
	require.Equal(t, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", SHA256())
}
