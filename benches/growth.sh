#!/usr/bin/env bash
# Whether what a client costs grows with the history: histories of N objects, in each of which only the length differs, and
# the slope of cost over objects, both as logarithms (0: flat, 1: as much as the history).
#
# usage: benches/growth.sh [OBJECTS…]      100,000 to 1,600,000 by default; 10,000,000 takes an hour and 30 GB
# WORK keeps the repositories and buckets for the next run; it needs what benches/serving needs.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 100000 400000 1600000
work=${WORK:-$(mktemp -d)}
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
: >"$work/lines"
for objects in "$@"; do
	# A commit of the generated history brings about six objects.
	cargo bench --quiet --bench serving -- --commits "$((objects / 6))" --files 200 --lines 1 --pulls 0 \
		--work "$work/$objects" --only depth1,increment-1,nothing-new,no-op --rounds 1 >"$work/table"
	held=$(git -C "$work/$objects/repos/primary.git" count-objects -v | awk '/^in-pack/ { print $2 }')
	awk -F ' *[|] *' -v objects="$held" '/ bounded / { print objects "\t" $2 "\t" $4 "\t" $6 "\t" $5 "\t" $13 }' "$work/table" | tee -a "$work/lines" >&2
done
awk -F '\t' '{
	key = $2 "\t" $3; x = log($1); y = log($4 > 0 ? $4 : 0.001); g = log($5)
	if (!(key in n)) order[++rows] = key
	n[key]++; sx[key] += x; sy[key] += y; sg[key] += g; sxx[key] += x * x; sxy[key] += x * y; sxg[key] += x * g
	if (!(key in first)) { first[key] = $4; low[key] = $6 }
	last[key] = $4; high[key] = $6; if (!least || $1 < least) least = $1; if ($1 > most) most = $1
}
END {
	printf "| row | request | CPU ms, %d objects | %d objects | slope | slope of git | anon MB | |\n|---|---|--:|--:|--:|--:|--:|--:|\n", least, most
	for (r = 1; r <= rows; r++) {
		key = order[r]; split(key, name, "\t"); d = n[key] * sxx[key] - sx[key] ^ 2
		slope = d > 0 ? (n[key] * sxy[key] - sx[key] * sy[key]) / d : 0
		theirs = d > 0 ? (n[key] * sxg[key] - sx[key] * sg[key]) / d : 0
		printf "| %s | %s | %s | %s | %.2f | %.2f | %s | %s |\n", name[1], name[2], first[key], last[key], slope, theirs, low[key], high[key]
	}
}' "$work/lines"
