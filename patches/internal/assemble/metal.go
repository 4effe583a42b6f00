package assemble

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/lesskv/lesskv/patches/internal/build"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

func findMetal(_ context.Context, a *assembly) (machine, error) {
	if a.tools.GOOS != "darwin" {
		return machine{}, &NeedError{"metal", "macOS", ""}
	}
	return machine{
		flags: []string{"-DGGML_METAL_EMBED_LIBRARY"},
		libs:  []string{"-framework", "Foundation", "-framework", "Metal", "-framework", "MetalKit"},
	}, nil
}

const (
	metal    = "ggml/src/ggml-metal/"
	embedded = metal + "lesskv-embedded/"
)

// embedMetal makes, of each file of kernels, one with all that it includes, which the driver compiles where the program runs, and
// the assembly that puts it into the program: upstream's GGML_METAL_EMBED_LIBRARY.
func embedMetal(_ context.Context, _ *assembly, _ *build.Builder, t tree.Tree) error {
	made := tree.Tree{}
	for _, p := range t.Paths() {
		if !strings.HasPrefix(p, metal+"kernels/") || path.Ext(p) != ".metal" {
			continue
		}
		var whole []byte
		for _, h := range []string{"common.h", "dequantize.h", "quantize.h"} {
			if h == "common.h" || bytes.Contains(t[p], fmt.Appendf(nil, "#include %q", h)) {
				whole = append(whole, t[metal+"kernels/"+h]...)
			}
		}
		var text bytes.Buffer
		for line := range bytes.Lines(append(whole, t[p]...)) {
			switch {
			case containsAny(line, `#include "common.h"`, `#include "dequantize.h"`, `#include "quantize.h"`, "#pragma once"):
			case containsAny(line, "__embed_ggml-common.h__"):
				text.Write(t["ggml/src/ggml-common.h"])
			case containsAny(line, `#include "ggml-metal-impl.h"`):
				text.Write(t[metal+"ggml-metal-impl.h"])
			default:
				text.Write(line)
			}
		}
		kind := strings.TrimSuffix(path.Base(p), ".metal")
		file := embedded + kind + ".metal"
		made[file] = text.Bytes()
		// the object changes with the text, of which the compiler's list of headers knows nothing
		made[embedded+kind+".S"] = fmt.Appendf(nil, "// %s\n.section __DATA,__ggml_metallib\n.globl _ggml_metallib_%[2]s_start\n_ggml_metallib_%[2]s_start:\n.incbin %[3]q\n.globl _ggml_metallib_%[2]s_end\n_ggml_metallib_%[2]s_end:\n",
			tree.Hash(text.Bytes()), strings.ReplaceAll(kind, "-", "_"), file)
	}
	for p, data := range made {
		if err := t.Add(p, data); err != nil {
			return err
		}
	}
	return nil
}

func containsAny(line []byte, list ...string) bool {
	for _, s := range list {
		if bytes.Contains(line, []byte(s)) {
			return true
		}
	}
	return false
}
