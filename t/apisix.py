"""nginx with a small APISIX of our own (t/apisix): what loads libxds.so as APISIX does, and routes by what it writes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import urllib.parse

import amesh

LIBXDS = pathlib.Path(os.environ.get("LIBXDS", amesh.MODULE.parent / "libxds.so"))
MODULES = pathlib.Path("/usr/lib/nginx/modules")
VERSION = ("xds-config-version", "version")


class Apisix(amesh.Nginx):
    """On `port` it routes, on `status` it tells of itself, on `a` and `b` it is a backend that says its port.
    `env` is what the library is told; `mesh` is the file source's directory, `objects` that of APISIX's own objects."""

    def __init__(self, env=None, workers=2, config="10m", lua="", main="", module=False):
        super().__init__(workers=workers)
        self.objects = self.dir / "objects"
        self.objects.mkdir()
        shutil.copytree(LIBXDS.parent, self.dir / "lib", ignore=lambda _, names: [n for n in names if n != "libxds.so"])
        self.env = {"AMESH_OBJECTS": str(self.objects)} if env is None else env
        self.config, self.lua, self.main, self.module = config, lua, main, module

    def write_conf(self, amesh=True):
        lua = pathlib.Path(__file__).parent / "apisix"
        load = [MODULES / "ndk_http_module.so", MODULES / "ngx_http_lua_module.so"]
        load += [MODULES / "ngx_stream_module.so", globals()["amesh"].MODULE] if self.module else []
        temp = " ".join(f"{m}_temp_path {self.dir}/{m};" for m in ("fastcgi", "uwsgi", "scgi"))
        user = "user root;" if os.geteuid() == 0 else ""
        (self.dir / "nginx.conf").write_text(f"""
{"".join(f"load_module {m};" for m in load)}
{user}
daemon off;
worker_processes {self.workers};
worker_shutdown_timeout 10;
pid {self.dir}/nginx.pid;
error_log {self.dir}/error.log info;
{"".join(f"env {name}; " for name in self.env)}
{self.main}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {self.dir}/t1; proxy_temp_path {self.dir}/t2;
    {temp}
    lua_shared_dict xds-config {self.config};
    lua_shared_dict xds-config-version 1m;
    lua_package_path "{lua}/?.lua;;";
    lua_package_cpath "{self.dir}/lib/?.so;;";
    init_by_lua_block {{ {self.lua} require("apisix").init() }}
    init_worker_by_lua_block {{ require("apisix").init_worker() }}
    # No kept connections: the backend is this nginx, whose reload would end them.
    upstream apisix_backend {{
        server 0.0.0.1;
        balancer_by_lua_block {{ require("apisix").balancer() }}
    }}
    server {{
        listen 127.0.0.1:{self.port};
        location / {{
            set $upstream_uri ""; set $upstream_host "";
            access_by_lua_block {{ require("apisix").access() }}
            header_filter_by_lua_block {{ require("apisix").header_filter() }}
            proxy_http_version 1.1;
            proxy_set_header Connection close;
            proxy_set_header Host $upstream_host;
            proxy_pass http://apisix_backend$upstream_uri;
        }}
    }}
    server {{
        listen 127.0.0.1:{self.status};
        chunked_transfer_encoding off;
        location = / {{ content_by_lua_block {{ ngx.say(require("cjson").encode(require("xds").status())) }} }}
        location = /keys {{ content_by_lua_block {{
            local dict, all = ngx.shared[ngx.var.arg_dict], {{}}
            for _, key in ipairs(dict:get_keys(0)) do all[key] = dict:get(key) end
            ngx.say(require("cjson").encode(all))
        }} }}
        location = /eval {{ content_by_lua_block {{
            ngx.req.read_body()
            ngx.say(require("cjson").encode {{ result = assert(loadstring(ngx.req.get_body_data()))() }})
        }} client_body_buffer_size 1m; }}
    }}
    server {{ listen 127.0.0.1:{self.a}; listen 127.0.0.1:{self.b}; location / {{ return 200 "$server_port $host $uri\\n"; }} }}
}}
""")

    def __enter__(self):
        before = dict(os.environ)
        os.environ.update(self.env)
        try:
            return super().__enter__()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def tell(self):
        """What a worker says of itself."""
        return json.loads(amesh.get(self.status)[1])

    def keys(self, dict="xds-config"):
        return json.loads(amesh.get(self.status, f"/keys?dict={dict}")[1])

    def written(self):
        """The objects in the dictionary."""
        return {key: json.loads(value) for key, value in self.keys().items() if not key.startswith("/_amesh")}

    def version(self):
        return self.keys("xds-config-version").get("version")

    def run(self, lua):
        """The value of a piece of Lua, in a worker."""
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.status}/eval", data=lua.encode(), timeout=20) as answer:
            return json.load(answer).get("result")

    def agent(self):
        """The process that has the library's thread, the youngest."""
        return [pid for pid in self.children() if "amesh-xds" in self.threads(pid)]

    def say(self, file="objects.yaml", **directories):
        """Writes objects as a careful editor does."""
        new = self.dir / "new"
        new.write_text(json.dumps(directories))
        new.rename(self.objects / file)
        return self

    def errors(self):
        return [line for line in self.log().splitlines() if any(f"[{l}]" in line for l in ("error", "crit", "alert", "emerg"))]

    def get(self, path="/", host="mesh.example.com"):
        status, body = amesh.get(self.port, path, host)
        return status, body.split(" ")[0] if status == 200 else body


def upstream(id, *ports, **more):
    return {"id": id, "type": "roundrobin", "nodes": [{"host": "127.0.0.1", "port": p, "weight": 1} for p in ports], **more}
