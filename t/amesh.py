"""A real nginx with the module, for tests that need processes, signals or namespaces."""

import contextlib
import http.server
import itertools
import os
import pathlib
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
MODULE = pathlib.Path(os.environ.get("MODULE", TOP / "build/ngx_amesh_module.so"))
# A full path: nginx executes it again for an upgrade.
# The variable is taken away: to nginx it means sockets that it inherits.
NGINX = shutil.which(os.environ.pop("NGINX", "nginx")) or "nginx"
# nginx's Lua module and what it needs.
LUA = [pathlib.Path(f"/usr/lib/nginx/modules/{name}.so") for name in ("ndk_http_module", "ngx_http_lua_module")]
STREAM = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")


# Below the ports that the kernel gives to connections: until nginx listens, nobody else takes one.
PORTS = itertools.count(20000 + os.getpid() % 8000)


def free_port():
    """A port that nothing listens on, another each time."""
    for port in PORTS:
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def until(check, seconds=10, what="it"):
    """The first true value of check(), asked again and again; fails after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        if value := check():
            return value
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def listener(port, route="web", name=None):
    return f"""
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: {name or f"listener-{port}"}
address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
traffic_direction: OUTBOUND
bind_to_port: false
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: {route}
      rds: {{route_config_name: {route}, config_source: {{ads: {{}}}}}}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"""


def route(cluster, name="web"):
    return f"""
"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
name: {name}
virtual_hosts:
- {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}
"""


def cluster(name, *ports):
    endpoints = ", ".join(
        f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {p}}}}}}}}}" for p in ports
    )
    return f"""
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: {name}
type: STATIC
load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}
"""


class Nginx:
    """nginx in a directory of its own: a mesh listener on `port`, the status on `status`, backends that say their port."""

    def __init__(self, amesh=None, daemon=False, master=True, workers=1, zone="4m", stream="", http="", prefix=(), lua=False):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="amesh-test-"))
        self.dir.chmod(0o755)
        self.xds = self.dir / "xds"
        self.xds.mkdir()
        shutil.copytree(TOP / "nginx-conf/amesh", self.dir / "amesh")
        internal = free_port()
        snippet = self.dir / "amesh/http.conf"
        snippet.write_text(snippet.read_text().replace("15081", str(internal)).replace("15082", str(free_port())))
        self.port, self.status, self.a, self.b = (free_port() for _ in range(4))
        self.zone, self.daemon, self.master, self.workers = zone, daemon, master, workers
        self.amesh = amesh if amesh is not None else f"server file:{self.xds};"
        self.stream, self.http, self.prefix, self.lua = stream, http, list(prefix), lua
        self.process = None

    def put(self, file, *documents):
        """Writes a file of resources as a careful editor does: atomically."""
        new = self.dir / "new"
        new.write_text("---".join(documents))
        new.rename(self.xds / file)

    def mesh(self, cluster_of="a"):
        """The usual mesh: one route to cluster `a` or `b`, each with one backend."""
        self.put("listener.yaml", listener(self.port))
        self.put("route.yaml", route(cluster_of))
        self.put("clusters.yaml", cluster("a", self.a), cluster("b", self.b))
        return self

    def write_conf(self, amesh=True):
        load = f"load_module {STREAM};\n" if STREAM.exists() and "--with-stream=dynamic" in version() else ""
        load += "".join(f"load_module {module};\n" for module in LUA if self.lua)
        library = f"lua_package_path '{TOP}/lualib/?.lua;;';" if self.lua else ""
        mesh = f"amesh {{ zone mesh {self.zone}; {self.amesh} }}" if amesh else ""
        served = f"server {{ listen 127.0.0.1:{self.port}; amesh outbound; include amesh/server.conf; }}" if amesh else ""
        inner = "include amesh/http.conf;" if amesh else ""
        status = "location / { amesh_status; }" if amesh else ""
        others = [m for m in ("fastcgi", "uwsgi", "scgi") if f"--without-http_{m}_module" not in version()]
        temp = " ".join(f"{m}_temp_path {self.dir}/{m};" for m in others)
        (self.dir / "nginx.conf").write_text(f"""
{load}load_module {MODULE};
daemon {"on" if self.daemon else "off"};
master_process {"on" if self.master else "off"};
worker_processes {self.workers};
pid {self.dir}/nginx.pid;
error_log {self.dir}/error.log info;
events {{ worker_connections 1024; }}
{mesh}
{f"stream {{ {self.stream} }}" if self.stream and amesh else ""}
http {{
    {"" if "access_log" in self.http else "access_log off;"}
    client_body_temp_path {self.dir}/t1; proxy_temp_path {self.dir}/t2;
    {temp}
    {inner}
    {library}
    {self.http if amesh else ""}
    {served}
    server {{ listen 127.0.0.1:{self.status}; {status} }}
    server {{ listen 127.0.0.1:{self.a}; listen 127.0.0.1:{self.b}; location / {{ return 200 "$server_port\\n"; }} }}
}}
""")

    def command(self, *more):
        return [*self.prefix, NGINX, "-p", str(self.dir), "-c", str(self.dir / "nginx.conf"), "-e", str(self.dir / "error.log"), *more]

    def test(self):
        self.write_conf()
        return subprocess.run(self.command("-t"), capture_output=True, text=True)

    def __enter__(self):
        self.write_conf()
        try:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=open(self.dir / "stderr", "w"))
            if self.daemon:
                assert self.process.wait(10) == 0, self.log()
            until(lambda: self.alive() and self.answers(self.status), what="the start of nginx")
        except BaseException:
            print(self.log())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for pid in {self.pid(), self.pid("nginx.pid.oldbin")} - {0}:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        until(lambda: not (self.dir / "nginx.pid").exists(), what="the end of nginx")
        shutil.rmtree(self.dir)

    def alive(self):
        return self.daemon or self.process.poll() is None

    def pid(self, file="nginx.pid"):
        try:
            return int((self.dir / file).read_text())
        except (OSError, ValueError):
            return 0

    def signal(self, number):
        os.kill(self.pid(), number)

    def children(self, pid=None):
        pid = pid or self.pid()
        try:
            return [int(p) for t in os.listdir(f"/proc/{pid}/task") for p in open(f"/proc/{pid}/task/{t}/children").read().split()]
        except OSError:
            return []

    def threads(self, pid=None):
        """Names of the threads of the master."""
        pid = pid or self.pid()
        return [open(f"/proc/{pid}/task/{t}/comm").read().strip() for t in os.listdir(f"/proc/{pid}/task")]

    def reload(self):
        before = set(self.children())
        self.signal(signal.SIGHUP)
        until(lambda: set(self.children()) and not before & set(self.children()), what="the reload")

    def log(self):
        """What nginx wrote to its error log, and before it had one."""
        paths = (self.dir / "stderr", self.dir / "error.log")
        return "".join(path.read_text() for path in paths if path.exists())

    def answers(self, port):
        try:
            return bool(get(port))
        except OSError:
            return False

    def get(self, path="/"):
        return get(self.port, path)


def version():
    return subprocess.run([NGINX, "-V"], capture_output=True, text=True).stderr


def get(port, path="/", host="mesh.example.com", address="127.0.0.1"):
    """(status, body) of a request on a connection of its own."""
    with socket.create_connection((address, port), 20) as s:
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := s.recv(65536):
            answer += chunk
    if not answer:
        raise ConnectionResetError("no answer")
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode().strip()


class Upstream(socketserver.ThreadingTCPServer):
    """A scripted endpoint of HTTP/1.1. What it does stands in the header `x-do` of a request, one word a try, the last
    one for all tries after it: a status, `reset` (ends the connection), `begin` (ends it within the
    header), `sleep-S` (answers after S seconds), or
    `STATUS:name=value` with a response header. `seen` holds (method, path, headers in lower case, body) of each."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, name="up"):
        self.port, self.name, self.seen, self.tries = free_port(), name, [], {}
        super().__init__(("127.0.0.1", self.port), Handler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True, args=(0.05,)).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """A proxy that has stopped waiting is no error."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        up = self.server
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {k.lower(): v for k, v in self.headers.items()}
        up.seen.append((self.command, self.path, headers, body.decode()))
        script = headers.get("x-do", "200").split()
        key = headers.get("x-test", self.path)
        n = up.tries[key] = up.tries.get(key, 0) + 1
        word, _, more = script[min(n, len(script)) - 1].partition(":")
        if word == "reset":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if word == "begin":
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 200 OK\r\nx-a: b\r\n")
            return
        if word.startswith("sleep-"):
            time.sleep(float(word[6:]))
            word = "200"
        text = f"{up.name}\n".encode()
        self.send_response(int(word))
        if more:
            self.send_header(*more.split("=", 1))
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_OPTIONS = answer

    def log_message(self, *_):
        pass


class Load(threading.Thread):
    """Requests one after the other, each on a new connection, until stopped; collects what did not answer 200."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.failed, self.count, self.stopping = port, [], 0, False

    def run(self):
        while not self.stopping:
            self.count += 1
            try:
                status, body = get(self.port)
                if status != 200:
                    self.failed.append((status, body))
            except OSError as e:
                self.failed.append(repr(e))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.join()
