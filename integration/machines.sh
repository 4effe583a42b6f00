#!/usr/bin/env bash
# Runs the suite as on other machines: with runtimes for processors without AVX-512 and without AVX2, the portable one and this
# machine's own; each with both processors, with one, with a busy one, and, where it can be read, with a worker under valgrind. Tests run
# three times, in another order each time.
#
#   integration/machines.sh                     everything: hours
#   BUILDS=v3 WAYS=one COUNT=1 integration/machines.sh ./plugin -run TestSpeculative
#
# What has passed is noted in build/machines/passed and not run again until a source changes; RESUME=0 forgets it.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
: "${GO:=go}" "${COUNT:=3}" "${BUILDS:=v2 v3 portable native}" "${WAYS:=plain one busy valgrind}" "${RESUME:=1}"
((COUNT > 0)) || { echo "COUNT=$COUNT: want how often each test is to run" >&2; exit 2; }
args=("$@")
((${#args[@]})) || args=(./...)
if [[ $(uname -sm) != "Linux x86_64" ]]; then
	BUILDS=native WAYS=plain
fi

dir=$root/build/machines
mkdir -p "$dir"
app=$(mktemp -d) # what a runtime is for, elsewhere; without one, this checkout would use it
printf 'module app\n\ngo 1.24.0\n' >"$app/go.mod"
GOWORK=off $GO build -o "$dir/patches" ./patches
sources=$(git ls-files -co --exclude-standard -z | xargs -0 sha256sum 2>/dev/null | sha256sum | cut -c1-16)
((RESUME)) || rm -f "$dir/passed"

if [[ " $WAYS " == *" valgrind "* ]] && ! command -v valgrind >/dev/null; then
	echo "== no valgrind here, left out" >&2
	WAYS=${WAYS//valgrind/}
fi

burners=()
trap 'for p in "${burners[@]}"; do kill "$p"; done; rm -rf "$app"' EXIT

# run NAME COMMAND... runs a command, unless it has passed.
run() {
	local name="$sources $1 $COUNT ${args[*]}"
	shift
	if grep -qxF "$name" "$dir/passed" 2>/dev/null; then
		echo "== $name: has passed"
		return
	fi
	echo "== $name"
	"$@"
	echo "$name" >>"$dir/passed"
}

for build in $BUILDS; do
	case $build in
	v2 | v3) flags=(-march "x86-64-$build") cflags=-march=x86-64-$build ;;
	portable) flags=(-preset portable) cflags= ;;
	native) flags=(-preset native) cflags=$([[ $(uname -s) == Darwin ]] || echo -march=native) ;;
	*) echo "BUILDS: $build: want v2, v3, portable or native" >&2; exit 2 ;;
	esac
	GOWORK='' "$dir/patches" -app "$app" -build "$dir/$build" -tree all "${flags[@]}"
	printf 'go 1.24.0\n\nuse %s\nuse %s\n' "$root" "$dir/$build/go-llama.cpp" >"$dir/$build/go.work"
	export GOWORK=$dir/$build/go.work LESSKV_BUILD=$dir/$build CGO_CFLAGS="-O2 -g $cflags" # of the kernels in Go's package
	# What assembles a runtime of its own, for this machine, says nothing of this one, or makes it anew.
	test=("$GO" test -count="$COUNT" -shuffle=on -timeout 6h -skip '^(TestApp|TestReadmeApp|TestSanitiz.*)$')
	for way in $WAYS; do
		case $way in
		plain) run "$build $way" "${test[@]}" "${args[@]}" ;;
		one) run "$build $way" taskset -c 0 "${test[@]}" "${args[@]}" ;;
		busy)
			for _ in $(seq "$(nproc)"); do
				while :; do :; done &
				burners+=($!)
			done
			run "$build $way" "${test[@]}" "${args[@]}"
			for p in "${burners[@]}"; do kill "$p"; done
			burners=()
			;;
		valgrind) # which knows no AVX-512
			[[ $build == v[23] ]] || continue
			printf '#!/bin/sh\nexec valgrind -q --error-exitcode=9 %q "$@"\n' "$dir/$build/bin/lesskv-worker" >"$dir/$build/valgrind"
			chmod +x "$dir/$build/valgrind"
			LESSKV_WORKER=$dir/$build/valgrind run "$build $way" "$GO" test -count=1 -timeout 6h -run 'TestCopy|TestCut|TestPoison|TestBatchRefused|TestDamagedState' ./integration
			;;
		*) echo "WAYS: $way: want plain, one, busy or valgrind" >&2; exit 2 ;;
		esac
	done
done
