//go:build cgo

package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/cgo/kernels"
	"github.com/lesskv/lesskv/integration/verify"
)

func TestCompletion(t *testing.T) {
	policies := strings.Join(kernels.PolicyNames(), "\n") + "\n:4\n"
	for line, want := range map[string]string{
		"run --policy ":     policies,
		"tune --policy ":    policies,
		"verify --policy ":  policies,
		"import --policy ":  "h2o\nlambda\n:4\n",
		"run --type ":       "f16\nf32\nq8_0\nq4_0\n:4\n",
		"tune --type ":      "f16\nf32\nq8_0\nq4_0\n:4\n",
		"train --phi-type ": "f16\nf32\nq8_0\n:4\n",
		"bench --policy ":   policies,
		"bench -m ":         "gguf\n:8\n",
		"train -w ":         "gguf\n:8\n",
		"verify -w ":        "gguf\n:8\n",
		"plan --type ":      "f16\nf32\nq8_0\nq4_0\n:4\n",
		"run -m ":           "gguf\n:8\n", // files of that ending
		"train --plot ":     "png\nsvg\n:8\n",
		"inspect ":          "gguf\n:8\n",
		"plan -o ":          "png\nsvg\n:8\n",
		"train -o ":         "gguf\n:8\n",
		"bench -o ":         "json\n:8\n",
		"verify -o ":        ":16\n", // a folder
		"train -d ":         "txt\nmd\ntokens\n:8\n",
		"verify --prompts ": "jsonl\n:8\n",
		"verify --recall ":  "passkey\nneedle\nneedles\nnone\n:4\n",
		"bench --method ":   strings.Join(methodNames("bench"), "\n") + "\n:4\n",
		"verify --method ":  strings.Join(verify.Methods(), "\n") + "\n:4\n",

		"bench --other-build ": ":16\n",
	} {
		status, out, stderr := command("", append([]string{"__complete"}, strings.Split(line, " ")...)...)
		require.Equal(t, exitOK, status, stderr)
		assert.Equal(t, want, out, line)
	}
	status, out, _ := command("", "--help")
	assert.Equal(t, exitOK, status)
	assert.Contains(t, out, "completion")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		status, out, _ := command("", "completion", shell)
		assert.Equal(t, exitOK, status)
		assert.Contains(t, out, "__complete", shell)
	}
}
