package reference

import (
	"math"
	"math/bits"
	"slices"

	"github.com/x448/float16"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Rotations returns the dimensions of P_K and P_V ("Quantised slots are rotated" in algorithm.md); 0: not rotated.
func (l *Layer) Rotations() (key, value int) {
	if quantised(l.KeyType) && l.KeyLength%64 == 0 {
		for key = 64; l.KeyLength%(2*key) == 0; {
			key *= 2
		}
	}
	if quantised(l.ValueType) && l.ValueLength%64 == 0 {
		value = 64
	}
	return key, value
}

// fits reports whether slots can be of a type that hold vectors of n numbers.
func fits(n int, t gguf.Type) bool {
	return t == gguf.F32 || t == gguf.F16 || quantised(t) && n%32 == 0
}

func quantised(t gguf.Type) bool { return t == gguf.Q8_0 || t == gguf.Q4_0 }

// Hadamard returns x times the normalised Hadamard matrix of n dimensions, a power of two that divides len(x), block by block; twice is not
// at all. 0: x itself.
func Hadamard[T float32 | float64](x []T, n int) []T {
	if n == 0 {
		return x
	}
	y := make([]T, len(x))
	for at := 0; at < len(x); at += n {
		for i := range n {
			var sum float64
			for j, a := range x[at:][:n] {
				if bits.OnesCount(uint(i&j))%2 == 0 {
					sum += float64(a)
				} else {
					sum -= float64(a)
				}
			}
			y[at+i] = T(sum / math.Sqrt(float64(n)))
		}
	}
	return y
}

// slotOf returns x as a slot of a type holds it: rotated by n dimensions, rounded, and rotated back.
func slotOf(x []float32, t gguf.Type, n int) []float64 {
	return Hadamard(rounded(Hadamard(x, n), t), n)
}

// rounded returns x as numbers of a type.
func rounded(x []float32, t gguf.Type) []float64 {
	y := make([]float64, len(x))
	switch t {
	case gguf.F32:
		for i, a := range x {
			y[i] = float64(a)
		}
	case gguf.F16:
		for i, a := range x {
			y[i] = float64(float16.Fromfloat32(a).Float32())
		}
	default:
		for at := 0; at < len(x); at += 32 {
			roundBlock(y[at:][:32], x[at:][:32], t)
		}
	}
	return y
}

// roundBlock rounds 32 numbers that share a scale, which is f16. The largest becomes 127 or -127 times the scale of q8_0, -8 times that of
// q4_0, which may be negative and has no 8. Quotients are float32, as in ggml.
func roundBlock(y []float64, x []float32, t gguf.Type) {
	var top float32 // the first of the largest magnitude
	odd := false
	for _, a := range x {
		if math.Abs(float64(a)) > math.Abs(float64(top)) {
			top = a
		}
		odd = odd || !finite(float64(a))
	}
	d := top / 127
	if t == gguf.Q4_0 {
		d = top / -8
	}
	scale := float64(float16.Fromfloat32(d).Float32())
	for i, a := range x {
		switch q := float64(float32(a * (1 / d))); {
		case odd:
			y[i] = math.NaN()
		case scale == 0:
			y[i] = 0
		case t == gguf.Q4_0:
			y[i] = scale * min(7, math.Floor(float64(float32(q)+8.5))-8)
		default:
			y[i] = scale * math.RoundToEven(q)
		}
	}
}

// finite reports whether x is, as a float32.
func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(float64(float32(x)), 0) }

func allFinite(x []float64) bool {
	return !slices.ContainsFunc(x, func(a float64) bool { return !finite(a) })
}
