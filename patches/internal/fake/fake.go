// Package fake gives tests a toolchain and modules that cost nothing: a compiler that is a shell script, and a module
// proxy in a temporary folder.
package fake

import (
	"archive/zip"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/lesskv/lesskv/patches/pins"
)

// The compiler knows --version, -dM (FAKE_MACROS apart, an ISA flag defines __AVX2__), -E of lines that include with <> what the folder
// FAKE_INCLUDE has, -c, -r and linking. Its objects are the
// source and the files that it includes with "", found in the tree's folders. A source that holds a line "#error TEXT" is
// refused with that text, one with "#warning TEXT" under -Werror; one that holds "#sleep" takes a minute.
const compiler = `#!/bin/sh
sources=
while [ $# -gt 0 ]; do
	case $1 in
	--version) echo "fake 1.0"; exit 0;;
	-E) mode=preprocess;;
	-dM) mode=macros;;
	-march=*|-mcpu=*) isa=1;;
	-MF) dep=$2; shift;;
	-o) out=$2; shift;;
	-c) src=$2; shift;;
	-isystem|-framework) shift;;
	-Werror) strict=1;;
	-r) what=combine;;
	-*) ;;
	*) sources="$sources $1";;
	esac
	shift
done
if [ "$mode" = macros ]; then
	echo "#define __FAKE__ 1"
	[ -z "$isa" ] || echo "#define __AVX2__ 1"
	exit 0
fi
if [ "$mode" = preprocess ]; then
	for h in $(sed -n 's/^#include <\(.*\)>$/\1/p'); do cat "$FAKE_INCLUDE/$h" || exit 1; done
	exit
fi
if [ -z "$src" ]; then
	cat $sources > "$out" && chmod +x "$out" || exit 1
	case $out in *.part.tmp) echo "${what:-link} $(basename "$out" .part.tmp | sed 's/-[0-9a-f]*\.o$//')" >> "$FAKE_LOG";; esac
	exit
fi
if grep -q '^#sleep' "$src"; then sleep 60; fi
if grep '^#error' "$src" >&2; then exit 1; fi
if grep '^#warning' "$src" >&2 && [ -n "$strict" ]; then exit 1; fi
headers=
for h in $(sed -n 's/^#include "\(.*\)"$/\1/p' "$src"); do
	for dir in . less include src; do
		if [ -f "$dir/$h" ]; then headers="$headers $dir/$h"; break; fi
	done
done
if [ -n "$dep" ]; then
	echo "$src" >> "$FAKE_LOG"
	printf 'x.o: %s \\\n%s /usr/include/system.h\n' "$src" "$headers" > "$dep"
fi
cat "$src" $headers > "$out"
`

const archiver = `#!/bin/sh
shift
out=$1; shift
basename -a "$@" > "$out"
cat "$@" >> "$out"
echo "archive $(basename "$out" .part.tmp)" >> "$FAKE_LOG"
`

const objcopy = `#!/bin/sh
for last; do :; done
[ -s "$last" ]
`

// Toolchain makes CC, CXX, AR and OBJCOPY fakes for the test. What it returns lists, and forgets, what they did since the last
// call: the sources compiled, "link NAME", "combine NAME", "archive NAME", in order of their names.
func Toolchain(t *testing.T) (did func() []string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	cc, ar, copier := filepath.Join(dir, "cc"), filepath.Join(dir, "ar"), filepath.Join(dir, "objcopy")
	require.NoError(t, os.WriteFile(cc, []byte(compiler), 0o755))
	require.NoError(t, os.WriteFile(ar, []byte(archiver), 0o755))
	require.NoError(t, os.WriteFile(copier, []byte(objcopy), 0o755))
	for name, value := range map[string]string{"CC": cc, "CXX": cc, "AR": ar, "OBJCOPY": copier, "FAKE_LOG": log} {
		t.Setenv(name, value)
	}
	return func() []string {
		data, err := os.ReadFile(log)
		if os.IsNotExist(err) {
			return nil
		}
		require.NoError(t, err)
		require.NoError(t, os.Remove(log))
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		slices.Sort(lines)
		return lines
	}
}

// Proxy makes an empty module cache and an empty proxy for the test and returns the proxy's folder.
func Proxy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, value := range map[string]string{
		"GOPROXY": "file://" + dir, "GOSUMDB": "off", "GOMODCACHE": t.TempDir(), "GOFLAGS": "-modcacherw", "GOWORK": "off",
	} {
		t.Setenv(name, value)
	}
	return dir
}

// Module puts a module into the proxy and returns it with its sum.
func Module(t *testing.T, proxy, path, version string, files map[string]string) pins.Module {
	t.Helper()
	dir := filepath.Join(proxy, path, "@v")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	write := func(ext, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, version+ext), []byte(text), 0o644))
	}
	mod := fmt.Sprintf("module %s\n\ngo 1.21\n", path)
	write(".info", fmt.Sprintf(`{"Version":%q,"Time":"2024-03-14T18:37:50Z"}`, version))
	write(".mod", mod)
	name := filepath.Join(dir, version+".zip")
	f, err := os.Create(name)
	require.NoError(t, err)
	z := zip.NewWriter(f)
	add := func(name, text string) {
		w, err := z.Create(path + "@" + version + "/" + name)
		require.NoError(t, err)
		_, err = w.Write([]byte(text))
		require.NoError(t, err)
	}
	add("go.mod", mod)
	for name, text := range files {
		add(name, text)
	}
	require.NoError(t, z.Close())
	require.NoError(t, f.Close())
	sum, err := dirhash.HashZip(name, dirhash.Hash1)
	require.NoError(t, err)
	return pins.Module{Path: path, Version: version, Sum: sum}
}
