#!/usr/bin/env bash
# What a bucket is like after many pushes: N commits, each published before the next one is pushed, through a node that merges
# layers; then two collections with the shortest grace; beside a fresh mirror of the same repository.
#
# usage: benches/pushes.sh [N]          needs git and curl; PACKMIRROR names the program (target/release/packmirror)
set -euo pipefail
pushes=${1:-1000}
program=${PACKMIRROR:-$(dirname "$0")/../target/release/packmirror}
[ -x "$program" ] || { echo "no $program: cargo build --release, or set PACKMIRROR" >&2; exit 1; }
work=$(mktemp -d)
nodes=()
finish() {
	[ ${#nodes[@]} = 0 ] || kill "${nodes[@]}" 2>/dev/null || true
	wait
	rm -rf "$work"
}
trap finish EXIT
export GIT_CONFIG_NOSYSTEM=1 HOME=$work GIT_TERMINAL_PROMPT=0
git config --global safe.directory '*'

# 200 files of which each commit changes one, and a few lines of it; `main` begins at the fifth part of the history.
bare=$work/primary/app.git
git init -q --bare -b main "$bare"
awk -v pushes="$pushes" 'BEGIN {
	srand(7); base = int(pushes / 4) + 20
	for (f = 0; f < 200; f++) for (l = 0; l < 60; l++) text[f, l] = sprintf("line %d of %d: %d", l, f, int(rand() * 1e9))
	for (n = 1; n <= base + pushes; n++) {
		printf "commit refs/heads/main\ncommitter C <c@example.com> %d +0000\ndata 8\ncommit .\n", 1700000000 + n
		from = n == 1 ? 0 : int(rand() * 200); to = n == 1 ? 199 : from
		for (f = from; f <= to; f++) {
			for (c = 0; c < 3; c++) text[f, int(rand() * 60)] = "changed to " int(rand() * 1e9)
			out = ""; for (l = 0; l < 60; l++) out = out text[f, l] "\n"
			printf "M 100644 inline d%d/f%d\ndata %d\n%s\n", f % 10, f, length(out), out
		}
	}
}' | git -C "$bare" fast-import --quiet
mapfile -t commits < <(git -C "$bare" rev-list --reverse main | tail -n "$((pushes + 1))")
git -C "$bare" update-ref refs/heads/main "${commits[0]}"

node() { # NAME FLAG...: starts a node with a bucket of its own, or what is there; its address is in $url, its folder in $at
	at=$work/$1
	shift
	mkdir -p "$at"
	: >"$at/log"
	"$program" serve --primary "$work/primary" --store "$at/store" --cache-dir "$at/cache" --listen 127.0.0.1:0 --log-format text "$@" >"$at/log" 2>&1 &
	nodes+=($!)
	local tries
	for tries in $(seq 300); do
		url=$(sed -n 's,.*listening on \(http://[0-9.:]*\).*,\1,p' "$at/log")
		[ -n "$url" ] && curl -fso /dev/null "$url/readyz" && return
		sleep .1
	done
	cat "$at/log" >&2
	exit 1
}
metric() { # ADDRESS PREFIX: the sum of all lines that begin so
	curl -s "$1/metrics" | awk -v m="$2" 'index($0, m) == 1 { n += $NF } END { printf "%.0f\n", n }'
}
ask() { # ADDRESS: what `git fetch` asks first
	curl -s -o "$work/refs" -H 'Git-Protocol: version=2' -H 'Content-Type: application/x-git-upload-pack-request' \
		--data-binary $'0014command=ls-refs\n00010000' "$1/app.git/git-upload-pack"
}
newest() { # FOLDER: the newest record
	find "$1/store/repos" -path '*/gen/*' -type f ! -name '*#*' | sort | head -n 1
}
published() { # FOLDER OID: waits until its newest record is of this state of the only branch
	local tries want
	want=$(printf '%s refs/heads/main\n' "$2" | sha256sum | cut -d' ' -f1)
	for tries in $(seq 3000); do
		grep -q "\"manifest_digest\":\"$want\"" "$(newest "$1")" 2>/dev/null && return
		sleep .01
	done
	echo "never published: $2" >&2
	exit 1
}
stored() { find "$1/store/$2" -type f -printf '%s\n' | awk '{ n += $1 } END { printf "%d\n", n }'; }
packs() { find "$1/store/blobs" -type f -name '*.pack' -printf '%s\n' | awk '{ n += $1 } END { printf "%d\n", n }'; }
layers() { head -n 1 "$(newest "$1")" | grep -o '"pack":' | wc -l; }
cold() { # FOLDER: milliseconds until a node without a cache has answered its first clone whole
	local from to
	mkdir "$work/cold"
	cp -r "$1/store" "$work/cold/store"
	node cold --compare-every 600s
	from=$(date +%s%N)
	git clone -q --bare "$url/app.git" "$work/clone"
	to=$(date +%s%N)
	git -C "$work/clone" fsck --strict --no-dangling --no-progress
	kill "${nodes[-1]}"; wait "${nodes[-1]}" 2>/dev/null || true
	unset 'nodes[-1]'
	rm -rf "$work/clone" "$work/cold"
	echo "$(((to - from) / 1000000))"
}

short=(--gc-every 24h --gc-grace 2s --limits-transfer 1s)
node many "${short[@]}" --compare-every 600s
many=$at address=$url
git clone -q --bare "$url/app.git" "$work/warm"
ask "$url"
published "$many" "${commits[0]}"
most=0 begun=$SECONDS
before=$(metric "$address" packmirror_sync_bytes_total) first=$(packs "$many")
for n in $(seq "$pushes"); do
	git -C "$bare" update-ref refs/heads/main "${commits[n]}"
	ask "$address"
	published "$many" "${commits[n]}"
	count=$(layers "$many")
	[ "$count" -le "$most" ] || most=$count
	[ $((n % 100)) != 0 ] || echo "$n pushes in $((SECONDS - begun)) s: $count layers, bucket $(stored "$many" .) bytes" >&2
done
pushed=$(($(metric "$address" packmirror_sync_bytes_total) - before))
written=$(metric "$address" packmirror_compaction_written_bytes_total)
# Nothing was deleted yet: what is there is the first pack, the packs of pushes and what was merged.
layered=$(($(packs "$many") - first - written))
# Two collections with the grace between them; records stay for two hours whatever the grace is.
sleep 5
for _ in 1 2; do
	"$program" gc --store "$many/store" "${short[@]:2}" >"$work/gc"
	sleep 5
done
layers=$(layers "$many") blobs=$(stored "$many" blobs) records=$(stored "$many" repos)

node fresh --compare-every 600s
fresh=$at
ask "$url"
git clone -q --bare "$url/app.git" "$work/warm2"
ask "$url"
published "$fresh" "${commits[pushes]}"
fresh_blobs=$(stored "$fresh" blobs)

echo "| | after $pushes pushes | a fresh mirror |"
echo "|---|--:|--:|"
echo "| layers (most) | $layers ($most) | $(layers "$fresh") |"
echo "| bytes of blobs | $blobs | $fresh_blobs |"
echo "| ratio | $(awk "BEGIN { printf \"%.2f\", $blobs / $fresh_blobs }") | 1 |"
echo "| bytes of records, those of two hours | $records | $(stored "$fresh" repos) |"
per() { awk "BEGIN { printf \"%.1f\", $1 / ($2 + 1) }"; }
echo "| bytes pushed, as received and as layers | $pushed, $layered | |"
echo "| merges wrote for each byte of those layers | $(per "$written" "$layered") | |"
echo "| first clone of a node without a cache, ms | $(cold "$many") | $(cold "$fresh") |"
