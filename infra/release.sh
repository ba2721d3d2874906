#!/usr/bin/env bash
# Builds the program as it is given out: target/release/packmirror, and beside it packmirror.debug with the line tables, which
# backtraces and profilers find by themselves while the two lie in one directory. Needs binutils.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --config 'profile.release.debug="line-tables-only"' --config 'profile.release.strip="none"' "$@"
cd "${CARGO_TARGET_DIR:-target}/release"
objcopy --only-keep-debug --compress-debug-sections packmirror packmirror.debug
objcopy --strip-all --remove-section=.gnu_debuglink --add-gnu-debuglink=packmirror.debug packmirror
ls -l packmirror packmirror.debug
