"""Lua and processes: updates, reloads, killed workers; and the cases of the judge, decided by Lua and by the module."""

import json
import os
import pathlib
import signal
import socket
import sys
import threading
import types
import urllib.parse

import amesh

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "envoy"))

import cases
import mesh

missing = [str(module) for module in amesh.LUA if not module.exists()]
assert not missing, f"not there: {missing}: apt-get install libnginx-mod-http-lua lua-resty-core"

ROUTED = """
upstream lua { server 0.0.0.1; balancer_by_lua_block { require("resty.amesh").balancer.run() } }
init_worker_by_lua_block {
    changes = 0
    require("resty.amesh").on_change(function() changes = changes + 1 end)
}
"""


class Lua(amesh.Nginx):
    """Requests to `lua` are routed and balanced by Lua; `ask` runs Lua in a worker."""

    def __init__(self, **more):
        self.ports = amesh.free_port(), amesh.free_port()
        lua, ask = self.ports
        http = f"""{ROUTED}
server {{
    listen 127.0.0.1:{lua};
    access_by_lua_block {{ assert(require("resty.amesh").route()) }}
    location / {{ proxy_pass http://lua; proxy_set_header Host $amesh_upstream_host; proxy_set_header X-Do $http_x_do; }}
}}
server {{
    listen 127.0.0.1:{ask};
    location / {{ content_by_lua_block {{
        local text = tostring(assert(loadstring("local amesh = require 'resty.amesh' return " .. ngx.unescape_uri(ngx.var.arg_q)))())
        ngx.header.content_length = #text
        ngx.print(text)
    }} }}
}}
"""
        super().__init__(lua=True, http=http, **more)

    def mesh(self, cluster_of="a"):
        """The usual mesh, on the address that Lua serves as well."""
        super().mesh(cluster_of)
        self.put("lua.yaml", amesh.listener(self.ports[0], name="lua"))
        return self

    def routed(self):
        return amesh.get(self.ports[0])

    def ask(self, expression):
        status, body = amesh.get(self.ports[1], "/?q=" + "".join(f"%{b:02x}" for b in expression.encode()))
        assert status == 200, self.log()
        return body


def test_an_update_is_seen_by_the_next_request():
    with Lua().mesh("a") as nginx:
        assert nginx.routed() == (200, str(nginx.a))
        version = int(nginx.ask("amesh.version()"))
        table = nginx.ask('amesh.get("route_table", "web").virtual_hosts[1].routes[1].action.route.cluster.cluster')
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: nginx.routed() == (200, str(nginx.b)), what="the update")
        assert int(nginx.ask("amesh.version()")) > version
        assert table == "a"
        assert nginx.ask('amesh.get("route_table", "web").virtual_hosts[1].routes[1].action.route.cluster.cluster') == "b"
        assert int(nginx.ask('amesh.version_of("cluster", "a")')) <= version
        assert int(nginx.ask('amesh.version_of("route_table", "web")')) > version
        amesh.until(lambda: nginx.ask("changes") != "0", what="the call that tells of it")


def test_a_reload_loses_nothing():
    with Lua(workers=2).mesh("a") as nginx:
        with amesh.Load(nginx.ports[0]) as load:
            for _ in range(3):
                nginx.reload()
        assert load.count > 10 and not load.failed, load.failed
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: nginx.routed() == (200, str(nginx.b)), what="the update after a reload")
        assert nginx.ask('amesh.health("a").endpoints[1].rq_active') == "0"


def slow(port):
    """A request that the endpoint answers after two seconds."""

    def run():
        with socket.create_connection(("127.0.0.1", port), 20) as s:
            s.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\nX-Do: sleep-2\r\nConnection: close\r\n\r\n")
            while s.recv(1000):
                pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_what_a_killed_worker_held_is_given_back():
    with amesh.Upstream() as up:
        nginx = Lua().mesh("a")
        nginx.put("clusters.yaml", amesh.cluster("a", up.port), amesh.cluster("b", nginx.b))
        active = 'amesh.health("a").endpoints[1].rq_active'
        with nginx:
            threads = [slow(nginx.ports[0]) for _ in range(3)]
            amesh.until(lambda: nginx.ask(active) == "3", what="three requests")
            (worker,) = nginx.children()
            os.kill(worker, signal.SIGKILL)
            amesh.until(lambda: nginx.children() not in ([], [worker]), what="another worker")
            amesh.until(lambda: nginx.ask(active) == "0", what="what the worker held")
            assert nginx.ask('amesh.health("a").endpoints[1].rq_total') == "3"
            for thread in threads:
                thread.join(10)


def test_a_client_that_goes_away_holds_nothing():
    with amesh.Upstream() as up:
        nginx = Lua().mesh("a")
        nginx.put("clusters.yaml", amesh.cluster("a", up.port), amesh.cluster("b", nginx.b))
        active = 'amesh.health("a").endpoints[1].rq_active'
        with nginx:
            s = socket.create_connection(("127.0.0.1", nginx.ports[0]))
            s.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\nX-Do: sleep-2\r\n\r\n")
            amesh.until(lambda: nginx.ask(active) == "1", what="the request")
            s.close()
            amesh.until(lambda: nginx.ask(active) == "0", what="its end")


class Bare(Lua):
    """The module without an `amesh` block."""

    def write_conf(self, amesh=False):
        super().write_conf(amesh=False)
        conf = self.dir / "nginx.conf"
        conf.write_text(conf.read_text().replace("http {", f"""http {{
init_worker_by_lua_block {{ ngx.log(ngx.WARN, "in a worker: ", select(2, require("resty.amesh").on_change(print))) }}
server {{ listen 127.0.0.1:{self.ports[1]}; location / {{ content_by_lua_block {{
    local amesh = require "resty.amesh"
    local said = {{ select(2, amesh.version()), select(2, amesh.decide()), select(2, amesh.names "cluster"), select(2, amesh.get("cluster", "a")) }}
    ngx.header.content_length = #table.concat(said, "|")
    ngx.print(table.concat(said, "|"))
}} }} }}""", 1))


def test_without_a_zone_it_is_said_what_is_missing():
    with Bare() as nginx:
        none = 'this process reads no zone: nginx.conf has no "amesh { zone …; }" block'
        assert amesh.get(nginx.ports[1])[1].split("|") == [none] * 4
        assert f"in a worker: {none}" in nginx.log()


# What chance has no part in.
FEATURES = ("routing", "rewrite", "redirect", "direct_response", "headers")
SOME = ("runtime fraction, some",)


def chosen():
    for feature in FEATURES:
        for case in cases.of_file(cases.HERE / f"cases/{feature}.yaml"):
            if case["case"] not in SOME:
                yield case


def dump(resources):
    return json.dumps({"resources": resources})


def ask(port, request, *headers):
    """Status, headers and body of a request of a case."""
    request = cases.Request(**{**vars(request), "headers": [*request.headers, *headers, ("connection", "close")]})
    with socket.create_connection(("127.0.0.1", port), 20) as s:
        s.sendall(request.bytes("lua"))
        answer = b""
        while chunk := s.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(": ")[::2] for line in lines]
    return int(status.split()[1]), {name.lower(): value for name, value in pairs}, body.decode("latin-1").strip()


def test_lua_decides_as_the_module_does():
    backend, why = amesh.free_port(), amesh.free_port()
    every = list(chosen())
    ports = {case["id"]: amesh.free_port() for case in every}
    clusters = {**mesh.CLUSTERS, **{name: spec for case in every for name, spec in case.get("clusters", {}).items()}}
    endpoints = types.SimpleNamespace(endpoints={name: ("127.0.0.1", backend) for name in mesh.NAMES})
    nginx = amesh.Nginx(lua=True, zone="32m")
    listens = "".join(f"listen 127.0.0.1:{port};" for port in ports.values())
    nginx.http = f"""
server {{
    {listens}
    amesh outbound;
    add_header x-told "$amesh_route|$amesh_cluster|$amesh_response_flags" always;
    include amesh/server.conf;
}}
server {{
    listen 127.0.0.1:{backend};
    merge_slashes off;
    return 200 "$http_host $request_uri";
}}
server {{
    listen 127.0.0.1:{why};
    merge_slashes off; ignore_invalid_headers off; underscores_in_headers on;
    location / {{ content_by_lua_block {{
        local headers = ngx.req.get_headers(0, true)
        local to = headers["x-why"]
        headers["x-why"], headers.host, headers.Host = nil, nil, nil
        local amesh = require "resty.amesh"
        -- Once as the request at hand, and once as one that nobody has sent.
        local told = assert(amesh.decide {{ destination = to }})
        local another = assert(amesh.decide {{
            destination = to, path = ngx.var.request_uri, method = ngx.req.get_method(), authority = ngx.var.http_host, headers = headers,
        }})
        for _, d in ipairs {{ told, another }} do
            for _, edit in ipairs(d.response_headers or {{}}) do
                if edit.name == "location" then d.location = edit.value end
            end
            ngx.header[d == told and "x-told" or "x-another"] = (d.route or "") .. "|" .. (d.cluster or "") .. "|" .. d.flags
                .. "|" .. (d.status or "") .. "|" .. (d.location or "") .. "|"
                .. ngx.escape_uri(d.status and d.body or (d.authority or "") .. " " .. d.path)
        end
        ngx.exit(204)
    }} }}
}}
"""
    nginx.put("listeners.json", dump([mesh.listener(case["id"], "127.0.0.1", ports[case["id"]], "log", case, {"route_config": mesh.table(case, case["id"])}) for case in every]))
    nginx.put("clusters.json", dump([mesh.cluster(endpoints, name, spec) for name, spec in clusters.items()]))
    asked = 0
    with nginx:
        for case in every:
            for request in case["requests"]:
                if request.raw is not None or request.host is None or request.body:
                    continue
                status, headers, body = ask(ports[case["id"]], request)
                of_lua, told, _ = ask(why, request, ("x-why", f"127.0.0.1:{ports[case['id']]}"))
                if status == of_lua == 400:
                    # nginx does not take it for a request.
                    continue
                assert "x-another" in told, f"{case['id']}: {request.name}: {told} {nginx.log()[-800:]}"
                for which in ("x-told", "x-another"):
                    route_cluster_flags, _, rest = told[which].rpartition("|")
                    route, cluster, flags, own, location = route_cluster_flags.split("|")
                    where = f"{case['id']}: {request.name} ({which}): {told[which]} and {status} {headers} {body}"
                    assert headers["x-told"] == f"{route}|{cluster}|{flags}", where
                    if status == 400 and not own:
                        # The endpoint, which is nginx, does not take the host that it was given.
                        continue
                    assert str(status) == (own or "200"), where
                    assert headers.get("location", "") == location or not own, where
                    if request.method != "HEAD" and status not in (204, 304):
                        assert body == urllib.parse.unquote(rest, "latin-1").strip(), where
                asked += 1
    assert asked > 150, f"only {asked} requests"
