#!/bin/sh
# Runs every fuzz target for a short time: scripts/fuzz.sh [SECONDS], 20 if not said. New inputs go to fuzz/corpus/TARGET,
# which git ignores; a crash goes to fuzz/artifacts/TARGET and makes the script fail.
#
# libFuzzer needs a nightly toolchain and cargo-fuzz. Where they can't be had the script says so and succeeds: the same
# checks run in tests/fuzz_smoke.rs on the stable toolchain.
set -eu

seconds=${1:-20}
case $seconds in
    '' | *[!0-9]*) echo "usage: scripts/fuzz.sh [SECONDS]" >&2; exit 64 ;;
esac
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz: skipped, there is no nightly toolchain (rustup toolchain install nightly)"
    exit 0
fi
if ! cargo +nightly fuzz --version >/dev/null 2>&1 && ! cargo install cargo-fuzz --locked; then
    echo "fuzz: skipped, cargo-fuzz is not there and could not be installed"
    exit 0
fi

# Longer than the largest message that the targets take, so that limits are passed too; short enough to be fast.
max_len=4096
# Freed memory that the sanitizer holds back to find late uses of it would count against the limit on memory.
export ASAN_OPTIONS="quarantine_size_mb=32${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
for target in $(cargo +nightly fuzz list); do
    echo "fuzz: $target for $seconds s"
    mkdir -p "fuzz/corpus/$target"
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=512 -max_len="$max_len" -timeout=5 \
        -verbosity=0 -print_final_stats=1
done
