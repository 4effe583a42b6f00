#!/bin/sh
# Compiles and tests the kernels with every compiler here and for several instruction sets, then under the address and
# undefined-behaviour sanitizers, and the sharing of work under the thread sanitizer; all tests on arm64. "check.sh sanitize" has the sanitizers alone. Fails at the first failure.
set -eu
cd "$(dirname "$0")"

compile() {
    for file in *.c; do
        "$@" -O3 -std=c11 -Wall -Wextra -Werror -c "$file" -o /dev/null
    done
}

run() {
    echo "== $CC $CGO_CFLAGS"
    go test -short -count=1 .
}

if [ "${1-}" != sanitize ]; then
    for CC in gcc clang; do
        if ! command -v "$CC" > /dev/null; then
            echo "== no $CC here, left out"
            continue
        fi
        export CC
        CGO_CFLAGS="-O2 -march=native"; export CGO_CFLAGS
        run
        case $(uname -m) in x86_64)
            CGO_CFLAGS="-O2"
            run
            if grep -q avx2 /proc/cpuinfo 2> /dev/null; then
                CGO_CFLAGS="-O2 -mavx2 -mfma -mf16c"
                run
            fi
            compile "$CC" -mavx
            compile "$CC" -mavx512f -mfma -mf16c
        esac
    done
    unset CC CGO_CFLAGS
    echo "== arm64, all tests"
    LESSKV_SOAK=1 go test -count=1 -timeout 1h -v -run '^TestOnArm64$' .
fi

# in the package's own flags, which users compile with, a warning is no error
CC=gcc # the go command knows the sanitizers of these two, by name
command -v gcc > /dev/null || CC=clang
compile "$CC"
CGO_CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
CGO_LDFLAGS="-fsanitize=address,undefined"
export CC CGO_CFLAGS CGO_LDFLAGS
echo "== $CC $CGO_CFLAGS"
go test -asan -short -count=1 .

unset CGO_CFLAGS CGO_LDFLAGS
threads=$(mktemp)
trap 'rm -f "$threads"' EXIT
echo "== $CC -fsanitize=thread testdata/threads.c"
# -Wno: gcc sees one more path here than there is
"$CC" -std=c11 -O1 -g -fsanitize=thread -Wall -Wextra -Werror -Wno-stringop-overflow -pthread testdata/threads.c [!t]*.c types.c -lm -o "$threads"
"$threads"
