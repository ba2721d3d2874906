#!/usr/bin/env bash
# Builds the fuzz targets and runs each for a short while, starting from its seeds; a finding ends it.
#   fuzz/run.sh [SECONDS [TARGET...]]        each target for so long (15), or for so many inputs as are known to be fine
# The seed is fixed, so that a finding is a change's fault; PACKMIRROR_TEST_SEED=random draws one, and does not stop at a number.
# Needs stable Rust and a C++ compiler (for libFuzzer). The flags are those of `cargo fuzz --sanitizer none`, which
# does the same with more comfort; a finding lies in fuzz/artifacts/TARGET and is run again by naming it:
#   cargo fuzz run --sanitizer none TARGET fuzz/artifacts/TARGET/crash-...
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-15}
shift || true
targets=("$@")
seed=${PACKMIRROR_TEST_SEED:-1} runs=300000
[ "$seed" = 1 ] || runs=-1
[ "$seed" != random ] || seed=$((RANDOM * 32768 + RANDOM + 2))
echo "PACKMIRROR_TEST_SEED=$seed"
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' Cargo.toml)

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target the flags do not reach build scripts and macros.
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
	cargo build --release --locked --target "$host" --bins
built=$CARGO_TARGET_DIR/$host/release

# The indexer wants files: better ones that no disk has to keep.
work=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$work"' EXIT
for target in "${targets[@]}"; do
	printf -- '-- %s\n' "$target"
	mkdir -p "$work/$target" "artifacts/$target"
	# What is found on the way goes to the first directory and is thrown away; the seeds stay as they are.
	if ! TMPDIR=$work "$built/$target" -seed="$seed" -runs="$runs" -max_total_time="$seconds" -timeout=10 -max_len=4096 \
		-rss_limit_mb=1024 -artifact_prefix="artifacts/$target/" \
		"$work/$target" "seeds/$target" >"$work/log" 2>&1; then
		cat "$work/log"
		printf 'fuzz/artifacts/%s holds what %s stumbled over\n' "$target" "$target" >&2
		exit 1
	fi
	grep -E '^Done|DONE' "$work/log" || cat "$work/log"
done
