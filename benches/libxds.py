#!/usr/bin/env python3
"""How long libxds.so takes from a changed endpoint to APISIX's dictionary: from the moment go-control-plane hands the change to
the connection until the version is raised, in a mesh of so many clusters. The library's own thread and a real nginx;
APISIX's own look, once a second, is not in it.

    LIBXDS=build/libxds.so benches/libxds.py [clusters [changes]]
"""

import pathlib
import statistics
import subprocess
import sys
import threading
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "t"))

import amesh  # noqa: E402
from apisix import Apisix  # noqa: E402
from test_control_plane import ControlPlane  # noqa: E402

# In a worker: until the version is another one; when that was, in Unix time, ns, as text.
WATCH = """
    local ffi = require "ffi"
    pcall(ffi.cdef, "typedef struct { long s; long ns; } amesh_time; int clock_gettime(int, amesh_time *);")
    local dict, time = ngx.shared["xds-config-version"], ffi.new("amesh_time")
    local before = dict:get("version")
    repeat
        ffi.C.usleep(50)
        ffi.C.clock_gettime(0, time)
    until dict:get("version") ~= before
    return string.format("%d%09d", tonumber(time.s), tonumber(time.ns))
"""


def main(clusters=5000, changes=30):
    built = subprocess.run([TOP / "t/control-plane/build.sh"], capture_output=True, text=True)
    if built.returncode:
        sys.exit(built.stderr.strip())
    listen = f"127.0.0.1:{amesh.free_port()}"
    env = {"AMESH_XDS_ADDRESS": listen, "AMESH_NODE": "bench", "AMESH_DESTINATION": "server"}
    apisix = Apisix(env=env, config="64m")
    shape = {"clusters": clusters, "endpoints": 2, "vhosts": clusters, "routes": 1}
    with ControlPlane(built.stdout.strip(), f"-listener=127.0.0.1:{apisix.port}", listen=listen, **shape) as plane, apisix:
        amesh.until(lambda: len(apisix.keys()) > clusters, seconds=60, what="the mesh")
        time.sleep(3)
        objects = len(apisix.written())
        took = []
        for n in range(changes):
            seen = []
            watch = threading.Thread(target=lambda: seen.append(int(apisix.run(WATCH))))
            watch.start()
            time.sleep(0.3)
            plane.say(f"endpoint c{n * 7 % clusters}")
            watch.join(20)
            sent = max(kind["last_response"] for kind in plane.say("count")["types"].values())
            took.append((seen[0] - sent) / 1e6)
            time.sleep(0.2)
        took.sort()
        print(f"{objects} objects: one changed endpoint is written after {statistics.median(took):.2f} ms (median),", end=" ")
        print(f"{took[0]:.2f} to {took[-1]:.2f} ms")


main(*map(int, sys.argv[1:]))
