#!/bin/sh
# Makes docs/screens: what plan and chat show on a terminal of 80 columns, with NO_COLOR (.txt) and in colour (.ansi, to be shown with cat).
# Needs the assembled runtime and tmux: integration/screens.sh
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
session=lesskv-screens-$$
trap 'tmux -L "$session" kill-server 2>/dev/null || true; rm -rf "$dir"' EXIT
go build -o "$dir/lesskv" ./cmd/lesskv
mkdir -p docs/screens

keys() { tmux -L "$session" send-keys -t 0 "$1" Enter; }
wait_for() { # times text
    n=0
    while [ "$(tmux -L "$session" capture-pane -p -t 0 | grep -c "$2")" -lt "$1" ]; do
        n=$((n + 1))
        [ $n -lt 600 ] || { echo "no $2 on the screen:" >&2; tmux -L "$session" capture-pane -p -t 0 >&2; exit 1; }
        sleep 0.1
    done
}
shoot() { # name, flags of capture-pane
    name=$1
    shift
    tmux -L "$session" capture-pane -p -t 0 "$@" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}' > "docs/screens/$name"
}

for colour in txt ansi; do
    escapes="" no=1
    if [ $colour = ansi ]; then escapes=-e no=""; fi
    tmux -L "$session" new-session -d -x 80 -y 40 "PATH=$dir:$PATH NO_COLOR=$no PS1='$ ' sh"
    wait_for 1 '^\$' # the shell's prompt
    keys "lesskv plan --memory 64M -c 2k,32k -t 2"
    wait_for 1 'a text ends there'
    [ $colour = ansi ] || shoot plan.txt # it has none
    keys "clear; lesskv chat --temp 0 -t 1 -n 24 --system 'package main'"
    wait_for 1 '^>'
    keys "func main() {"
    wait_for 1 'checkpoints'
    keys "/regen"
    wait_for 2 'checkpoints'
    keys "/stats"
    wait_for 1 'full cache'
    shoot chat.$colour $escapes
    keys "/quit"
    tmux -L "$session" kill-server
done
