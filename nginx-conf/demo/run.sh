#!/bin/bash
# Starts a small mesh on loopback ports and keeps it up until Ctrl-C: three services, and stock nginx with the module
# as the data plane in front of them, told by the files in xds/ what to do.
#   NGINX    the nginx (default nginx)
#   MODULE   the module built for it (default build/ngx_amesh_module.so)
# With "lua" the data plane is that of nginx-conf/openresty, for OpenResty or an nginx with its Lua module.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
nginx=${NGINX:-nginx}
unset NGINX   # to nginx it means sockets that it inherits
module=${MODULE:-$top/build/ngx_amesh_module.so}
conf=$here/nginx.conf
[ "${1-}" != lua ] || conf=$here/../openresty/nginx.conf
run=$top/build/demo
shown=${run#"$PWD/"}

fail() { echo "demo: $*" >&2; exit 1; }
command -v "$nginx" >/dev/null || fail "no $nginx: install nginx, or set NGINX"
[ -f "$module" ] || fail "no $module: run make, or set MODULE"
for port in 8080 8081 15081 15082 18081 18082 18083; do
  if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then fail "127.0.0.1:$port is taken; the demo needs it"; fi
done

# A copy to play with: the files that came with the source stay as they are.
rm -rf "$run"
mkdir -p "$run/logs"
cp -r "$here"/{xds,services.conf,temp.conf} "$here/../amesh" "$run/"
{
  if [ "${1-}" = lua ]; then
    # OpenResty has them built in.
    for lua in /usr/lib/nginx/modules/{ndk_http_module,ngx_http_lua_module}.so; do
      case $("$nginx" -v 2>&1) in *openresty*) ;; *) echo "load_module $lua;" ;; esac
    done
    echo "lua_package_path '$top/lualib/?.lua;;';" >"$run/lua.conf"
  fi
  echo "load_module \"$(realpath "$module")\";"
  cat "$conf"
} >"$run/nginx.conf"

pids=()
finish() {
  trap - EXIT INT TERM HUP
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  wait
}
trap finish EXIT
trap 'finish; exit 0' INT TERM HUP

"$nginx" -p "$run/" -c services.conf -e logs/services.log & pids+=($!)
"$nginx" -p "$run/" -c nginx.conf -e logs/error.log & pids+=($!)

answers() { curl -fsS -o /dev/null --max-time 1 "http://127.0.0.1:8080/" 2>/dev/null; }
for _ in $(seq 100); do
  answers && break
  kill -0 "${pids[@]}" 2>/dev/null || break
  sleep 0.1
done
answers || { tail -n 20 "$run"/logs/{services,error}.log >&2; fail "nothing answers on 127.0.0.1:8080"; }

if [ "${1-}" = lua ]; then
  cat <<END

The mesh is up, and Lua routes and balances. In another terminal:

  requests that Lua has sent where the mesh says
    curl http://127.0.0.1:8080/
    curl http://127.0.0.1:8080/ratings/7

  what would become of a request, and what the mesh has
    curl 'http://127.0.0.1:8080/lua/why?path=/ratings/7'
    curl http://127.0.0.1:8080/lua/clusters

  a change, and what the worker says of it: no reload, no restart
    sed -i 's/weight: 90/weight: 50/; s/weight: 10\b/weight: 50/' $shown/xds/routes.yaml
    tail $shown/logs/error.log

Ctrl-C ends it.
END
else
  cat <<END

The mesh is up. In another terminal:

  one in ten gets the canary
    for i in \$(seq 100); do curl -s http://127.0.0.1:8080/; done | sort | uniq -c

  make it one in two: no reload, no restart
    sed -i 's/weight: 90/weight: 50/; s/weight: 10\\b/weight: 50/' $shown/xds/routes.yaml

  ask for the canary by a header; another service by its path
    curl -H 'x-canary: yes' http://127.0.0.1:8080/
    curl http://127.0.0.1:8080/ratings/7

  what the data plane knows, and what each request met
    curl http://127.0.0.1:8081/status
    tail -f $shown/logs/access.log

Ctrl-C ends it.
END
fi
wait -n "${pids[@]}" || true
tail -n 20 "$run"/logs/{services,error}.log >&2
fail "an nginx ended"
