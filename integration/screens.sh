#!/bin/sh
# Makes docs/screens: what plan, chat, train and verify show on a terminal of 80 columns, with NO_COLOR (.txt) and, where it differs, in colour
# (.ansi, to be shown with cat); and a recording of chat (chat.gif). Needs the assembled runtime and tmux; half a minute: integration/screens.sh
set -euf
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
session=0 # a tmux server of its own for each, as one that ends takes a moment
trap 'tmux -L "$session" kill-server 2>/dev/null || true; rm -rf "$dir"' EXIT
go build -o "$dir/lesskv" ./cmd/lesskv
go build -o "$dir/screencast" ./integration/screencast
mkdir -p docs/screens "$dir/work" "$dir/frames"
cp integration/testdata/gopher-5m.gguf "$dir/work"
head -c 30000 integration/testdata/heldout.txt > "$dir/work/text.txt"
tail -c 20000 integration/testdata/heldout.txt > "$dir/work/book.txt"

begin() { # rows, NO_COLOR
    session=lesskv-screens-$$-$((${session##*-} + 1))
    tmux -L "$session" new-session -d -x 80 -y "$1" "cd $dir/work && PATH=$dir:$PATH NO_COLOR=$2 PS1='$ ' sh"
    wait_for 1 '^\$' # the shell's prompt
}
end() { tmux -L "$session" kill-server; }
keys() { tmux -L "$session" send-keys -t 0 "$1" Enter; }
screen() { tmux -L "$session" capture-pane -p -t 0 "$@"; }
wait_for() { # times text
    n=0
    while [ "$(screen | grep -c "$2")" -lt "$1" ]; do
        n=$((n + 1))
        [ $n -lt 400 ] || { echo "no $2 on the screen:" >&2; screen >&2; exit 1; }
        sleep 0.1
    done
}
shoot() { # name, flags of capture-pane
    name=$1
    shift
    screen "$@" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}' > "docs/screens/$name"
}

for colour in txt ansi; do
    escapes="" no=1
    if [ $colour = ansi ]; then escapes=-e no=""; fi
    begin 40 "$no"
    keys "lesskv plan --memory 64M -c 2k,32k -t 2"
    wait_for 1 'its output gets worse'
    shoot plan.$colour $escapes
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
    wait_for 1 '^\$'
    keys "clear; lesskv train -m gopher-5m.gguf -d text.txt -c 512 --steps 300 -t 1"
    wait_for 1 'layer .: [0-9]'
    shoot train-running.$colour $escapes
    wait_for 1 'were recording'
    shoot train.$colour $escapes
    rm -f "$dir"/work/gopher-5m.lesskv.*
    keys "clear; lesskv verify -m gopher-5m.gguf -w none -d book.txt -c 512 -b 64 --windows 2 --policy peak --method q8_0,window,sparse -n 16 --recall none -t 1"
    wait_for 1 'held-64.png'
    shoot verify.$colour $escapes
    rm -rf "$dir/work/gopher-5m.verify"
    end
done
for name in plan chat train-running train verify; do # what has no colour is there once
    grep -q "$(printf '\033')" "docs/screens/$name.ansi" || rm "docs/screens/$name.ansi"
done

# The recording: the text grows, the memory does not.
begin 24 ""
(
    i=1000
    while screen -e > "$dir/frames/$i" 2>/dev/null; do
        i=$((i + 1))
        sleep 0.2
    done
) &
recorder=$!
typing() { # a line as somebody types it
    for word in $1; do
        tmux -L "$session" send-keys -t 0 -l -- "$word "
        sleep 0.3
    done
    tmux -L "$session" send-keys -t 0 BSpace Enter
}
typing "lesskv chat -n 64 --temp 0.7 -s 3 -t 1"
wait_for 1 '^>'
for turn in "func main() {" "func (s *Server) Close() error {" "type Reader struct {" "/regen" "func Copy(dst Writer, src Reader) error {"; do
    typing "$turn"
    sleep 1.5
done
end
wait "$recorder"
rm "$dir/frames/$(ls "$dir/frames" | tail -1)" # of a terminal that was gone
"$dir/screencast" -o docs/screens/chat.gif $(find "$dir/frames" -type f | sort)
