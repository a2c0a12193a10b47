"""Retries, time-outs, faults, copies and CORS, as a client and an endpoint see them."""

import concurrent.futures
import http.client
import threading
import time

import amesh
import pytest

RETRY = "retry_policy: {retry_on: '5xx', num_retries: 3}"


def table(route):
    """A route table of one route to `up`; `route` goes into its action."""
    return f"""
"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
name: web
virtual_hosts:
- name: all
  domains: ["*"]
  include_request_attempt_count: true
  include_attempt_count_in_response: true
  routes: [{{match: {{prefix: /}}, route: {{cluster: up, {route}}}}}]
"""


class Mesh(amesh.Nginx):
    """nginx in front of the endpoints of cluster `up`, with the flags and tries of each request in its access log."""

    def __init__(self, *ports, route=RETRY, more=(), **kwargs):
        log = "log_format flags '$http_x_test $amesh_response_flags $amesh_attempts $upstream_addr'; access_log flags.log flags;"
        super().__init__(http=log, **kwargs)
        self.put("listener.yaml", amesh.listener(self.port))
        self.put("route.yaml", table(route))
        self.put("clusters.yaml", amesh.cluster("up", *ports), *more)

    def ask(self, script="200", method="GET", path="/", body=None, **headers):
        """(status, headers, body, seconds) of a request; `script` is what the endpoint does."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        began = time.monotonic()
        self.last = str(began)
        connection.request(method, path, body, {"x-do": script, "x-test": self.last, **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text, time.monotonic() - began

    def flags(self):
        """(flags, tries, endpoints) of the last request."""
        log = self.dir / "flags.log"
        mine = lambda: [line for line in log.read_text().splitlines() if line.startswith(self.last)]
        _, flags, tries, addresses = amesh.until(mine, what="the access log")[0].split(" ", 3)
        return flags, int(tries), addresses.split(", ")


def test_a_status_is_tried_again_with_its_body_and_its_count():
    with amesh.Upstream() as up, Mesh(up.port) as mesh:
        status, headers, _, _ = mesh.ask("503 500 201", "POST", body="hello")
        assert (status, headers["x-envoy-attempt-count"]) == (201, "3")
        assert [(s[2]["x-envoy-attempt-count"], s[3]) for s in up.seen] == [("1", "hello"), ("2", "hello"), ("3", "hello")]
        assert mesh.flags() == ("-", 3, [f"127.0.0.1:{up.port}"] * 3)


def test_the_last_answer_is_given_when_tries_are_used_up():
    with amesh.Upstream() as up, Mesh(up.port) as mesh:
        status, headers, body, _ = mesh.ask("503")
        assert (status, headers["x-envoy-attempt-count"], body) == (503, "4", "up\n")
        assert mesh.flags()[:2] == ("URX", 4) and len(up.seen) == 4


@pytest.mark.parametrize(
    "on, script, tries",
    [
        ("5xx", "404", 1),
        ("gateway-error", "500", 1),
        ("gateway-error", "502 200", 2),
        ("retriable-4xx", "409 200", 2),
        ("retriable-4xx", "429", 1),
        ("connect-failure", "503", 1),
        ("reset", "reset 200", 2),
        ("reset", "503", 1),
        ("5xx", "reset reset 200", 3),
        ("unavailable", "200:grpc-status=14 200", 2),
        ("cancelled", "200:grpc-status=14", 1),
        ("envoy-ratelimited", "429:x-envoy-ratelimited=true 200", 2),
        ("5xx", "503:x-envoy-ratelimited=true", 1),
    ],
)
def test_what_is_tried_again(on, script, tries):
    route = f"retry_policy: {{retry_on: '{on}', num_retries: 3, retry_back_off: {{base_interval: 0.001s}}}}"
    with amesh.Upstream() as up, Mesh(up.port, route=route) as mesh:
        mesh.ask(script)
        assert len(up.seen) == tries


def test_statuses_and_headers_by_name():
    route = """retry_policy: {retry_on: 'retriable-status-codes,retriable-headers', num_retries: 1,
        retriable_status_codes: [418], retriable_headers: [{name: x-again, string_match: {exact: 'yes'}}]}"""
    with amesh.Upstream() as up, Mesh(up.port, route=route) as mesh:
        for script, tries in (("418 200", 2), ("200:x-again=yes 200", 2), ("200:x-again=no 200", 1), ("503", 1)):
            up.seen.clear()
            mesh.ask(script)
            assert len(up.seen) == tries, script


def believes(mesh):
    """Has the mesh believe what requests from this machine say of themselves."""
    internal = "use_remote_address: true\n      internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}"
    mesh.put("listener.yaml", amesh.listener(mesh.port).replace("      stat_prefix:", f"      {internal}\n      stat_prefix:", 1))
    amesh.until(lambda: mesh.ask() and mesh.up.seen[-1][2].get("x-envoy-internal"), what="the listener")
    mesh.up.seen.clear()


def test_requests_from_outside_ask_for_nothing():
    with amesh.Upstream() as up, Mesh(up.port, route="timeout: 5s") as mesh:
        assert mesh.ask("503 200", x_envoy_retry_on="5xx", x_envoy_upstream_rq_timeout_ms="1")[0] == 503
        assert len(up.seen) == 1 and "x-envoy-retry-on" not in up.seen[0][2]


def test_requests_may_ask_for_retries_of_their_own():
    with amesh.Upstream() as up, Mesh(up.port, route="timeout: 5s") as mesh:
        mesh.up = up
        believes(mesh)
        assert mesh.ask("503")[0] == 503 and len(up.seen) == 1
        status, *_ = mesh.ask("503 503 200", x_envoy_retry_on="5xx", x_envoy_max_retries="2")
        assert status == 200 and len(up.seen) == 4
        asked = up.seen[-1][2]
        assert "x-envoy-retry-on" not in asked and "x-envoy-max-retries" not in asked
        assert 0 < int(asked["x-envoy-expected-rq-timeout-ms"]) <= 5000
        assert mesh.ask("418 200", x_envoy_retry_on="retriable-status-codes", x_envoy_retriable_status_codes="418")[0] == 200


def test_another_endpoint_takes_what_one_refuses():
    gone = amesh.free_port()
    route = """retry_policy: {retry_on: connect-failure, num_retries: 2,
        retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}"""
    with amesh.Upstream() as up, Mesh(up.port, gone, route=route) as mesh:
        assert [mesh.ask()[0] for _ in range(6)] == [200] * 6
        assert len(up.seen) == 6


def test_a_refused_connection_that_stays_so():
    gone = amesh.free_port()
    with Mesh(gone) as mesh:
        status, headers, body, _ = mesh.ask()
        assert (status, headers["x-envoy-attempt-count"]) == (503, "4")
        assert "retried and the latest reset reason: remote connection failure" in body
        assert mesh.flags()[:2] == ("URX,UF", 4)


def test_what_a_kept_connection_has_lost_is_sent_once_more():
    with amesh.Upstream() as up, Mesh(up.port, route="timeout: 5s") as mesh:
        # As many connections are kept as there were requests at a time.
        together = [threading.Thread(target=mesh.ask, args=("sleep-0.3",)) for _ in range(4)]
        for one in together:
            one.start()
        for one in together:
            one.join()
        up.seen.clear()
        status, _, body, _ = mesh.ask("reset")
        assert (status, len(up.seen)) == (503, 2) and body.endswith("reset reason: connection termination")
        assert mesh.flags()[:2] == ("UC", 2)
        up.seen.clear()
        assert mesh.ask("reset 200", "POST", body="x")[0] in (200, 503) and len(up.seen) == 1, "not for a POST"


def test_an_answer_that_has_begun_is_not_asked_for_again():
    with amesh.Upstream() as up, Mesh(up.port, route="timeout: 5s") as mesh:
        assert mesh.ask()[0] == 200
        up.seen.clear()
        assert mesh.ask("begin 200")[0] == 503 and len(up.seen) == 1


def test_pauses_grow():
    route = """retry_policy: {retry_on: 5xx, num_retries: 4, retry_back_off: {base_interval: 0.3s, max_interval: 0.3s}}"""
    with amesh.Upstream() as up, Mesh(up.port, route=route) as mesh:
        # Each of the pauses is drawn below 0.3 s: all 40 of them short together is no chance.
        assert sum(mesh.ask("503")[3] for _ in range(10)) > 1
        assert "alert" not in mesh.log() and "[error]" not in mesh.log()


@pytest.mark.parametrize("script", ["sleep-3", "sleep-3 200"])
def test_a_route_has_a_time_for_all_tries(script):
    with amesh.Upstream() as up, Mesh(up.port, route=f"timeout: 0.3s, {RETRY}") as mesh:
        status, _, body, seconds = mesh.ask(script)
        assert (status, body) == (504, "upstream request timeout") and 0.25 < seconds < 2
        assert mesh.flags()[:2] == ("UT", 1) and len(up.seen) == 1


def test_each_try_has_a_time():
    route = "timeout: 10s, retry_policy: {retry_on: 5xx, num_retries: 2, per_try_timeout: 0.3s}"
    with amesh.Upstream() as up, Mesh(up.port, route=route) as mesh:
        assert mesh.ask("sleep-3 200")[0] == 200
        assert up.seen[-1][2]["x-envoy-expected-rq-timeout-ms"] == "300"
        status, _, body, seconds = mesh.ask("sleep-3")
        assert (status, body) == (504, "upstream request timeout") and 0.8 < seconds < 3
        assert mesh.flags()[:2] == ("URX,UT", 3)


def test_a_request_may_ask_for_a_shorter_time():
    with amesh.Upstream() as up, Mesh(up.port, route="timeout: 5s") as mesh:
        mesh.up = up
        believes(mesh)
        assert mesh.ask("sleep-2", x_envoy_upstream_rq_timeout_ms="200")[0] == 504
        assert "x-envoy-upstream-rq-timeout-ms" not in up.seen[-1][2]
        assert up.seen[-1][2]["x-envoy-expected-rq-timeout-ms"] == "200"


def test_a_stream_may_be_idle_for_so_long():
    with amesh.Upstream() as up, Mesh(up.port, route="timeout: 0s, idle_timeout: 0.3s") as mesh:
        status, _, body, _ = mesh.ask("sleep-2")
        assert (status, body) == (504, "stream timeout") and mesh.flags()[0] == "SI"
        assert "x-envoy-expected-rq-timeout-ms" not in up.seen[-1][2]


def test_a_stream_may_last_so_long():
    route = "timeout: 0s, max_stream_duration: {max_stream_duration: 0.3s}"
    with amesh.Upstream() as up, Mesh(up.port, route=route) as mesh:
        status, _, body, _ = mesh.ask("sleep-2")
        assert (status, body) == (504, "downstream duration timeout")


def test_calls_of_grpc_are_answered_in_their_own_way():
    with Mesh(amesh.free_port(), route="timeout: 5s") as mesh:
        status, headers, body, _ = mesh.ask(method="POST", body="", content_type="application/grpc")
        assert (status, headers["content-type"], headers["grpc-status"], body) == (200, "application/grpc", "14", "")
        assert headers["grpc-message"].startswith("upstream connect error")


def test_a_copy_goes_to_another_cluster_and_nobody_waits_for_it():
    with amesh.Upstream("real") as up, amesh.Upstream("copy") as copy:
        route = "request_mirror_policies: [{cluster: copy}]"
        with Mesh(up.port, route=route, more=[amesh.cluster("copy", copy.port)]) as mesh:
            status, _, body, seconds = mesh.ask("sleep-0", "POST", "/a?b", "hello", host="web:80")
            assert (status, body) == (200, "real\n")
            method, path, headers, text = amesh.until(lambda: copy.seen, what="the copy")[0]
            assert (method, path, text, headers["host"]) == ("POST", "/a?b", "hello", "web-shadow:80")
            assert up.seen[0][2]["host"] == "web:80"
            # A copy that takes long, or none that can be sent, is not felt.
            assert mesh.ask("sleep-0", host="a")[3] < 2
        with Mesh(up.port, route=route, more=[amesh.cluster("copy", amesh.free_port())]) as mesh:
            assert mesh.ask()[0] == 200


CORS = """
"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
name: web
virtual_hosts:
- name: all
  domains: ["*"]
  typed_per_filter_config:
    envoy.filters.http.cors:
      "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "https://a.example"}]
      allow_methods: "GET,PUT"
      max_age: "600"
      allow_credentials: true
  routes:
  - match: {prefix: /slow}
    route: {cluster: up}
    typed_per_filter_config:
      envoy.filters.http.fault:
        "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
        delay: {fixed_delay: 0.4s, percentage: {numerator: 100}}
  - match: {prefix: /broken}
    route: {cluster: up}
    typed_per_filter_config:
      envoy.filters.http.fault:
        "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
        delay: {header_delay: {}, percentage: {numerator: 100}}
        abort: {http_status: 418, percentage: {numerator: 100}}
        headers: [{name: x-break}]
  - match: {prefix: /}
    route: {cluster: up}
"""
FILTERS = """
      - name: envoy.filters.http.fault
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}
      - name: envoy.filters.http.cors
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
"""


@pytest.fixture
def filters():
    """(endpoint, mesh) whose listener has the filters for faults and CORS."""
    with amesh.Upstream() as up, Mesh(up.port) as mesh:
        listener = amesh.listener(mesh.port)
        mesh.put("listener.yaml", listener.replace("http_filters:\n", "http_filters:" + FILTERS, 1))
        mesh.put("route.yaml", CORS)
        amesh.until(lambda: mesh.ask(path="/broken", x_break="1")[0] == 418, what="the routes")
        up.seen.clear()
        yield up, mesh


def test_a_fault_makes_a_request_wait(filters):
    up, mesh = filters
    status, _, body, seconds = mesh.ask(path="/slow", method="POST", body="x" * 100)
    assert (status, body) == (200, "up\n") and seconds > 0.35 and up.seen[0][3] == "x" * 100
    assert mesh.flags()[0] == "DI"


def test_a_fault_answers_a_request(filters):
    up, mesh = filters
    status, _, body, seconds = mesh.ask(path="/broken", x_break="1")
    assert (status, body) == (418, "fault filter abort") and seconds < 0.3 and mesh.flags()[0] == "FI"
    status, _, _, seconds = mesh.ask(path="/broken", x_break="1", x_envoy_fault_delay_request="400")
    assert status == 418 and seconds > 0.35 and mesh.flags()[0] == "DI,FI"
    assert mesh.ask(path="/broken")[0] == 200 and len(up.seen) == 1


def test_scripts_of_other_origins_are_answered(filters):
    up, mesh = filters
    ask = {"access_control_request_method": "PUT"}
    status, headers, body, _ = mesh.ask(method="OPTIONS", origin="https://a.example", **ask)
    assert (status, body, up.seen) == (200, "", [])
    assert headers["access-control-allow-origin"] == "https://a.example"
    assert (headers["access-control-allow-methods"], headers["access-control-max-age"]) == ("GET,PUT", "600")
    status, headers, body, _ = mesh.ask(origin="https://a.example")
    assert (status, headers["access-control-allow-credentials"]) == (200, "true") and len(up.seen) == 1
    status, headers, *_ = mesh.ask(method="OPTIONS", origin="https://b.example", **ask)
    assert "access-control-allow-origin" not in headers and len(up.seen) == 2


LIMIT = """http_filters:
      - name: envoy.filters.http.local_ratelimit
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
          stat_prefix: s
          token_bucket: {max_tokens: 30, fill_interval: 3600s}
          filter_enabled: {default_value: {numerator: 100}}
          filter_enforced: {default_value: {numerator: 100}}
"""


def test_all_workers_take_tokens_from_one_bucket_which_outlives_updates():
    with amesh.Upstream() as up:
        mesh = Mesh(up.port, workers=4)
        listener = amesh.listener(mesh.port).replace("http_filters:\n", LIMIT)
        mesh.put("listener.yaml", listener)
        with mesh, concurrent.futures.ThreadPoolExecutor(16) as many:
            statuses = lambda n: [answer[0] for answer in many.map(lambda _: mesh.ask(), range(n))]
            first = statuses(120)
            assert (first.count(200), first.count(429)) == (30, 90)
            mesh.put("listener.yaml", listener.replace("bind_to_port", "metadata: {}\nbind_to_port").replace("max_tokens: 30", "max_tokens: 40"))
            amesh.until(lambda: 200 in statuses(1), what="another bucket")
            assert statuses(80).count(200) == 39, "another bucket is full"
            mesh.put("listener.yaml", listener.replace("stat_prefix: s", "stat_prefix: other").replace("max_tokens: 30", "max_tokens: 40"))
            mesh.put("route.yaml", table(RETRY).replace("name: all", "name: every"))
            log = mesh.dir / "flags.log"
            assert statuses(40).count(200) == 0 and " RL " in log.read_text()
