#!/usr/bin/env bash
# The Autobahn WebSocket test suite against the server's echo endpoint.
#
#   scripts/conformance.sh [--parallel N] [--tls] [--cases LIST] [--url URL]
#
#   --parallel N   run the suite N times at once (default 1)
#   --tls          over wss://, with a certificate that the server makes itself. The suite checks no certificate: this
#                  is about what TLS does to frames, their pieces and their end. tests/ is about whom a client trusts
#   --cases LIST   case patterns joined by commas, such as '1.*,7.3.*' (default: all but compression and bulk)
#   --url URL      test this endpoint instead of a server started here
#
# Every case must behave, and be closed with the code, as scripts/conformance/expected.txt says.
# The suite needs CPython 2.7: $PY27, python2.7, or one of pyenv's. Without it the run is skipped, except where CI=true.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

suite=autobahntestsuite==25.10.1 # pins its own dependencies
parallel=1
# 9 sends messages over the default limit of 64 KiB; 12 and 13 are compression, which the server does not offer.
cases='1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*'
url=
name=ws
server=(target/release/tidewire --listen 127.0.0.1:0 --enable-echo)
while (($#)); do
  case $1 in
    --parallel) parallel=${2:?"--parallel needs a number"} && shift 2 ;;
    --tls) name=wss && shift ;;
    --cases) cases=${2:?"--cases needs a list"} && shift 2 ;;
    --url) url=${2:?"--url needs an address"} && shift 2 ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
done
[[ $parallel =~ ^[1-9][0-9]?$ ]] || die "--parallel takes 1 to 99, not '$parallel'"
[[ -z $url || $name == ws ]] || die "--tls is for the server started here; give --url a wss:// address instead"

# Prints the path of a CPython 2.7, or nothing.
find_python27() {
  local candidate
  for candidate in "${PY27:-}" python2.7 "$(pyenv root 2>/dev/null || true)"/versions/2.7.*/bin/python; do
    # pyenv's shim answers to every name: only a python that runs counts.
    if [[ -n $candidate ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

python27=$(find_python27)
if [[ -z $python27 ]]; then
  say "conformance: skipped, no CPython 2.7 here (set PY27 to one)"
  [[ ${CI:-} == true ]] && exit 1
  exit 0
fi

wstest=$TOOLS/wstest/bin/wstest
if [[ $(cat "$TOOLS/wstest/.complete" 2>/dev/null) != "$suite" ]]; then
  # 20.21 is the last virtualenv that makes environments for Python 2.7; it leaves that Python itself untouched.
  venv=$(python_venv virtualenv 'virtualenv<20.22')
  rm -rf "$TOOLS/wstest"
  "$venv/bin/virtualenv" --quiet --python "$python27" "$TOOLS/wstest"
  "$TOOLS/wstest/bin/pip" install --quiet --no-python-version-warning --disable-pip-version-check "$suite"
  echo "$suite" >"$TOOLS/wstest/.complete"
fi

reports=$PWD/target/conformance/$name
rm -rf "$reports"
mkdir -p "$reports"

runs=()
trap 'for pid in "${runs[@]}"; do kill "$pid" 2>/dev/null || true; done; stop_server || true' EXIT

if [[ -z $url ]]; then
  cargo build --quiet --release --locked --bin tidewire
  SERVER_LOG=$reports/server.log
  [[ $name == ws ]] || server+=(--self-signed "$reports/trial.pem")
  start_server "${server[@]}"
  [[ $SERVER_URL == "$name"://* ]] || die "the server serves $SERVER_URL, not $name://"
  url=${SERVER_URL%/ws}/echo
fi

for ((run = 1; run <= parallel; run++)); do
  out=$reports/$run
  mkdir "$out"
  python3 - "$out" "$url" "$cases" <<'PYTHON'
import json, sys
out, url, cases = sys.argv[1:]
spec = {
    "outdir": out,
    "servers": [{"agent": "tidewire", "url": url}],
    "cases": cases.split(","),
    "exclude-cases": [],
    "exclude-agent-cases": {},
}
json.dump(spec, open(out + "/spec.json", "w"))
PYTHON
  # The suite litters its working directory.
  (cd "$out" && exec "$wstest" --mode fuzzingclient --spec spec.json) >"$out/wstest.log" 2>&1 </dev/null &
  runs+=($!)
done

failed=0
for ((run = 1; run <= parallel; run++)); do
  wait "${runs[run - 1]}" || say "run $run: wstest ended with status $?"
  python3 scripts/conformance/check.py "$reports/$run" --cases "$cases" || failed=1
done
runs=()

if [[ -n ${SERVER_PID:-} ]]; then
  stop_server || { say "the server ended with status $? (log: $SERVER_LOG)" && failed=1; }
fi
exit "$failed"
