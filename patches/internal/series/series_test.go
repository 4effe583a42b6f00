package series_test

import (
	"fmt"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/series"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

const header = `From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Developer <a@example.com>
Date: Sun, 23 Nov 2025 12:00:00 +0000
Subject: [PATCH] change b

Because b has to change.
---
`

const change = `diff --git a/src/f.c b/src/f.c
index 1111111..2222222 100644
--- a/src/f.c
+++ b/src/f.c
@@ -1,3 +1,4 @@
 a
-b
+B
+B2
 c
@@ -5,3 +6,2 @@ c
 e
-f
 g
`

const create = `diff --git a/src/new.c b/src/new.c
new file mode 100644
index 0000000..3333333
--- /dev/null
+++ b/src/new.c
@@ -0,0 +1 @@
+new
`

const remove = `diff --git a/src/old.c b/src/old.c
deleted file mode 100644
index 4444444..0000000
--- a/src/old.c
+++ /dev/null
@@ -1 +0,0 @@
-old
`

const trailer = "-- \n2.39.5\n\n"

func sources() tree.Tree {
	return tree.Tree{"src/f.c": []byte("a\nb\nc\nd\ne\nf\ng\n"), "src/old.c": []byte("old\n")}
}

func apply(t *testing.T, files tree.Tree, patch string) error {
	t.Helper()
	p, err := series.Parse("llama.cpp/0001-b.patch", []byte(patch))
	require.NoError(t, err)
	return series.Apply(files, []series.Patch{p})
}

func TestApply(t *testing.T) {
	files := sources()
	require.NoError(t, apply(t, files, header+change+create+remove+trailer))
	require.Equal(t, tree.Tree{"src/f.c": []byte("a\nB\nB2\nc\nd\ne\ng\n"), "src/new.c": []byte("new\n")}, files)
}

func TestApplyNamesThePlace(t *testing.T) {
	for name, test := range map[string]struct {
		patch   string
		files   tree.Tree
		hunk    int
		message string
	}{
		"second hunk": {change, tree.Tree{"src/f.c": []byte("a\nb\nc\nd\ne\nF\ng\n")}, 2,
			`llama.cpp/0001-b.patch: does not apply to src/f.c, hunk 2: conflict: fragment line does not match src line: line 6 is "F", want "f"`},
		"moved by one line": {change, tree.Tree{"src/f.c": []byte("x\na\nb\nc\nd\ne\nf\ng\n")}, 1,
			`llama.cpp/0001-b.patch: does not apply to src/f.c, hunk 1: conflict: fragment line does not match src line: line 1 is "x", want "a"`},
		"line endings":             {change, tree.Tree{"src/f.c": []byte("a\r\nb\r\nc\r\n")}, 1, `line 1 is "a\r", want "a"`},
		"too short":                {change, tree.Tree{"src/f.c": []byte("a\nb\nc\n")}, 2, `src/f.c, hunk 2`},
		"no file":                  {change, tree.Tree{}, 0, `llama.cpp/0001-b.patch: does not apply to src/f.c: there is no such file`},
		"file there":               {create, tree.Tree{"src/new.c": nil}, 0, `src/new.c: the patch creates a file that is there already`},
		"other contents to delete": {remove, tree.Tree{"src/old.c": []byte("older\n")}, 1, `line 1 is "older", want "old"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := apply(t, test.files, header+test.patch+trailer)
			var at *series.Error
			require.ErrorAs(t, err, &at)
			require.Equal(t, test.hunk, at.Hunk)
			require.ErrorContains(t, err, test.message)
		})
	}
}

func TestParseWantsAReason(t *testing.T) {
	for name, patch := range map[string]string{
		"header":        "Subject: [PATCH] change b\n\nBecause.\n---\n" + change,
		"no From":       "commit 0000000000000000000000000000000000000000\n\n    change b\n\n    Because.\n\n" + change,
		"under the sub": "From: A <a@example.com>\nSubject: [PATCH] change b\n\n---\n" + change,
		"no changes":    header + trailer,
		"p:":            header + "diff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,9 +1,9 @@\n a\n",
	} {
		_, err := series.Parse("p", []byte(patch))
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "p: ")
	}
}

func TestReadOrder(t *testing.T) {
	patch := func(file string) *fstest.MapFile {
		return &fstest.MapFile{Data: fmt.Appendf(nil, "%sdiff --git a/%s b/%s\nnew file mode 100644\n--- /dev/null\n+++ b/%s\n@@ -0,0 +1 @@\n+x\n", header, file, file, file)}
	}
	fsys := fstest.MapFS{"s/0002-b.patch": patch("b"), "s/0001-a.patch": patch("a"), "s/README": {}}
	patches, err := series.Read(fsys, "s")
	require.NoError(t, err)
	require.Len(t, patches, 2)
	require.Equal(t, "s/0001-a.patch", patches[0].Name)
	require.Equal(t, "change b", patches[0].Subject)

	patches, err = series.Read(fstest.MapFS{"s": {Mode: 0o755 | 1<<31}}, "s")
	require.NoError(t, err)
	require.Empty(t, patches)
}
