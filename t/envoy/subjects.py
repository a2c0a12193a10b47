"""The two that are held side by side: Envoy, and nginx with the module. Both read resources from files, and log as JSON."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

import mesh

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import amesh


class Log:
    """An access log that is read as it grows."""

    def __init__(self, path):
        self.path, self.at = path, 0
        path.touch()

    def new(self):
        """{test's id: entry} of the lines since the last time; only what is named is there."""
        with open(self.path, "rb") as file:
            file.seek(self.at)
            whole = file.read().rpartition(b"\n")[0]
        self.at += len(whole) + bool(whole)
        entries = [json.loads(line) for line in whole.splitlines()]
        return {entry.get("id"): {k: str(v) for k, v in entry.items() if k != "id" and v not in (None, "-", "")} for entry in entries}


def add_logs(both, sides, seconds=3):
    """Gives each thing that came of a request its line of the access log, if there is one after so many seconds."""
    end = time.monotonic() + seconds
    for subject in both:
        waiting = {side["id"]: side for side in sides if side.get("subject") == subject.name}
        while waiting:
            for test_id, entry in subject.log.new().items():
                if test_id in waiting:
                    waiting.pop(test_id)["log"] = entry
            if time.monotonic() > end:
                break
            time.sleep(0.005)


class Envoy:
    """Envoy, one worker."""

    name = "envoy"

    def __init__(self, address, binary=None):
        self.address = address
        self.binary = binary or os.environ["ENVOY"]
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="amesh-envoy-"))
        self.admin = amesh.free_port()
        self.log = Log(self.dir / "access.log")
        self.process = None

    def rds(self, name):
        source = {"path_config_source": {"path": str(self.dir / f"{name}.json")}}
        return {"rds": {"route_config_name": name, "config_source": source}}

    def put(self, name, resources):
        """Replaces a file of resources as Envoy notices it: moved to its place."""
        new = self.dir / "new"
        new.write_text(json.dumps({"resources": resources}))
        new.rename(self.dir / f"{name}.json")

    def put_table(self, table):
        self.put(table["name"], [{"@type": mesh.TABLE, **table}])

    def start(self, listeners, clusters):
        self.put("listeners", listeners)
        self.put("clusters", clusters)
        source = lambda name: {"path_config_source": {"path": str(self.dir / f"{name}.json")}}
        conf = {
            "node": {"id": "judge", "cluster": "judge"},
            "admin": {"address": mesh.address("127.0.0.1", self.admin)},
            "dynamic_resources": {"cds_config": source("clusters"), "lds_config": source("listeners")},
        }
        (self.dir / "envoy.json").write_text(json.dumps(conf))
        command = [self.binary, "-c", self.dir / "envoy.json", "--concurrency", "1", "--disable-hot-restart"]
        command += ["-l", "warning", "--file-flush-interval-msec", "20"]
        with open(self.dir / "log", "w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        amesh.until(self.ready, 30, "the start of Envoy")
        # What is compared is what Envoy does with a configuration that it takes.
        assert not self.rejected(), self.rejected()

    def ask(self, path):
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
            return answer.read().decode()

    def ready(self):
        assert self.process.poll() is None, f"Envoy ended: {self.rejected()}"
        try:
            return self.rejected() or self.ask("/ready").strip() == "LIVE"
        except OSError:
            return False

    def rejected(self):
        """What Envoy said of configuration that it did not take."""
        entries = re.split(r"\n(?=\[\d)", (self.dir / "log").read_text())
        return "\n".join(" ".join(entry.split()) for entry in entries if re.search("reject|fail", entry))

    def stop(self):
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.dir)


class Twin(Envoy):
    """The control: what differs between two Envoys is no fault of nginx."""

    name = "twin"


class Nginx:
    """nginx with the module, one worker."""

    name = "nginx"
    lua, outside = False, ""

    def __init__(self, address):
        self.address = address
        self.nginx = amesh.Nginx(zone="64m", lua=self.lua)
        self.log = Log(self.nginx.dir / "judge.log")

    def routed(self):
        return "amesh outbound; include amesh/server.conf;"

    def rds(self, name):
        return {"rds": {"route_config_name": name, "config_source": {"ads": {}}}}

    def put(self, name, resources):
        self.nginx.put(f"{name}.json", json.dumps(resources))

    def put_table(self, table):
        self.put(table["name"], [{"@type": mesh.TABLE, **table}])

    def start(self, listeners, clusters):
        self.put("listeners", listeners)
        self.put("clusters", clusters)
        ports = [listener["address"]["socket_address"]["port_value"] for listener in listeners]
        listens = "\n".join(f"listen {self.address}:{port};" for port in ports)
        self.nginx.http = f"""
log_format judge escape=json '{mesh.NGINX_LOG}';
access_log {self.log.path} judge;
{self.outside}
server {{
    {listens}
    {self.routed()}
}}
"""
        self.nginx.__enter__()

    def rejected(self):
        return "\n".join(line for line in self.nginx.log().splitlines() if re.search(r"\[(warn|error|alert|emerg|crit)\]", line))

    def stop(self):
        if self.nginx.process:
            self.nginx.__exit__()


class Lua(Nginx):
    """The same, but that Lua has each request routed and balanced."""

    lua = True
    outside = 'upstream lua { server 0.0.0.1; balancer_by_lua_block { require("resty.amesh").balancer.run() } }'

    def routed(self):
        forwarding = (amesh.TOP / "nginx-conf/amesh/server.conf").read_text().replace("//amesh;", "//lua;")
        return forwarding + 'access_by_lua_block { assert(require("resty.amesh").route()) }'
