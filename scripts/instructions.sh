#!/usr/bin/env bash
# Instructions in user space for a delivery, counted by callgrind, against benches/instructions/counts.txt.
#
#   scripts/instructions.sh            fails where a count is more than 5 % off, up or down
#   scripts/instructions.sh --update   writes the counts instead; say in the commit why they changed
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

committed=benches/instructions/counts.txt
tolerance_percent=5

case ${1:-} in
  "" | --update) mode=${1:-} ;;
  -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
  *) die "unknown argument $1 (see --help)" ;;
esac
command -v valgrind >/dev/null || apt_install valgrind

# The whole workspace, as everywhere: alone it would be built with other features, and so would all that it uses.
cargo build --release --locked --quiet --workspace
bench=target/release/instructions

# count ROOM: prints its instructions for a delivery.
count() {
  local out counted deliveries
  out=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no \
    --toggle-collect='instructions::measured*' "$bench" "$1" 2>&1)
  counted=$(sed -n 's/^==[0-9]*== Collected : \([0-9]*\)$/\1/p' <<<"$out")
  deliveries=$(sed -n "s/^$1 \([0-9]*\)\$/\1/p" <<<"$out")
  [[ -n $counted && -n $deliveries && $counted -gt 0 ]] || die "callgrind counted nothing:"$'\n'"$out"
  echo $((counted / deliveries))
}

failed=0
counts=()
for room in narrow wide packed; do
  now=$(count "$room")
  counts+=("$room $now")
  [[ $mode == --update ]] && continue
  before=$(sed -n "s/^$room \([0-9]*\)\$/\1/p" "$committed")
  [[ -n $before ]] || die "$committed has no count for '$room': run scripts/instructions.sh --update"
  off=$((100 * (now - before)))
  if ((off > tolerance_percent * before || -off > tolerance_percent * before)); then
    say "instructions: $room takes $now for a delivery, $committed says $before"
    failed=1
  else
    echo "instructions: $room $now (committed: $before)"
  fi
done
if [[ $mode == --update ]]; then
  printf '%s\n' "${counts[@]}" >"$committed"
  cat "$committed"
elif ((failed)); then
  die "more than $tolerance_percent % off: find out why, then scripts/instructions.sh --update, with the reason in the commit"
fi
