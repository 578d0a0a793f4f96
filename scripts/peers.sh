#!/usr/bin/env bash
# Tidewire beside other servers, one machine, one run: each server on one CPU, the generator on another.
#
#   scripts/peers.sh [--quick] [--repetitions N] [--only NAME,...] [--scenarios NAME,...]
#   scripts/peers.sh --check     formats, lints and tests loadtest/peers and measures nothing
#
#   --quick           one repetition, with windows of a second
#   --repetitions N   medians of N (default 5); what takes long is run fewer times, and the result says so
#   --only            these servers: tidewire, tidewire-0ms, limit, limit-per-message, tung-batched, axum-plain, uws,
#                     uws-deferred, nats-server, mosquitto, ws, fastapi
#   --scenarios       these scenarios; `target/release/loadtest peers --list` prints them
#
# Installs what is missing: Debian packages, Python environments and npm packages below target/tools. What cannot be had is
# left out, and the result says why. Writes target/peers/peers.json, peers.html, peers.txt and peers.md.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

out=$PWD/target/peers
crate=loadtest/peers
built=$PWD/target/peers-build
only=
arguments=()
while (($#)); do
  case $1 in
    --quick) arguments+=(--quick) && shift ;;
    --repetitions) arguments+=(--repetitions "${2:?"--repetitions needs a number"}") && shift 2 ;;
    --only) only=${2:?"--only needs names"} && arguments+=(--only "$2") && shift 2 ;;
    --scenarios) arguments+=(--scenarios "${2:?"--scenarios needs names"}") && shift 2 ;;
    --check)
      cargo fmt --manifest-path "$crate/Cargo.toml" --check
      cargo clippy --manifest-path "$crate/Cargo.toml" --target-dir "$built" --all-targets --locked --quiet -- -D warnings
      cargo test --manifest-path "$crate/Cargo.toml" --target-dir "$built" --locked --quiet
      exit
      ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
done
mkdir -p "$out"

# One line of JSON for each server, and one for each that is left out.
programs=$out/programs.jsonl
: >"$programs"

# wanted NAME: whether --only names it, or nothing.
wanted() {
  [[ -z $only || ,$only, == *",$1,"* ]]
}

# json KEY=VALUE...: an object of strings.
json() {
  python3 -c 'import json, sys; print(json.dumps(dict(it.split("=", 1) for it in sys.argv[1:])))' "$@"
}

# add NAME DIALECT VERSION NOTE CONFIG COMMAND...: a server that can be started. CONFIG is empty where there is none.
add() {
  local name=$1 dialect=$2 version=$3 note=$4 config=$5
  shift 5
  wanted "$name" || return 0
  python3 - "$name" "$dialect" "$version" "$note" "$config" "$@" >>"$programs" <<'PYTHON'
import json, sys
name, dialect, version, note, config, *command = sys.argv[1:]
entry = {"name": name, "dialect": dialect, "version": version, "note": note, "command": command}
if config:
    entry["config"] = config
print(json.dumps(entry))
PYTHON
}

# skip NAME WHY
skip() {
  wanted "$1" || return 0
  say "peers: $1 is left out: $2"
  json "name=$1" "skipped=$2" >>"$programs"
}

# any_wanted NAME...
any_wanted() {
  local name
  for name in "$@"; do
    if wanted "$name"; then return 0; fi
  done
  return 1
}

# debian COMMAND PACKAGE: whether the command is there or could be installed. The service that some packages start is not
# wanted here: nothing is started.
debian() {
  command -v "$1" >/dev/null && return
  apt_has "$2" || return 1
  (RUNLEVEL=1 apt_install "$2") || return 1
  command -v "$1" >/dev/null
}

# version_in LOCKFILE CRATE: the newest, where there are two.
version_in() {
  sed -n "/^name = \"$2\"$/{n;s/^version = \"\(.*\)\"$/\1/p}" "$1" | sort -V | tail -n 1
}

add_rust() {
  local names=(limit limit-per-message axum-plain tung-batched) name
  any_wanted "${names[@]}" || return 0
  if ! cargo build --manifest-path "$crate/Cargo.toml" --target-dir "$built" --release --locked --quiet; then
    for name in "${names[@]}"; do skip "$name" "$crate did not build"; done
    return 0
  fi
  local bin=$built/release axum tung
  axum=$(version_in "$crate/Cargo.lock" axum)
  tung=$(version_in "$crate/Cargo.lock" tokio-tungstenite)
  add limit bare "" "epoll, no protocol, one send for all that is there: no sequence, no gaps" "" "$bin/limit"
  add limit-per-message bare "" "the same with a send for each message" "" "$bin/limit" --per-message
  add axum-plain raw "$axum" "broadcast channel, one send for each message: no sequence, no gaps" "" "$bin/tung_plain"
  add tung-batched raw "$tung" "tokio-tungstenite, broadcast channel, one flush for all that is there: no sequence, no gaps" \
    "" "$bin/tung_batched"
}

add_socketify() {
  any_wanted uws uws-deferred || return 0
  local venv version requirements
  mapfile -t requirements <"$crate/socketify/requirements.txt"
  # The library is linked with libuv, which its package does not bring.
  if ! ldconfig -p | grep -q 'libuv\.so\.1 ' && ! (apt_has libuv1 && apt_install libuv1); then
    skip uws "no libuv here" && skip uws-deferred "no libuv here"
    return 0
  fi
  if ! venv=$(python_venv socketify "${requirements[@]}") ||
    ! "$venv/bin/python" -c 'import socketify' 2>/dev/null; then
    skip uws "socketify could not be installed" && skip uws-deferred "socketify could not be installed"
    return 0
  fi
  version=$("$venv/bin/python" -c 'import importlib.metadata as m; print("socketify", m.version("socketify"))')
  add uws raw "$version" "uWebSockets, publish in the handler: topics, no sequence, no gaps" \
    "" "$venv/bin/python" "$PWD/$crate/socketify/main.py"
  add uws-deferred raw "$version" "uWebSockets, publish after the reads, so that it writes 32 at once: topics, no sequence, no gaps" \
    "" "$venv/bin/python" "$PWD/$crate/socketify/main.py" --deferred
}

add_fastapi() {
  wanted fastapi || return 0
  local venv version requirements
  mapfile -t requirements <"$crate/fastapi/requirements.txt"
  if ! venv=$(python_venv fastapi "${requirements[@]}"); then
    skip fastapi "it could not be installed"
    return 0
  fi
  version=$("$venv/bin/python" -c '
import importlib.metadata as m
print(", ".join(f"{name} {m.version(name)}" for name in ("fastapi", "uvicorn", "uvloop", "httptools", "websockets")))')
  add fastapi raw "$version" "a list of connections, one await for each: no sequence, no gaps" \
    "" "$venv/bin/python" "$PWD/$crate/fastapi/main.py"
}

add_ws() {
  wanted ws || return 0
  local dir=$TOOLS/peer-ws version
  if ! debian node nodejs || ! debian npm npm; then
    skip ws "no Node.js here"
    return 0
  fi
  if ! cmp -s "$crate/ws/package.json" "$dir/package.json" || [[ ! -d $dir/node_modules/ws ]]; then
    rm -rf "$dir" && mkdir -p "$dir"
    cp "$crate/ws/package.json" "$dir/"
    if ! (cd "$dir" && npm install --silent --no-audit --no-fund --no-package-lock >&2); then
      rm -rf "$dir"
      skip ws "npm could not install it"
      return 0
    fi
  fi
  # Beside its libraries, where Node.js looks for them.
  cp "$crate/ws/server.js" "$dir/"
  # shellcheck disable=SC2016 # It is JavaScript's template, not the shell's.
  version=$(cd "$dir" && node -p '
const of = (name) => { try { return `, ${name} ${require(name + "/package.json").version}` } catch { return "" } };
`ws ${require("ws/package.json").version}${of("bufferutil")}, Node.js ${process.versions.node}`')
  add ws raw "$version" "a loop over all clients: no sequence, no gaps" "" "$(command -v node)" "$dir/server.js"
}

add_brokers() {
  if ! wanted nats-server; then
    :
  elif debian nats-server nats-server; then
    add nats-server nats "$(nats-server --version | sed 's/^nats-server: //')" \
      "its WebSocket listener: subjects, no sequence, no gaps; cuts a slow client off" \
      "$PWD/$crate/nats-server.conf" "$(command -v nats-server)" -c '{config}'
  else
    skip nats-server "no package nats-server here"
  fi
  # Debian has it in a folder that only root has on its path.
  PATH=$PATH:/usr/sbin
  if ! wanted mosquitto; then
    :
  elif debian mosquitto mosquitto; then
    add mosquitto mqtt "$(mosquitto -h 2>/dev/null | sed -n '1s/^mosquitto version //p')" \
      "its WebSocket listener, QoS 0: topics, no sequence, no gaps" \
      "$PWD/$crate/mosquitto.conf" "$(command -v mosquitto)" -c '{config}'
  else
    skip mosquitto "no package mosquitto here"
  fi
}

say "peers: building and installing what is missing"
cargo build --workspace --release --locked --quiet
add_rust
add_socketify
add_fastapi
add_ws
add_brokers

target/release/loadtest peers --programs "$programs" --json "$out/peers.json" --text "$out/peers.txt" \
  --markdown "$out/peers.md" "${arguments[@]}"
target/release/loadtest report "$out/peers.json" -o "$out/peers.html"
say "peers: $out/peers.html"
