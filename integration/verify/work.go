package verify

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/lesskv/lesskv/integration/pieces"
)

// The faults of a work folder.
var (
	ErrBusy    = pieces.ErrBusy
	ErrForeign = pieces.ErrForeign
)

// workFormat goes into the name of every piece. It changes with what the pieces hold, or how they are computed.
var workFormat = 3

// key names a piece by its kind and everything that it depends on beside the model and the workers.
func (v *verifier) key(kind string, parts ...any) string {
	all := []any{workFormat, kind, v.sums}
	for _, p := range parts {
		switch p := p.(type) {
		case *run:
			c := p.config
			adapter := ""
			if c.LESS != nil {
				l := *c.LESS
				l.Adapter, c.LESS = "", &l
			}
			if p.adapter != nil {
				adapter = p.adapter.SHA256
			}
			all = append(all, p.tree, c, adapter)
		case *group:
			all = append(all, p.context, p.ubatch)
		default:
			all = append(all, p)
		}
	}
	return pieces.Key(kind, all...)
}

// hashTokens returns the SHA-256 of tokens.
func hashTokens(all ...[]int32) string {
	h := sha256.New()
	var b [4]byte
	for _, tokens := range all {
		for _, t := range tokens {
			b[0], b[1], b[2], b[3] = byte(t), byte(t>>8), byte(t>>16), byte(t>>24)
			h.Write(b[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
