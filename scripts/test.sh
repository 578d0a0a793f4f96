#!/usr/bin/env bash
# The test command: everything that a change must pass. CI runs the same (.ci/run).
#
#   scripts/test.sh              all steps, in order; the first failure ends the run
#   scripts/test.sh STEP...      only these
#   scripts/test.sh --list       names of the steps
#
# Needs a Rust toolchain, Python 3, and on Debian root or sudo for what is missing. Tools go to target/tools, the full
# output of each step to target/gate/STEP.log.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

steps=(format clippy tests benches docs peers deny msrv fuzz release instructions conformance endpoints load)

# Versions of the tools that are built here, so that the same commit gives the same verdict next year.
cargo_deny=0.20.2
cargo_fuzz=0.13.2
hdrhistogram=hdrhistogram==0.10.8 # the foreign reader of /api/latency.hlog

logs=$PWD/target/gate

# note TEXT: says aloud that something was not checked. The summary repeats it, from the step's log.
note() {
  say "note: $1"
}

# cargo_tool NAME VERSION: installs a cargo subcommand into TOOLS. Unoptimised: it builds in a quarter of the time.
cargo_tool() {
  [[ $("$TOOLS/bin/$1" --version 2>/dev/null) == "$1 $2" ]] && return
  say "installing $1 $2"
  # A target folder beside the project's own leaves that one's lock and cache alone.
  CARGO_PROFILE_DEV_DEBUG=0 cargo install "$1" --version "=$2" --locked --quiet --profile dev --root "$TOOLS" \
    --target-dir "$TOOLS/build" --force
  rm -rf "$TOOLS/build"
}

# has_nightly: whether a nightly toolchain is installed.
has_nightly() {
  command -v rustup >/dev/null && rustup toolchain list | grep -q '^nightly'
}

# --- what each step needs ---------------------------------------------------------------------------------------------

prepare() {
  command -v cargo >/dev/null || die "no cargo: install a Rust toolchain first"
  command -v cc >/dev/null || apt_install gcc libc6-dev
}

prepare_format() {
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
}

prepare_clippy() {
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
}

# The brokers of the tests, and a proxy. Their packages start a service each where there is an init system; the tests use none of it,
# so a binary that is on the PATH already will do.
prepare_tests() {
  local path=$PATH:/usr/sbin name
  for name in redis-server nats-server nginx; do
    PATH=$path command -v "$name" >/dev/null || apt_install "$name"
  done
}

prepare_deny() {
  cargo_tool cargo-deny "$cargo_deny"
}

prepare_fuzz() {
  if has_nightly; then
    cargo_tool cargo-fuzz "$cargo_fuzz"
  fi
}

prepare_conformance() {
  # Only older Debians have it; where there is none, conformance.sh looks elsewhere and says what it found.
  if ! command -v python2.7 >/dev/null && [[ -z ${PY27:-} ]] && apt_has python2.7; then
    apt_install python2.7
  fi
}

prepare_endpoints() {
  python_venv hdrhistogram "$hdrhistogram" >/dev/null
  command -v promtool >/dev/null || [[ -x $TOOLS/usr/bin/promtool ]] && return
  # Unpacked, not installed: the package would start a monitoring service, and this needs no root.
  say "unpacking promtool"
  local dir
  dir=$(mktemp -d)
  apt_has prometheus || die "no package prometheus here: put a promtool on the PATH"
  (cd "$dir" && apt-get download -qq prometheus 2>&1)
  dpkg-deb --fsys-tarfile "$dir"/prometheus_*.deb | tar -x -C "$TOOLS" ./usr/bin/promtool
  rm -r "$dir"
}

# --- the steps --------------------------------------------------------------------------------------------------------

step_format() {
  cargo fmt --all --check
  cargo fmt --manifest-path fuzz/Cargo.toml --check
}

step_clippy() {
  cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
}

# Unit, property, wire and end-to-end tests, documentation examples, and the tidy rules.
step_tests() {
  cargo test --workspace --locked
}

# Every bench once, unmeasured, in the profile of the tests: that they still build and hold their assertions.
step_benches() {
  cargo test --workspace --locked --bench '*'
}

step_docs() {
  RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --workspace --document-private-items --locked --quiet
}

# The servers that Tidewire is measured beside: a workspace of their own, with their own lock.
step_peers() {
  scripts/peers.sh --check
}

step_deny() {
  local deny=("$TOOLS/bin/cargo-deny" --workspace --locked)
  "${deny[@]}" check bans licenses sources
  if timeout 120 "${deny[@]}" fetch db; then
    "${deny[@]}" check --disable-fetch advisories
  else
    note "deny: the advisory database cannot be reached; advisories were not checked"
  fi
}

# The version is stated in Cargo.toml and nowhere else.
step_msrv() {
  local msrv toolchain
  msrv=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  [[ $msrv =~ ^1\.[0-9]+(\.[0-9]+)?$ ]] || die "Cargo.toml states no rust-version, or more than one"
  if [[ $(rustc --version) =~ ^rustc\ ${msrv//./\\.}[.\ ] ]]; then
    say "Rust $msrv is the toolchain in use: every other step is this check"
    cargo check --workspace --locked --quiet
    return
  fi
  toolchain=$(rustup toolchain list 2>/dev/null | grep -m 1 -oE "^${msrv//./\\.}[-.][^ ]*" || true)
  if [[ -z $toolchain ]]; then
    note "msrv: no toolchain $msrv here; 'rustup toolchain install $msrv' adds it"
    return
  fi
  cargo "+$toolchain" check --workspace --locked --quiet --target-dir target/msrv
}

step_fuzz() {
  PATH=$TOOLS/bin:$PATH scripts/fuzz.sh 10
}

step_release() {
  cargo build --workspace --release --locked --quiet
}

step_instructions() {
  step_release
  scripts/instructions.sh
}

step_conformance() {
  scripts/conformance.sh --parallel 3
  scripts/conformance.sh --parallel 3 --tls
}

# fetch URL FILE
fetch() {
  python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' "$1" "$2"
}

# What a newcomer sees first, and what the server serves beside /ws, read by tools that are not ours.
step_endpoints() {
  step_release
  local base promtool
  promtool=$(command -v promtool || echo "$TOOLS/usr/bin/promtool")
  SERVER_LOG=$logs/endpoints.server.log
  trap 'stop_server || true' EXIT
  start_server target/release/tidewire --listen 127.0.0.1:0
  base=http${SERVER_URL#ws}
  base=${base%/ws}
  timeout 30 target/release/tidewire sub --url "$SERVER_URL" --count 50 'host.>'
  fetch "$base/metrics" "$logs/metrics.txt"
  "$promtool" check metrics <"$logs/metrics.txt"
  fetch "$base/api/latency.hlog" "$logs/latency.hlog"
  "$(python_venv hdrhistogram "$hdrhistogram")/bin/python" scripts/check-hlog.py "$logs/latency.hlog"
  stop_server || die "the server ended with status $?"
}

step_load() {
  step_release
  target/release/loadtest run --duration 3 steady slow_reader
  target/release/loadtest run --duration 3 --tls --token steady
  # The shortest there is: whether the promises hold beside clients that misbehave. A leak takes the usual ten minutes.
  target/release/loadtest soak --duration 20 --json "$logs/soak.json"
  if command -v redis-server > /dev/null; then
    target/release/loadtest cluster --brokers redis,seed --duration 1 --json "$logs/cluster.json"
  else
    note "loadtest cluster was not run: redis-server is not installed"
  fi
}

# --- the run ----------------------------------------------------------------------------------------------------------

# Passes on only what a person wants to see of a step that went well; the log has the rest.
result_lines() {
  grep --line-buffered -E '^(test result:|note:|autobahn:|conformance:|fuzz:|instructions:|bans ok|advisories ok)' || true
}

run_step() {
  local name=$1 log=$logs/$1.log begun=$SECONDS status
  printf '== %s\n' "$name"
  # A new shell, because `set -e` does not hold within a condition.
  set +e
  (
    set -e
    "step_$name"
  ) </dev/null 2>&1 | tee "$log" | result_lines
  status=${PIPESTATUS[0]}
  set -e
  if ((status != 0)); then
    printf '%s\n' "-- the end of $log:"
    tail -n 80 "$log"
    printf '== %s FAILED with status %d after %d s\n' "$name" "$status" $((SECONDS - begun))
    exit 1
  fi
  summary+=("$(printf '%-12s %5d s' "$name" $((SECONDS - begun)))")
  mapfile -t -O ${#notes[@]} notes < <(grep -E '^note: |^[a-z]+: skipped' "$log" || true)
}

main() {
  local selected=("$@") summary=() notes=() step
  case ${1:-} in
    --list) printf '%s\n' "${steps[@]}" && return ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && return ;;
    "") selected=("${steps[@]}") ;;
  esac
  for step in "${selected[@]}"; do
    [[ " ${steps[*]} " == *" $step "* ]] || die "no step '$step'; there are: ${steps[*]}"
  done
  mkdir -p "$logs"

  printf '== prepare\n'
  prepare
  for step in "${selected[@]}"; do
    if declare -F "prepare_$step" >/dev/null; then "prepare_$step"; fi
  done
  summary+=("$(printf '%-12s %5d s' prepare "$SECONDS")")

  for step in "${selected[@]}"; do run_step "$step"; done

  printf '== all %d steps passed in %d s\n' "${#selected[@]}" "$SECONDS"
  printf '   %s\n' "${summary[@]}"
  if ((${#notes[@]})); then printf '   %s\n' "${notes[@]}"; fi
  if [[ -f $logs/tests.log && " ${selected[*]} " == *" tests "* ]]; then
    awk '/^test result:/ { passed += $4; failed += $6 } END { printf "tests: %d passed, %d failed\n", passed, failed }' \
      "$logs/tests.log"
  fi
}

main "$@"
