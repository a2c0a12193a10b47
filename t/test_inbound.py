"""Inbound listeners that are not captured: Istio's interception mode NONE binds each to its own port."""

from amesh import Nginx, cluster, free_port, get, listener, route, until


def inbound(port, table, bind=True):
    bound = listener(port, table, f"127.0.0.1_{port}").replace("OUTBOUND", "INBOUND")
    return bound.replace("bind_to_port: false", f"bind_to_port: {str(bind).lower()}")


def test_a_bound_inbound_listener_is_found_by_its_address():
    own, other, door, rest = (free_port() for _ in range(4))
    virtual = inbound(15006, "all")
    http = f"""
        server {{ listen 127.0.0.1:{own}; listen 127.0.0.1:{other}; amesh inbound; include amesh/server.conf; }}
        server {{ listen 127.0.0.1:{rest}; amesh inbound; include amesh/server.conf; }}
    """
    stream = f"server {{ listen 127.0.0.1:{door}; amesh inbound; }}"
    with Nginx(http=http, stream=stream) as nginx:
        nginx.put("clusters.yaml", cluster("a", nginx.a), cluster("b", nginx.b))
        nginx.put("routes.yaml", route("a", "one"), route("b", "two"), route("b", "all"))
        # Nobody asks for a destination of the other direction.
        elsewhere = listener(own, "two", "outbound").replace("INBOUND", "OUTBOUND")
        nginx.put("listeners.yaml", inbound(own, "one"), inbound(other, "two"), inbound(door, "one"), elsewhere)
        until(lambda: get(own)[0] == 200, what="the listener")
        assert get(own) == (200, str(nginx.a))
        assert get(other) == (200, str(nginx.b))
        assert get(door) == (200, str(nginx.a)), "by the front door too"
        assert get(rest)[0] == 404, "no listener has this address, and none takes what is captured"

        nginx.put("virtual.yaml", virtual)
        until(lambda: get(rest)[0] == 200, what="the virtual listener")
        assert get(rest) == (200, str(nginx.b))
        assert get(own) == (200, str(nginx.a)), "its own listener goes before the virtual one"
        wanted = f"wants a socket on 127.0.0.1:{own}"
        assert wanted not in nginx.log() and "wants a socket on 127.0.0.1:15006" in nginx.log()
