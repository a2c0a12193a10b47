"""HTTP/2, to endpoints and from clients. nginx itself plays the endpoint and the client."""

import amesh

SNIFFED = """listener_filters:
- {name: http, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
filter_chains:"""


def cluster(name, port, options):
    return amesh.cluster(name, port) + f"""typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    {options}
"""


class Mesh(amesh.Nginx):
    """A listener behind the front door (`door`), an endpoint that says its protocol in HTTP/2 (`h2`) and one in HTTP/1 (`h1`),
    and a location /h2 on `client` that asks the door in HTTP/2."""

    def __init__(self, port, options):
        self.h2, self.h1, self.client, self.door = (amesh.free_port() for _ in range(4))
        answer = 'return 200 "$server_protocol $http_host\\n";'
        http = f"""
    server {{ listen 127.0.0.1:{self.h2} http2; location / {{ {answer} }} }}
    server {{ listen 127.0.0.1:{self.h1}; location / {{ {answer} }} }}
    server {{ listen 127.0.0.1:{self.client}; location / {{ grpc_pass grpc://127.0.0.1:{self.door}; grpc_set_header Host asked.example; }} }}"""
        super().__init__(http=http, stream=f"server {{ listen 127.0.0.1:{self.door}; amesh outbound; }}")
        listener = amesh.listener(self.door).replace("filter_chains:", SNIFFED, 1)
        self.put("listener.yaml", amesh.listener(self.port), "\n" + listener)
        self.put("route.yaml", amesh.route("up"))
        self.put("clusters.yaml", cluster("up", getattr(self, port), options))


HTTP2 = "explicit_http_config: {http2_protocol_options: {}}"
HTTP1 = "explicit_http_config: {http_protocol_options: {}}"
DOWNSTREAM = "use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}"


def answers(mesh, port, text):
    amesh.until(lambda: amesh.get(port) == (200, text), what=f"{text} on {port}, not {amesh.get(port)}: {mesh.log()[-1000:]}")


def test_an_endpoint_is_spoken_to_in_http2_over_connections_that_are_kept():
    with Mesh("h2", HTTP2) as mesh:
        for _ in range(3):
            answers(mesh, mesh.port, "HTTP/2.0 mesh.example.com")


def test_a_client_speaks_http2_through_the_front_door():
    with Mesh("h1", HTTP1) as mesh:
        answers(mesh, mesh.client, "HTTP/1.1 asked.example")
        answers(mesh, mesh.door, "HTTP/1.1 mesh.example.com")


def test_the_protocol_of_the_client_goes_on():
    with Mesh("h2", DOWNSTREAM) as mesh:
        answers(mesh, mesh.client, "HTTP/2.0 asked.example")
        # The same endpoint in HTTP/1 by the same cluster: it does not understand, and no connection is mixed up.
        status, body = amesh.get(mesh.door)
        # Since 1.25 nginx takes HTTP/1 on such a listener, too.
        assert (status, body) == (200, "HTTP/1.1 mesh.example.com") or (
            status == 502 and body.endswith("reset reason: protocol error")
        )
        answers(mesh, mesh.client, "HTTP/2.0 asked.example")


def test_a_server_without_the_location_says_so_once():
    with Mesh("h2", HTTP2) as mesh:
        conf = mesh.dir / "amesh/server.conf"
        conf.write_text(conf.read_text().split("location @amesh_http2")[0])
        mesh.reload()
        assert amesh.until(lambda: mesh.get()[0] == 503, what="the refusal")
        assert amesh.get(mesh.port)[0] == 503 and mesh.log().count("include amesh/server.conf") == 1
