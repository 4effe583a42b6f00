#!/usr/bin/env bash
# Runs the suite as on other machines, in an evening: with runtimes for processors without AVX-512 and without AVX2, the portable one and
# this machine's own. This machine's own runs three times, in another order each time, and what depends on who runs when (goroutines,
# threads, processes that are killed) once with one processor and once with busy ones; a worker of v3 runs under valgrind, and the plugin
# with memory that glibc has filled, new and freed, and on jemalloc, where that is installed, each without the test whose figure of memory is
# then another.
#
#   integration/machines.sh                     all that: it prints the list first
#   BUILDS=v3 WAYS=one COUNT=1 integration/machines.sh ./plugin -run TestSpeculative
#
# BUILDS (v2 v3 portable native), WAYS (plain one busy valgrind filled jemalloc), COUNT or arguments of go test make another list: every way of every build.
# What has passed is noted in build/machines/passed and not run again until a source changes (a page is none); RESUME=0
# forgets it.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
: "${GO:=go}" "${RESUME:=1}"

# What assembles a runtime, for this machine, says nothing of another (and into the one that is tested, it would), and what is compiled for another processor or is plain Go
# says the same on each.
skip='^(TestApp|TestAppsOfEveryShape|TestReadmeApp|TestInstall|TestSanitiz.*|TestUpstreamsLlamaTests|TestHarnesses|TestOnArm64|TestReferenceFigures)$'
scheduled=(./cgo/kernels ./integration/worker ./integration/verify ./plugin ./weights/train ./patches/internal/...)
memory='./integration -run TestCopy|TestCut|TestPoison|TestBatchRefused|TestDamagedState' # a worker's, for valgrind

# The list: a build, a way, how often, and what of the suite, a line each.
list=()
if [[ ${BUILDS-}${WAYS-}${COUNT-} || $# -gt 0 ]]; then
	args=("$@")
	((${#args[@]})) || args=(./...)
	for build in ${BUILDS:-v2 v3 portable native}; do
		for way in ${WAYS:-plain one busy valgrind filled jemalloc}; do
			if [[ $way == valgrind ]]; then
				list+=("$build $way 1 $memory")
			else
				list+=("$build $way ${COUNT:-3} ${args[*]}")
			fi
		done
	done
else
	list=(
		"native plain 3 ./..."
		"native one 1 ${scheduled[*]}"
		"native busy 1 ${scheduled[*]}"
		"v3 plain 1 ./..."
		"v3 valgrind 1 $memory"
		"native filled 1 ./plugin -skip TestLoadStatePeak"
		"native jemalloc 1 ./plugin -skip TestBudgetBeyondMemory"
		"v2 plain 1 ./..."
		"portable plain 1 ./..."
	)
fi
[[ $(uname -sm) == "Linux x86_64" ]] || list=("native plain ${COUNT:-3} ./...")

dir=$root/build/machines
mkdir -p "$dir"
((RESUME)) || rm -f "$dir/passed"
sources=$(git ls-files -co --exclude-standard -z -- . ':!*.md' ':!docs' ':!.ci' ':!Makefile' ':!integration/campaign/progress.json' | xargs -0 sha256sum 2>/dev/null | sha256sum | cut -c1-16)

passed() { grep -qxF "$sources $1" "$dir/passed" 2>/dev/null; }

jemalloc=$(ldconfig -p 2>/dev/null | sed -n 's/.*libjemalloc\.so.* => //p' | head -n 1)
todo=()
for line in "${list[@]}"; do
	read -r build way count args <<<"$line"
	case $build in v2 | v3 | portable | native) ;; *) echo "BUILDS: $build: want v2, v3, portable or native" >&2; exit 2 ;; esac
	case $way in plain | one | busy | valgrind | filled | jemalloc) ;; *) echo "WAYS: $way: want plain, one, busy, valgrind, filled or jemalloc" >&2; exit 2 ;; esac
	[[ $count =~ ^[1-9][0-9]*$ ]] || { echo "COUNT=$count: want how often each test is to run" >&2; exit 2; }
	if passed "$line"; then
		echo "== $line: has passed"
	elif [[ $way == valgrind ]] && ! command -v valgrind >/dev/null; then
		echo "== $line: left out, no valgrind here"
	elif [[ $way == valgrind && $build != v[23] ]]; then
		echo "== $line: left out, valgrind knows no AVX-512"
	elif [[ $way == jemalloc && ! $jemalloc ]]; then
		echo "== $line: left out, no libjemalloc.so here"
	else
		echo "== $line: to run"
		todo+=("$line")
	fi
done

app=$(mktemp -d) # what a runtime is for, elsewhere; without one, this checkout would use it
printf 'module app\n\ngo 1.24.0\n' >"$app/go.mod"
burners=()
trap 'for p in "${burners[@]}"; do kill "$p"; done; rm -rf "$app"' EXIT
GOWORK=off $GO build -o "$dir/patches" ./patches

for line in "${todo[@]}"; do
	read -r build way count args <<<"$line"
	read -ra args <<<"$args"
	echo "== $line: $(date +%H:%M)"
	case $build in
	v2 | v3) flags=(-march "x86-64-$build") cflags=-march=x86-64-$build ;;
	portable) flags=(-preset portable) cflags= ;;
	native) flags=(-preset native) cflags=$([[ $(uname -s) == Darwin ]] || echo -march=native) ;;
	esac
	GOWORK='' "$dir/patches" -app "$app" -build "$dir/$build" -tree all "${flags[@]}"
	printf 'go 1.24.0\n\nuse %s\nuse %s\n' "$root" "$dir/$build/go-llama.cpp" >"$dir/$build/go.work"
	export GOWORK=$dir/$build/go.work LESSKV_BUILD=$dir/$build CGO_CFLAGS="-O2 -g $cflags" # of the kernels in Go's package
	test=("$GO" test -count="$count" -shuffle=on -timeout 6h -skip "$skip" "${args[@]}")
	case $way in
	plain) "${test[@]}" ;;
	one) taskset -c 0 "${test[@]}" ;;
	filled) MALLOC_PERTURB_=165 "${test[@]}" ;;
	jemalloc) LD_PRELOAD=$jemalloc "${test[@]}" ;;
	busy)
		for _ in $(seq "$(nproc)"); do
			while :; do :; done &
			burners+=($!)
		done
		"${test[@]}"
		for p in "${burners[@]}"; do kill "$p"; done
		burners=()
		;;
	valgrind)
		printf '#!/bin/sh\nexec valgrind -q --error-exitcode=9 %q "$@"\n' "$dir/$build/bin/lesskv-worker" >"$dir/$build/valgrind"
		chmod +x "$dir/$build/valgrind"
		LESSKV_WORKER=$dir/$build/valgrind "${test[@]}"
		;;
	esac
	echo "$sources $line" >>"$dir/passed"
done
