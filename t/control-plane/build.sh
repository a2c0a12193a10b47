#!/bin/bash
# Builds the program, if its sources changed, into $AMESH_CACHE (default t/istio/.cache), and prints its path.
# Exit code 77, with the reason in one line, if it cannot be built here.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${AMESH_CACHE:-$here/../istio/.cache}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
out=$cache/control-plane-$(cat "$here"/*.go "$here/go.mod" "$here/go.sum" | sha256sum | cut -c1-12)
if [ ! -x "$out" ]; then
  command -v go >/dev/null || { echo "could not build control-plane: no \"go\" on PATH (1.26 or newer)" >&2; exit 77; }
  cd "$here"
  if ! go build -trimpath -buildvcs=false -ldflags="-s -w" -o "$out.$$" . >"$cache/control-plane.log" 2>&1; then
    echo "could not build control-plane: $(tail -n1 "$cache/control-plane.log") (log: $cache/control-plane.log)" >&2
    exit 77
  fi
  mv "$out.$$" "$out"
fi
echo "$out"
