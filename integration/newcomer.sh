#!/usr/bin/env bash
# Plays somebody who has nothing yet: the commit that is checked out here, empty caches of Go and of this project, and what README.md and
# docs/commands.md say to type, word for word: the demo; the commands on a model; the three steps in an app that knew nothing of this project; the
# command's installation and its use outside a checkout; and wrong input to each. What takes minutes by design (tune, train, verify, bench) is run by
# TestReadmeCommands, with flags that make it short.
#
#   integration/newcomer.sh         all of it: it compiles the runtime three times
#   integration/newcomer.sh -warm   with what Go and this checkout have compiled and downloaded: some minutes, for trying the script, it shows less
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
warm=${1-}
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT

# what the user has configured stays: where modules, packages and repositories are fetched from
GOENV=$(go env GOENV) user_proxy=$(go env GOPROXY) modules=$(go env GOMODCACHE) objects=$(go env GOCACHE)
export GOENV npm_config_userconfig=$HOME/.npmrc
[[ ! -e $HOME/.gitconfig ]] || export GIT_CONFIG_GLOBAL=${GIT_CONFIG_GLOBAL:-$HOME/.gitconfig}
export HOME=$dir/home XDG_CACHE_HOME=$dir/cache GOPATH=$dir/go GOMODCACHE=$dir/modules GOCACHE=$dir/gocache GOFLAGS=-modcacherw GOBIN= GOWORK=
unset LESSKV LESSKV_BUILD
[[ $warm != -warm ]] || GOCACHE=$objects user_proxy=file://$modules/cache/download,$user_proxy
export GOPROXY=$user_proxy
mkdir -p "$HOME"

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'newcomer: %s\n' "$*" >&2; exit 1; }

# says TEXT COMMAND... runs a command, shows what it says, and wants a text in it.
says() {
	local want=$1 out status=0
	shift
	printf '$ %s\n' "$*" >&2
	out=$("$@" 2>&1) || status=$?
	printf '%s\n' "$out" >&2
	((status == 0)) || fail "status $status: $*"
	[[ $out == *"$want"* ]] || fail "no \"$want\": $*"
}

# refuses STATUS TEXT COMMAND... wants a command to fail so, and to say a text.
refuses() {
	local want=$1 text=$2 out status=0
	shift 2
	out=$("$@" 2>&1 </dev/null) || status=$?
	printf '$ %s\n%s\n' "$*" "$out" >&2
	((status == want)) || fail "status $status, want $want: $*"
	[[ $out == *"$text"* ]] || fail "no \"$text\": $*"
}

say "a checkout: make demo, make lesskv"
git clone -q "$root" "$dir/lesskv"
cd "$dir/lesskv"
if [[ $warm == -warm && -d $root/build/obj ]]; then
	mkdir build && cp -r "$root/build/obj" build/ && touch build/.lock
fi
make -s demo >"$dir/demo"
(($(wc -c <"$dir/demo") > 400)) || fail "make demo wrote no text"
make -s lesskv
say "README.md's commands, docs/commands.md's screens, and wrong input to every command"
go test -count=1 -run '^Test(ReadmeCommands|CommandsPage|Status|WrongInputToEveryCommand)$' ./cmd/lesskv

say "the app's three steps, with this commit from a module proxy"
version=v0.0.1-$(git rev-parse --short=12 HEAD)
at=$dir/proxy/github.com/lesskv/lesskv/@v
mkdir -p "$at"
git ls-files '*/go.mod' | sed 's|/go.mod$||; s|^|:!|' >"$dir/nested" # modules of their own are no part of it
git archive --format=zip --prefix="github.com/lesskv/lesskv@$version/" -o "$at/$version.zip" HEAD -- . $(<"$dir/nested")
cp go.mod "$at/$version.mod"
printf '{"Version":"%s"}' "$version" >"$at/$version.info"
echo "$version" >"$at/list"
export GOPROXY=file://$dir/proxy,$user_proxy GONOSUMDB=github.com/lesskv/lesskv GOPRIVATE=

mkdir "$dir/app"
cp integration/app/go.mod integration/app/go.sum "$dir/app"
cp integration/testdata/gopher-5m.gguf "$dir/app/model.gguf"
section=$(sed -n '/^## In your app$/,/^From the command line/p' README.md)
code=$(sed -n '/^ *```go$/,/^ *```$/p' <<<"$section" | grep -v '```')
{
	printf 'package main\n\n'
	sed '/^   )$/q' <<<"$code"
	printf 'func main() {\n'
	sed '1,/^   )$/d' <<<"$code"
	printf 'if err != nil {\npanic(err)\n}\ndefer model.Free()\nreply, err := model.Predict("func main() {\\n", llama.SetTokens(16))\nif err != nil {\npanic(err)\n}\nprintln(reply)\n}\n'
} >"$dir/app/main.go"
build=() # an app's runtime is compiled once more, since it is in a place of its own
[[ $warm != -warm ]] || build=(-build "$dir/lesskv/build")
cd "$dir/app"
mapfile -t lines < <(sed -n 's/^       \(go .*\)$/\1/p' <<<"$section")
((${#lines[@]} == 2)) || fail "README.md has ${#lines[@]} commands for an app"
for line in "${lines[@]}"; do
	read -ra words <<<"${line//VERSION/$version}"
	[[ $line != *" -app "* ]] || words+=("${build[@]}")
	says "" "${words[@]}"
done
go build -o app .
says "sparse only" ./app

say "the command, outside a checkout"
cd "$dir"
refuses 1 "go run github.com/lesskv/lesskv/patches@VERSION -install" go install "github.com/lesskv/lesskv/cmd/lesskv@$version"
read -ra words <<<"$(sed -n "s/^    \(go run .*@VERSION -install\)$/\1/p" lesskv/docs/commands.md)"
says "lesskv: installed $GOPATH/bin/lesskv" "${words[@]//VERSION/$version}" "${build[@]}"
PATH=$GOPATH/bin:$PATH
cp app/model.gguf .
says "$version" lesskv version
says "LESS is the unmodified runtime to" lesskv doctor
says "LESS           yes" lesskv inspect model.gguf
says "lesskv.Enable(lesskv.Config{" lesskv plan -m model.gguf --memory 8G -c 32k
says "sparse only" lesskv run -m model.gguf -n 8 "func main() {"
printf 'func main() {\n/regen\n/stats\n' | says "full cache" lesskv chat -m model.gguf -n 8

say "wrong input to each"
for command in plan inspect chat run tune train verify bench merge import doctor version; do
	refuses 2 "see lesskv $command -h" lesskv $command --no-such-flag
done
echo text >text
for args in "plan -m" "chat -m" "run x -m" "tune -d text -m" "train -d text -m" "verify -d text -m" "inspect" "merge -o o.gguf"; do
	refuses 1 "none.gguf" lesskv $args none.gguf
	refuses 1 "lesskv ${args%% *}: " lesskv $args text
done
refuses 2 "no shape" lesskv bench -m none.gguf
refuses 3 "nothing fits" lesskv plan -m model.gguf --memory 1M
say "all of it is as README.md says"
