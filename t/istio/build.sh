#!/bin/bash
# build.sh istiod|python|envoy: builds or installs what the yard runs, if it is missing, and prints its path.
#   istiod   istiod/ by go (some minutes and 2 GB of build cache, once)
#   python   a Python that has what requirements.txt names
#   envoy    Envoy, which is among that
# Kept in $AMESH_CACHE (default .cache beside this file), under names that change with the sources.
# Exit code 77, with the reason in one line, if it cannot be had here.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${AMESH_CACHE:-$here/.cache}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
exec 9>"$cache/lock"
flock 9

cannot() { echo "could not build $1: $2" >&2; exit 77; }
last() { echo "$(grep -v '^ *$' "$1" | tail -n1 | cut -c1-300) (log: $1)"; }
digest() { sha256sum | cut -c1-12; }

environment() {
  local venv log=$cache/python.log
  venv=$cache/python-$( (python3 -V; cat "$here/requirements.txt") | digest)
  if [ ! -e "$venv/.done" ]; then
    echo "installing the Python environment (once; log: $log)" >&2
    { python3 -m venv --clear "$venv" &&
      "$venv/bin/pip" install --disable-pip-version-check -r "$here/requirements.txt"; } >"$log" 2>&1 ||
      cannot "the Python environment" "$(last "$log")"
    touch "$venv/.done"
  fi
  echo "$venv"
}

case ${1-} in
istiod)
  out=$cache/istiod-$(cat "$here"/istiod/* | digest) log=$cache/istiod.log
  if [ ! -x "$out" ]; then
    command -v go >/dev/null || cannot istiod 'there is no "go" on PATH (1.26 or newer)'
    echo "building istiod (some minutes, once; log: $log)" >&2
    (cd "$here/istiod" && go build -trimpath -buildvcs=false -ldflags="-s -w" -o "$out.new" .) >"$log" 2>&1 ||
      cannot istiod "$(last "$log")"
    mv "$out.new" "$out"
  fi
  echo "$out" ;;
python) venv=$(environment); echo "$venv/bin/python" ;;
envoy) venv=$(environment); echo "$venv"/lib/python3*/site-packages/envoy/_bin/envoy ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
