"""The one configuration of both subjects: every case has a listener with a route table of its own, and all share clusters.

Addresses are 127.N.0.x: the first N that no other run holds, so that what depends on them is the same from run to run.
"""

import itertools
import socket

T = "type.googleapis.com/envoy."
HCM = T + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = T + "extensions.filters.http.router.v3.Router"
LISTENER, CLUSTER, TABLE = (T + f"config.{kind}" for kind in ("listener.v3.Listener", "cluster.v3.Cluster", "route.v3.RouteConfiguration"))
ENDPOINTS = ("a", "b", "c", "d", "e", "mirror", "proxied")
# "down" listens nowhere.
NAMES = (*ENDPOINTS, "down")
# What cases can use without saying more.
CLUSTERS = {
    "a": ["a"],
    "b": ["b"],
    "c": ["c"],
    "both": ["a", "b"],
    "all": ["a", "b", "c", "d", "e"],
    "down": ["down"],
    "flaky": ["down", "a"],
    "empty": [],
    "mirror": ["mirror"],
    "kept": {"typed_extension_protocol_options": {}, "endpoints": ["a"]},
}
# A connection to an endpoint has one request, but in the cluster `kept`: what becomes of a request does not depend on the one before.
FRESH = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": T + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"max_requests_per_connection": 1},
        "explicit_http_config": {"http_protocol_options": {}},
    }
}
ENDPOINT_PORT, FIRST_PORT = 8080, 20000
# The outcome of a request in the words of each access log.
ENVOY_LOG = {
    "id": "%REQ(X-TEST-ID)%",
    "flags": "%RESPONSE_FLAGS%",
    "status": "%RESPONSE_CODE%",
    "route": "%ROUTE_NAME%",
    "cluster": "%UPSTREAM_CLUSTER%",
}
NGINX_LOG = (
    '{"id":"$http_x_test_id","flags":"$amesh_response_flags","status":"$status",'
    '"route":"$amesh_route","cluster":"$amesh_cluster"}'
)


class Addresses:
    """Addresses of this run's own; they are its own as long as `lock` is open."""

    def __init__(self):
        for n in range(64, 128):
            self.lock = socket.socket()
            try:
                self.lock.bind((f"127.{n}.0.250", FIRST_PORT))
                break
            except OSError:
                self.lock.close()
        else:
            raise OSError("127.64.0.250 to 127.127.0.250 are taken: 64 runs at once?")
        self.envoy, self.nginx = f"127.{n}.0.1", f"127.{n}.0.2"
        self.endpoints = {name: (f"127.{n}.1.{1 + i}", ENDPOINT_PORT) for i, name in enumerate(NAMES)}
        self.ports = itertools.count(FIRST_PORT)


def address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def endpoint(addresses, one):
    """A name, or an LbEndpoint whose `endpoint` is a name."""
    one = {"endpoint": one} if isinstance(one, str) else dict(one)
    if isinstance(one["endpoint"], str):
        one["endpoint"] = {"address": address(*addresses.endpoints[one["endpoint"]])}
    return one


def cluster(addresses, name, spec):
    """A cluster from a list of endpoints, or from a whole Cluster with `endpoints`: such a list, or localities with `lb_endpoints`."""
    # Cases run at once, and Envoy retries three requests of a cluster at a time unless it is told otherwise.
    plain = {"circuit_breakers": {"thresholds": [{"max_retries": 1000}]}}
    spec = {"endpoints": spec, **plain} if isinstance(spec, list) else dict(spec)
    localities = spec.pop("endpoints", [])
    if not all(isinstance(one, dict) and "lb_endpoints" in one for one in localities):
        localities = [{"lb_endpoints": localities}] if localities else []
    localities = [{**one, "lb_endpoints": [endpoint(addresses, e) for e in one["lb_endpoints"]]} for one in localities]
    load = {"cluster_name": name, "endpoints": localities, **spec.pop("load_assignment", {})}
    # Cases run side by side, and Envoy makes no more than three retries of a cluster at a time unless it is told.
    many = {"thresholds": [{"max_retries": 1000}]}
    common = {"connect_timeout": "1s", "circuit_breakers": many, "typed_extension_protocol_options": FRESH}
    return {"@type": CLUSTER, "name": name, "type": "STATIC", "load_assignment": load, **common, **spec}


def table(case, name):
    hosts = case.get("virtual_hosts") or [{"name": "all", "domains": ["*"], **case.get("vhost", {}), "routes": case.get("routes", [])}]
    return {"name": name, "validate_clusters": False, "virtual_hosts": hosts, **case.get("table", {})}


def listener(name, host, port, log, case, routes):
    """`routes` are the connection manager's: `rds`, or `route_config`."""
    manager = {
        "@type": HCM,
        "stat_prefix": name,
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": T + "extensions.access_loggers.file.v3.FileAccessLog",
                    "path": str(log),
                    "log_format": {"json_format": ENVOY_LOG},
                },
            }
        ],
        **({} if "scoped_routes" in case.get("hcm", {}) else routes),
        **case.get("hcm", {}),
        "http_filters": [
            *case.get("filters", []),
            {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER, **case.get("router", {})}},
        ],
    }
    return {
        "@type": LISTENER,
        "name": name,
        "address": address(host, port),
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
