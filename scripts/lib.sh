# Shared by the scripts beside it: source it from the root of the repository, under `set -euo pipefail`.
# shellcheck shell=bash

# Tools that a script installs for itself go here and stay: nothing outside the repository is written.
TOOLS=${TIDEWIRE_TOOLS:-$PWD/target/tools}
mkdir -p "$TOOLS"
TOOLS=$(cd "$TOOLS" && pwd)
# For scripts: the server refuses a variable with its prefix that it does not know.
export -n TIDEWIRE_TOOLS 2>/dev/null || true

# Says it on stderr, so that a script's stdout stays for its result.
say() {
  printf '%s\n' "$*" >&2
}

die() {
  say "error: $*"
  exit 1
}

# Runs a command as root: as it is, or through sudo.
as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    die "'$*' needs root or sudo"
  fi
}

# Refreshes the package lists once in a run; they may be empty on a fresh machine.
apt_lists() {
  [[ -z ${apt_lists_done:-} ]] || return 0
  command -v apt-get >/dev/null || die "no apt-get here: install $* by hand"
  as_root apt-get update -qq >&2
  apt_lists_done=1
}

# apt_has PACKAGE: whether the distribution has it.
apt_has() {
  command -v apt-get >/dev/null || return 1
  apt_lists "$@"
  [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [0-9] ]]
}

# apt_install PACKAGE...: installs Debian packages without questions.
apt_install() {
  apt_lists "$@"
  say "installing $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2
}

# python_venv NAME REQUIREMENT...: prints the folder of a Python 3 environment that has them, made on first use.
python_venv() {
  local dir=$TOOLS/$1
  shift
  if [[ $(cat "$dir/.complete" 2>/dev/null) != "$*" ]]; then
    command -v python3 >/dev/null || apt_install python3
    python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
    rm -rf "$dir"
    python3 -m venv "$dir" >&2
    "$dir/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
    echo "$*" >"$dir/.complete"
  fi
  echo "$dir"
}

# start_server BINARY ARG...: starts the server and waits for the address that it prints.
# Sets SERVER_PID and SERVER_URL (ws://HOST:PORT/ws, or wss:// with TLS). Its log goes to the file SERVER_LOG.
start_server() {
  local line out
  SERVER_URL=
  : >"$SERVER_LOG"
  exec {out}< <(exec "$@" 2>>"$SERVER_LOG")
  SERVER_PID=$!
  while IFS= read -r -t 30 line <&"$out"; do
    if [[ $line =~ wss?://[^[:space:]\"]+ ]]; then
      SERVER_URL=${BASH_REMATCH[0]}
      break
    fi
  done
  if [[ -z $SERVER_URL ]]; then
    stop_server
    tail -n 20 "$SERVER_LOG" >&2
    die "the server printed no ws:// or wss:// address: $*"
  fi
  # Keep the pipe empty and open, or the server's next line would end it.
  cat <&"$out" >>"$SERVER_LOG" &
  exec {out}<&-
}

# Ends the server that start_server started, and waits for it. Returns its exit status; 0 where none runs.
stop_server() {
  local status=0 pid=${SERVER_PID:-}
  [[ -n $pid ]] || return 0
  SERVER_PID=
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid" || status=$?
  return "$status"
}
