"""Connections that iptables redirects, in network namespaces of the test's own: IPv4, IPv6, v4-mapped."""

import ipaddress
import os
import shutil
import subprocess
import sys

import amesh
import pytest

IPTABLES = {4: "iptables", 6: "ip6tables"}
POD = {4: "198.18.0.6", 6: "2001:db8:1::6"}
REST = {4: "198.18.0.1", 6: "2001:db8:1::1"}
SERVICE = {4: "198.18.96.10", 6: "2001:db8:96::10"}
OTHER = {4: "198.18.96.11", 6: "2001:db8:96::11"}
DOOR, HTTP_DOOR, PORT = 15001, 15002, 8000
PROXY_UID = 1337

missing = [tool for tool in ("ip", "iptables", "ip6tables", "setpriv") if not shutil.which(tool)]
assert os.geteuid() == 0 and not missing, f"these tests need root and {', '.join(missing) or 'nothing more'}"


def run(*words, **more):
    done = subprocess.run(words, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def pod():
    """A pod whose outgoing TCP goes to the doors, and a network behind it that answers for every service address."""
    name = f"amesh-{os.getpid()}"
    inner, outer = f"{name}-in", f"{name}-out"
    try:
        for ns in (inner, outer):
            run("ip", "netns", "add", ns)
        run("ip", "-n", inner, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outer)
        for ns in (inner, outer):
            run("ip", "-n", ns, "link", "set", "lo", "up")
            run("ip", "-n", ns, "link", "set", "eth0", "up")
        for version, bits in ((4, 24), (6, 64)):
            family = f"-{version}"
            for ns, address in ((inner, POD), (outer, REST)):
                run("ip", "-n", ns, family, "addr", "add", f"{address[version]}/{bits}", "dev", "eth0", *(["nodad"] if version == 6 else []))
            run("ip", "-n", inner, family, "route", "add", "default", "via", REST[version])
            run("ip", "-n", outer, family, "route", "add", "local", f"{SERVICE[version]}/{24 if version == 4 else 64}", "dev", "lo") if version == 6 else run(
                "ip", "-n", outer, family, "route", "add", "local", "198.18.96.0/24", "dev", "lo"
            )
            rules = ["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-m", "owner", "!", "--uid-owner", str(PROXY_UID)]
            tables = ("ip", "netns", "exec", inner, IPTABLES[version])
            run(*tables, *rules, "-o", "lo", "-j", "RETURN")
            run(*tables, *rules, "--dport", str(PORT + 1), "-j", "REDIRECT", "--to-ports", str(HTTP_DOOR))
            run(*tables, *rules, "-j", "REDIRECT", "--to-ports", str(DOOR))
        yield inner, outer
    finally:
        for ns in (inner, outer):
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)


def listener(address, port, name, chains):
    return f"""
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: {name}
address: {{socket_address: {{address: "{address}", port_value: {port}}}}}
traffic_direction: OUTBOUND
bind_to_port: false
listener_filters:
- name: envoy.filters.listener.http_inspector
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
listener_filters_timeout: 0s
{chains}
"""


HCM = """
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: web
        route_config:
          name: here
          virtual_hosts:
          - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: PassthroughCluster}}]}
        http_filters:
        - name: envoy.filters.http.router
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"""
TCP = """
    - name: envoy.filters.network.tcp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: tcp
        cluster: PassthroughCluster
"""
SNIFFED = f"""
filter_chains:
- filter_chain_match: {{transport_protocol: raw_buffer, application_protocols: [http/1.1, h2c]}}
  filters:{HCM}
default_filter_chain:
  filters:{TCP}
"""
WORLD = f"""
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: PassthroughCluster
type: ORIGINAL_DST
lb_policy: CLUSTER_PROVIDED
---{listener("0.0.0.0", PORT, "any-4", SNIFFED)}
---{listener("::", PORT, "any-6", SNIFFED)}
---{listener("0.0.0.0", PORT + 1, "plain-4", SNIFFED)}
---{listener("::", PORT + 1, "plain-6", SNIFFED)}
---
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: virtualOutbound
address: {{socket_address: {{address: 0.0.0.0, port_value: {DOOR}}}}}
traffic_direction: OUTBOUND
use_original_dst: true
filter_chains:
- filter_chain_match: {{destination_port: {DOOR}}}
  filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: blackhole
      cluster: BlackHoleCluster
- filters:{TCP}
"""

BACKEND = """
import socket, sys, threading
def serve(family, port):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port)); s.listen(64)
    def one(c):
        where = c.getsockname()[0] + " " + str(port)
        while data := c.recv(4096):
            if data.startswith(b"GET "):
                body = where.encode()
                c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
            else: c.sendall(where.encode() + b": " + data)
        c.sendall(b" bye"); c.close()
    while True:
        c, _ = s.accept(); threading.Thread(target=one, args=(c,), daemon=True).start()
for f in (socket.AF_INET, socket.AF_INET6):
    for p in (8000, 8001, 9999): threading.Thread(target=serve, args=(f, p)).start()
print("ready", flush=True)
"""

CLIENT = """
import socket, sys, time
address, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
c = socket.create_connection((address, port), 20)
def read(n=None):
    data = b""
    while True:
        chunk = c.recv(4096)
        data += chunk
        if not chunk or (n and data.count(n)): return data.decode()
if kind == "http":
    for i in range(3):
        c.sendall(b"GET /%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % i)
        answer = read(str(port).encode())
        print(answer.split("\\r\\n\\r\\n")[0].split("\\r\\n")[0], answer.split("\\r\\n\\r\\n")[1])
elif kind == "slow":
    for b in b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n": c.sendall(bytes([b])); time.sleep(0.005)
    print(read(str(port).encode()).split("\\r\\n\\r\\n")[1])
else:
    c.sendall(b"\\0\\1hello")
    time.sleep(0.1)
    c.shutdown(socket.SHUT_WR)
    print(repr(read()))
"""


@pytest.fixture(scope="module", params=["one socket a family", "one dual-stack socket"])
def mesh(pod, request):
    inner, outer = pod
    dual = "dual" in request.param
    listen = f"listen [::]:%d ipv6only=off;" if dual else "listen 0.0.0.0:%d; listen [::]:%d ipv6only=on;"
    listen = lambda port, text=listen: text % ((port,) * text.count("%d"))
    inside = ("ip", "netns", "exec", inner)
    proxy = (*inside, "setpriv", "--reuid", str(PROXY_UID), "--regid", str(PROXY_UID), "--clear-groups")
    backend = subprocess.Popen(["ip", "netns", "exec", outer, sys.executable, "-c", BACKEND], stdout=subprocess.PIPE, text=True)
    try:
        assert backend.stdout.readline() == "ready\n"
        log = "log_format o '$connection_original_dst|$connection_original_dst_addr|$connection_original_dst_port"
        nginx = amesh.Nginx(
            stream=f"{log}|$amesh_listener|$amesh_endpoint'; server {{ {listen(DOOR)} amesh outbound; access_log LOGDIR/tcp.log o; }}",
            http=f"{log}|$amesh_listener|$amesh_endpoint|$request_uri'; access_log LOGDIR/http.log o; "
            f"server {{ {listen(HTTP_DOOR)} amesh outbound; include amesh/server.conf; }}",
            prefix=proxy,
        )
        nginx.stream, nginx.http = (text.replace("LOGDIR", str(nginx.dir)) for text in (nginx.stream, nginx.http))
        nginx.mesh()
        nginx.put("world.yaml", WORLD)
        subprocess.run(["chown", "-R", str(PROXY_UID), str(nginx.dir)], check=True)
        # The status is asked for from within the namespace.
        nginx.answers = lambda port: subprocess.run([*inside, "bash", "-c", f"echo >/dev/tcp/127.0.0.1/{port}"], capture_output=True).returncode == 0
        with nginx:
            nginx.client = lambda *words: run(*inside, sys.executable, "-c", CLIENT, *map(str, words))
            yield nginx
    finally:
        backend.kill()
        backend.wait()


def last_line(nginx, file):
    path = nginx.dir / file
    return amesh.until(lambda: path.exists() and path.read_text(), what=f"a line in {file}").splitlines()[-1]


def text(address, port):
    return f"[{address}]:{port}" if ipaddress.ip_address(address).version == 6 else f"{address}:{port}"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [PORT, PORT + 1], ids=["through the door", "http listener"])
def test_http_goes_where_it_was_going_over_keepalive(mesh, version, port):
    to = OTHER[version]
    out = mesh.client(to, port, "http")
    assert out.splitlines() == [f"HTTP/1.1 200 OK {to} {port}"] * 3
    name = f"{'any' if port == PORT else 'plain'}-{version}"
    want = f"{text(to, port)}|{to}|{port}|{name}|{text(to, port)}|/2"
    amesh.until(lambda: last_line(mesh, "http.log") == want, what=f"the line {want}, not {last_line(mesh, 'http.log')}")


@pytest.mark.parametrize("version", [4, 6])
def test_a_slow_first_byte_is_waited_for(mesh, version):
    assert mesh.client(SERVICE[version], PORT, "slow") == f"{SERVICE[version]} {PORT}\n"


@pytest.mark.parametrize("version", [4, 6])
def test_bytes_that_are_no_http_pass_as_they_are(mesh, version):
    to = SERVICE[version]
    assert mesh.client(to, PORT, "tcp") == repr(f"{to} {PORT}: \0\1hello bye") + "\n"
    name = f"any-{version}"
    want = f"{text(to, PORT)}|{to}|{PORT}|{name}|{text(to, PORT)}"
    amesh.until(lambda: last_line(mesh, "tcp.log") == want, what=f"the line {want}, not {last_line(mesh, 'tcp.log')}")


@pytest.mark.parametrize("version", [4, 6])
def test_an_unknown_destination_passes_through(mesh, version):
    to = OTHER[version]
    assert mesh.client(to, 9999, "tcp") == repr(f"{to} 9999: \0\1hello bye") + "\n"
    amesh.until(lambda: "|virtualOutbound|" in last_line(mesh, "tcp.log"), what="the listener's name")


def test_what_was_not_redirected_has_no_original_destination(mesh):
    """A connection to the door itself: Envoy's black hole."""
    done = subprocess.run(
        [*mesh.prefix[:4], "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{DOOR}; printf 'x\\n' >&3; timeout 3 cat <&3"], capture_output=True, text=True
    )
    assert done.stdout == ""
    assert amesh.until(lambda: last_line(mesh, "tcp.log").startswith("-|-|-|"), what="the line")
    assert "original" not in mesh.log()
