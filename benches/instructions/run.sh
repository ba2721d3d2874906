#!/usr/bin/env bash
# Counts the instructions of the pure hot paths under callgrind, and compares them with what is committed (`budget`).
#   benches/instructions/run.sh              fails if a path takes 5 % more than its budget
#   benches/instructions/run.sh --write      writes the budget anew: after a change that is meant to cost, or that saves
# Needs git and valgrind. The repository is made by arithmetic alone; another version of git may find other deltas in it.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../../target}/instructions
cargo build --quiet --release --locked
program=$CARGO_TARGET_DIR/release/packmirror-instructions

# 800 commits on a line, each tenth of which merges a branch of two; 150 files of 50 lines, of which each commit changes a
# line or two of two.
repo=$work/repo.git
git init -q --bare -b main "$repo"
awk 'function chance(of) { seed = (seed * 16807) % 2147483647; return seed % of }
function change(f,    l, out) {
	for (l = 0; l < 1 + chance(2); l++) text[f, chance(50)] = "changed to " chance(1000000000)
	out = ""
	for (l = 0; l < 50; l++) out = out text[f, l] "\n"
	printf "M 100644 inline d%d/e%d/f%d\ndata %d\n%s\n", f % 5, f % 15, f, length(out), out
}
function commit(ref, from, merged,    n) {
	printf "commit refs/heads/%s\nmark :%d\ncommitter C <c@example.com> %d +0000\ndata 8\ncommit .\n", ref, ++marks, 1700000000 + marks
	if (from) printf "from :%d\n", from
	if (merged) printf "merge :%d\n", merged
	for (n = 0; n < 2; n++) change(chance(150))
	return marks
}
BEGIN {
	seed = 7
	for (f = 0; f < 150; f++) for (l = 0; l < 50; l++) text[f, l] = "line " l " of " f ": " chance(1000000000)
	printf "commit refs/heads/main\nmark :%d\ncommitter C <c@example.com> 1700000000 +0000\ndata 8\ncommit .\n", ++marks
	for (f = 0; f < 150; f++) change(f)
	tip = marks
	for (n = 1; n <= 640; n++) {
		merged = 0
		if (n % 8 == 0) merged = commit("side", commit("side", tip, 0), 0)
		tip = commit("main", tip, merged)
	}
}' | git -C "$repo" fast-import --quiet
git -C "$repo" -c pack.threads=1 repack -adfq

count() { # PATH: prints its instructions
	valgrind --tool=callgrind --callgrind-out-file="$work/out" --collect-atstart=no \
		--toggle-collect='packmirror_instructions::counted*' "$program" "$repo" "$1" >"$work/log" 2>&1 ||
		{ cat "$work/log" >&2; return 1; }
	sed -n 's/^\(summary\|totals\): //p' "$work/out" | tail -n 1
}

git --version
"$program" --list | while IFS= read -r path; do
	printf '%s\t%s\n' "$(count "$path")" "$path"
done >"$work/now"
if [ "${1:-}" = --write ]; then
	cp "$work/now" budget
fi
awk -F '\t' 'NR == FNR { budget[$2] = $1; next }
{
	seen[$2] = 1; of = budget[$2]; ratio = of ? $1 / of : 0
	verdict = !of ? "no budget" : ratio > 1.05 ? "TOO MUCH" : ratio < 0.95 ? "less: run.sh --write keeps it so" : ""
	printf "%14d %14d %6.3f  %s  %s\n", $1, of, ratio, $2, verdict
	if (!of || ratio > 1.05) bad = 1
	if ($1 < 1000) { print "nothing was counted"; bad = 1 }
}
END { for (path in budget) if (!(path in seen)) { print "no such path: " path; bad = 1 }; exit bad }' budget "$work/now"
