"""Active health checks, outlier detection and circuit breakers, with real backends that fail when they are told to."""

import collections
import contextlib
import http.server
import json
import os
import re
import signal
import socket
import threading
import time

from amesh import Load, Nginx, free_port, get, listener, route, until


class Backend:
    """Says its port. `status` answers requests, `health` /healthz; /slow takes until `release` is set."""

    def __init__(self, status=200, health=200):
        self.status, self.health = status, health
        self.checks, self.requests, self.release = [], 0, threading.Event()
        self.checkers, self.more = set(), []
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if self.path == "/healthz":
                    backend.checks.append(dict(self.headers))
                    backend.checkers.add(self.client_address)
                    return self.answer(backend.health)
                backend.requests += 1
                if self.path == "/slow":
                    backend.release.wait(20)
                self.answer(backend.status)

            def answer(self, status):
                body = f"{backend.port}\n".encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                for name, value in backend.more:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100
            server_bind = http.server.socketserver.TCPServer.server_bind

        self.port = free_port()
        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


@contextlib.contextmanager
def backends(count, **more):
    all = [Backend(**more) for _ in range(count)]
    try:
        yield all
    finally:
        for backend in all:
            backend.release.set()
            backend.close()


def cluster(fields, ports, name="c"):
    endpoints = ", ".join(f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {p}}}}}}}}}" for p in ports)
    return f"""
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: {name}
type: STATIC
{fields}
load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}
"""


def checked(more="", interval="0.1s"):
    return f"""
health_checks:
- {{timeout: 1s, interval: {interval}, no_traffic_interval: {interval}, unhealthy_threshold: 2, healthy_threshold: 2,
   http_health_check: {{path: /healthz}}{more}}}
"""


def mesh(nginx, fields, ports):
    nginx.put("listener.yaml", listener(nginx.port))
    nginx.put("route.yaml", route("c"))
    nginx.put("cluster.yaml", cluster(fields, ports))
    return nginx


def answers(nginx, count=40):
    return collections.Counter(get(nginx.port) for _ in range(count))


def ports(nginx, count=40):
    return {int(body) for status, body in answers(nginx, count) if status == 200}


def status(nginx, name="c"):
    return json.loads(get(nginx.status)[1])["clusters"][name]


def endpoint(nginx, backend):
    return next(e for e in status(nginx)["endpoints"] if e["address"] == f"127.0.0.1:{backend.port}")


def test_an_endpoint_that_fails_its_checks_is_left_and_comes_back():
    with backends(3) as (a, b, c):
        with mesh(Nginx(workers=2), checked(), [a.port, b.port, c.port]) as nginx, Load(nginx.port) as load:
            until(lambda: all(e["active_health_check"] == "passed" for e in status(nginx)["endpoints"]), what="the first checks")
            assert ports(nginx) == {a.port, b.port, c.port}
            a.health = 503
            until(lambda: endpoint(nginx, a)["health"] == "unhealthy", seconds=5, what="the failed check")
            assert endpoint(nginx, a)["active_health_check"] == "failed" and status(nginx)["runtime_unhealthy"] == 1
            assert ports(nginx) == {b.port, c.port}, "every worker knows"
            a.health = 200
            until(lambda: a.port in ports(nginx, 6), seconds=5, what="its way back")
            assert status(nginx)["runtime_unhealthy"] == 0
            assert load.failed == []
            log = nginx.log()
            assert f"cluster c: 127.0.0.1:{a.port} failed its health check: status 503 (1 of 3 not healthy)" in log
            assert f"cluster c: 127.0.0.1:{a.port} passed its health check (0 of 3 not healthy)" in log


def test_checks_run_once_a_node_however_many_workers_there_are():
    with backends(1) as (a,):
        with mesh(Nginx(workers=4), checked(interval="0.2s"), [a.port]) as nginx:
            until(lambda: len(a.checks) > 2, what="checks")
            before, start = len(a.checks), time.monotonic()
            time.sleep(2)
            # Each worker by itself would make four times as many.
            assert len(a.checks) - before <= (time.monotonic() - start) / 0.2 + 2
            assert len(a.checkers) == 1, "they share one connection"
            assert a.checks[0] == {"host": "c", "user-agent": "Envoy/HC"}
            # An update of the cluster keeps what is known, and starts nothing twice.
            nginx.put("cluster.yaml", cluster(checked(interval="0.2s") + "connect_timeout: 1s", [a.port]))
            time.sleep(0.5)
            assert endpoint(nginx, a)["active_health_check"] == "passed" and len(a.checkers) == 1


def test_what_checks_found_outlives_updates_and_reloads():
    with backends(3) as (a, b, c):
        all = [a.port, b.port, c.port]
        with mesh(Nginx(), checked(), all) as nginx:
            a.health = 500
            until(lambda: endpoint(nginx, a)["health"] == "unhealthy", what="the failed check")
            nginx.put("cluster.yaml", cluster(checked() + "connect_timeout: 1s", all))
            nginx.reload()
            assert ports(nginx) == {b.port, c.port}
            # A zone of another size is a new one.
            nginx.zone = "5m"
            nginx.write_conf()
            nginx.reload()
            assert ports(nginx) == {b.port, c.port}
            # Its checks go on in the new zone.
            a.health = 200
            until(lambda: a.port in ports(nginx, 6), what="its way back")
            assert len(nginx.threads()) <= 2
            # Without checks nothing is left of them.
            a.health = 500
            until(lambda: endpoint(nginx, a)["health"] == "unhealthy", what="the failed check")
            nginx.put("cluster.yaml", cluster("", all))
            until(lambda: ports(nginx) == set(all), what="the end of the checks")


def test_a_response_may_say_that_its_endpoint_is_healthy_no_more():
    with backends(2) as (a, b):
        with mesh(Nginx(), checked(interval="2s"), [a.port, b.port]) as nginx:
            until(lambda: all(e["active_health_check"] == "passed" for e in status(nginx)["endpoints"]), what="the first checks")
            a.more = [("x-envoy-immediate-health-check-fail", "true")]
            seen = [get(nginx.port)[1] for _ in range(10)]
            assert seen.count(str(a.port)) == 1, seen
            assert endpoint(nginx, a)["active_health_check"] == "failed"
            until(lambda: endpoint(nginx, a)["active_health_check"] == "passed", what="two good checks")


def test_tcp_checks_see_whether_anybody_listens():
    with backends(2) as (a, b):
        tcp = checked().replace("http_health_check: {path: /healthz}", "tcp_health_check: {}")
        with mesh(Nginx(), tcp, [a.port, b.port]) as nginx:
            until(lambda: all(e["active_health_check"] == "passed" for e in status(nginx)["endpoints"]), what="the first checks")
            b.close()
            until(lambda: endpoint(nginx, b)["health"] == "unhealthy", what="the failed check")
            assert ports(nginx) == {a.port}


OUTLIER = """
outlier_detection: {consecutive_5xx: 3, interval: 0.5s, base_ejection_time: 5s, max_ejection_percent: 50}
"""


def test_three_5xx_in_a_row_eject_for_a_while():
    with backends(2) as (a, b):
        with mesh(Nginx(), OUTLIER, [a.port, b.port]) as nginx:
            until(lambda: ports(nginx) == {a.port, b.port}, what="the mesh")
            b.status = 500
            # At once, as the third answer ends.
            failed = answers(nginx, 20)
            assert failed == {(200, str(a.port)): 17, (500, str(b.port)): 3}, failed
            assert endpoint(nginx, b)["ejected"] and status(nginx)["ejected"] == 1
            assert not endpoint(nginx, a)["ejected"]
            b.status = 200
            until(lambda: b.port in ports(nginx, 4), what="its way back")
            assert not endpoint(nginx, b)["ejected"] and status(nginx)["runtime_unhealthy"] == 0
            # No more than the share.
            a.status = b.status = 503
            answers(nginx)
            assert status(nginx)["ejected"] == 1


def test_nobody_is_ejected_where_the_share_is_less_than_one():
    with backends(2) as (a, b):
        with mesh(Nginx(), OUTLIER.replace("50", "10"), [a.port, b.port]) as nginx:
            until(lambda: ports(nginx) == {a.port, b.port}, what="the mesh")
            b.status = 500
            assert answers(nginx) == {(200, str(a.port)): 20, (500, str(b.port)): 20}
            one = OUTLIER.replace("max_ejection_percent: 50", "always_eject_one_host: true")
            nginx.put("cluster.yaml", cluster(one, [a.port, b.port]))
            until(lambda: ports(nginx, 10) == {a.port} and status(nginx)["ejected"] == 1, what="the ejection")


def test_connections_that_fail_eject_too():
    with backends(1) as (a,):
        closed = free_port()
        with mesh(Nginx(), OUTLIER, [a.port, closed]) as nginx:
            until(lambda: nginx.answers(nginx.port) and get(nginx.port)[0] != 404, what="the mesh")
            answers(nginx, 8)
            assert status(nginx)["ejected"] == 1
            until(lambda: f"127.0.0.1:{closed} is ejected (1 of 2 ejected)" in nginx.log(), what="the line in the log")


class Slow(threading.Thread):
    """A request that takes until its backend is released."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.answer = port, None
        self.start()

    def run(self):
        self.answer = get(self.port, "/slow")


def raw(port, path="/"):
    with socket.create_connection(("127.0.0.1", port), 10) as s:
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        with contextlib.suppress(ConnectionResetError):
            return b"".join(iter(lambda: s.recv(65536), b"")).decode()
        return ""


OVERFLOW = "upstream connect error or disconnect/reset before headers. reset reason: overflow"


def test_what_a_cluster_has_no_room_for_is_answered_as_envoy_does():
    log = 'log_format f "$status $amesh_response_flags $amesh_endpoint"; access_log {} f;'
    for limit, room in (("max_requests: 2", 2), ("max_connections: 1, max_pending_requests: 2", 3)):
        with backends(1) as (a,):
            nginx = Nginx(workers=2)
            nginx.http = log.format(nginx.dir / "access.log")
            fields = f"circuit_breakers: {{thresholds: [{{{limit}}}]}}"
            with mesh(nginx, fields, [a.port]):
                until(lambda: ports(nginx, 1), what="the mesh")
                slow = [Slow(nginx.port) for _ in range(room)]
                until(lambda: status(nginx)["rq_active"] == room, what="the requests")
                refused = raw(nginx.port)
                assert refused.startswith("HTTP/1.1 503 ") and refused.endswith("\r\n\r\n" + OVERFLOW), refused
                assert re.search("^x-envoy-overloaded: true\r$", refused, re.M | re.I)
                assert "503 UO -" in (nginx.dir / "access.log").read_text()
                a.release.set()
                for thread in slow:
                    thread.join(10)
                assert [thread.answer for thread in slow] == [(200, str(a.port))] * room
                until(lambda: status(nginx)["rq_active"] == 0, what="the end of the requests")
                assert ports(nginx, 1) == {a.port}


def test_a_tcp_connection_too_many_is_closed():
    door = free_port()
    tcp = """
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: tcp
address: {socket_address: {address: 127.0.0.1, port_value: %d}}
filter_chains:
- filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}
""" % door
    with backends(1) as (a,):
        nginx = Nginx()
        log = nginx.dir / "tcp.log"
        nginx.stream = f"""
            log_format f "$amesh_cluster $amesh_response_flags"; access_log {log} f;
            server {{ listen 127.0.0.1:{door}; amesh outbound; }}
        """
        with mesh(nginx, "circuit_breakers: {thresholds: [{max_connections: 1}]}", [a.port]):
            nginx.put("tcp.yaml", tcp)
            until(lambda: nginx.answers(door), what="the TCP listener")
            first = Slow(door)
            until(lambda: status(nginx)["cx_active"] == 1, what="the connection")
            assert raw(door) == ""
            until(lambda: "c UO" in log.read_text(), what="the line in the log")
            a.release.set()
            first.join(10)
            assert first.answer == (200, str(a.port))
            until(lambda: status(nginx)["cx_active"] == 0, what="its end")
            assert get(door) == (200, str(a.port))


def test_what_a_killed_worker_held_of_a_limit_is_given_back():
    with backends(1) as (a,):
        with mesh(Nginx(), "circuit_breakers: {thresholds: [{max_requests: 1}]}", [a.port]) as nginx:
            until(lambda: ports(nginx, 1), what="the mesh")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", nginx.port)) as s:
                s.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
                until(lambda: status(nginx)["rq_active"] == 1, what="the request")
                assert get(nginx.port)[0] == 503
                os.kill(nginx.children()[0], signal.SIGKILL)
            until(lambda: nginx.answers(nginx.port) and get(nginx.port)[0] == 200, what="room again")
