"""What routes and TCP proxies ask of a pick: the same endpoint for the same client, endpoints by their metadata."""

import socket

import amesh

CLUSTER = """
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: up
type: STATIC
"""


def cluster(more, **endpoints):
    """Cluster `up`; each endpoint has its name in the metadata `envoy.lb`."""
    text = ", ".join(
        f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}},"
        f" metadata: {{filter_metadata: {{envoy.lb: {{version: {name}}}}}}}}}"
        for name, port in endpoints.items()
    )
    return CLUSTER + f"{more}\nload_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{text}]}}]}}\n"


def tcp(port, more):
    return f"""
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: tcp
address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
traffic_direction: OUTBOUND
bind_to_port: false
filter_chains:
- filters:
  - name: tcp
    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: up, {more}}}
"""


class Mesh(amesh.Nginx):
    """The front door on `door`, and two endpoints of TCP that say their port."""

    def __init__(self):
        self.door, self.tcp_a, self.tcp_b = (amesh.free_port() for _ in range(3))
        backends = "".join(f"server {{ listen 127.0.0.1:{p}; return $server_port; }}" for p in (self.tcp_a, self.tcp_b))
        super().__init__(stream=f"server {{ listen 127.0.0.1:{self.door}; amesh outbound; }} {backends}")

    def endpoint(self, source="127.0.0.1"):
        with socket.create_connection(("127.0.0.1", self.door), 20, (source, 0)) as c:
            return {str(self.tcp_a): "a", str(self.tcp_b): "b"}.get(c.recv(100).decode())


def test_connections_of_one_client_go_to_one_endpoint():
    mesh = Mesh()
    mesh.put("listener.yaml", tcp(mesh.door, "hash_policy: [{source_ip: {}}]"))
    mesh.put("cluster.yaml", cluster("lb_policy: RING_HASH", a=mesh.tcp_a, b=mesh.tcp_b))
    with mesh:
        amesh.until(mesh.endpoint, what="the cluster")
        seen = {source: {mesh.endpoint(source) for _ in range(6)} for source in (f"127.0.0.{n}" for n in range(2, 22))}
        assert all(len(endpoints) == 1 for endpoints in seen.values()), seen
        assert set.union(*seen.values()) == {"a", "b"}, "all of twenty clients at one endpoint"


SUBSETS = """lb_subset_config:
  fallback_policy: NO_FALLBACK
  subset_selectors: [{keys: [version]}]
"""


def test_a_proxy_asks_for_endpoints_by_their_metadata():
    mesh = Mesh()
    mesh.put("listener.yaml", tcp(mesh.door, "metadata_match: {filter_metadata: {envoy.lb: {version: b}}}"))
    mesh.put("cluster.yaml", cluster(SUBSETS, a=mesh.tcp_a, b=mesh.tcp_b))
    with mesh:
        amesh.until(mesh.endpoint, what="the cluster")
        assert {mesh.endpoint() for _ in range(8)} == {"b"}


def test_a_route_asks_for_endpoints_by_their_metadata():
    mesh = Mesh()
    mesh.put("listener.yaml", amesh.listener(mesh.port))
    mesh.put("cluster.yaml", cluster(SUBSETS, a=mesh.a, b=mesh.b))

    def route(version):
        return f"""
"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
name: web
virtual_hosts:
- name: all
  domains: ["*"]
  routes: [{{match: {{prefix: /}}, route: {{cluster: up, metadata_match: {{filter_metadata: {{envoy.lb: {{version: {version}}}}}}}}}}}]
"""

    mesh.put("route.yaml", route("b"))
    with mesh:
        assert {mesh.get() for _ in range(8)} == {(200, str(mesh.b))}
        mesh.put("route.yaml", route("c"))
        amesh.until(lambda: mesh.get() == (503, "no healthy upstream"), what="a subset that is empty")
