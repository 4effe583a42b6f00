package toolchain

import (
	"bufio"
	"context"
	"maps"
	"slices"
	"strings"
)

// featureOf maps the macro that a compiler predefines when it may use an instruction set to the name under which the
// runtime asks the CPU for it (cgo/llama/lesskv-cpu.cpp knows the same names). What isn't listed is
// implied by something that is.
var featureOf = map[string]map[string]string{
	"amd64": {
		"__SSE3__": "sse3", "__SSSE3__": "ssse3", "__SSE4_1__": "sse4.1", "__SSE4_2__": "sse4.2", "__POPCNT__": "popcnt",
		"__AVX__": "avx", "__AVX2__": "avx2", "__FMA__": "fma", "__F16C__": "f16c",
		"__BMI__": "bmi1", "__BMI2__": "bmi2", "__LZCNT__": "lzcnt", "__MOVBE__": "movbe",
		"__AVX512F__": "avx512f", "__AVX512BW__": "avx512bw", "__AVX512CD__": "avx512cd", "__AVX512DQ__": "avx512dq",
		"__AVX512VL__": "avx512vl", "__AVX512IFMA__": "avx512ifma", "__AVX512VBMI__": "avx512vbmi", "__AVX512VBMI2__": "avx512vbmi2",
		"__AVX512VNNI__": "avx512vnni", "__AVX512BITALG__": "avx512bitalg", "__AVX512VPOPCNTDQ__": "avx512vpopcntdq",
		"__AVX512BF16__": "avx512bf16", "__AVX512FP16__": "avx512fp16", "__AVXVNNI__": "avxvnni",
		"__AMX_TILE__": "amx-tile", "__AMX_INT8__": "amx-int8", "__AMX_BF16__": "amx-bf16",
	},
	"arm64": {
		"__ARM_FEATURE_DOTPROD":                "dotprod",
		"__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "fp16",
		"__ARM_FEATURE_MATMUL_INT8":            "i8mm",
		"__ARM_FEATURE_BF16_VECTOR_ARITHMETIC": "bf16",
		"__ARM_FEATURE_SVE":                    "sve",
		"__ARM_FEATURE_SVE2":                   "sve2",
		"__ARM_FEATURE_SME":                    "sme",
		"__ARM_FEATURE_ATOMICS":                "lse",
	},
}

// Features returns, in order of the macros, what a CPU must have to run code that was compiled with the flags isa,
// beyond what every CPU of the architecture has.
func (t *Toolchain) Features(ctx context.Context, isa []string) ([]string, error) {
	base, err := t.macros(ctx, C, nil)
	if err != nil {
		return nil, err
	}
	with, err := t.macros(ctx, C, isa)
	if err != nil {
		return nil, err
	}
	had, has := defined(base), defined(with)
	var features []string
	for _, m := range slices.Sorted(maps.Keys(featureOf[t.GOARCH])) {
		if has[m] && !had[m] {
			features = append(features, featureOf[t.GOARCH][m])
		}
	}
	return features, nil
}

// defined lists the macros of a -dM output.
func defined(macros string) map[string]bool {
	names := map[string]bool{}
	for s := bufio.NewScanner(strings.NewReader(macros)); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "#define "); ok {
			name, _, _ = strings.Cut(name, " ")
			names[name] = true
		}
	}
	return names
}
