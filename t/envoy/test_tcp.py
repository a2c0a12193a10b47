"""TCP on Envoy and on nginx: what clients and endpoints see, and what the access log says. One listener a case."""

import asyncio
import collections
import contextlib
import dataclasses
import pathlib
import socket
import struct

import judge
import mesh
import pytest
import subjects
import upstream

amesh = subjects.amesh
TCP = mesh.T + "extensions.filters.network.tcp_proxy.v3.TcpProxy"
PROXY = mesh.T + "extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
RAW = {"name": "raw", "typed_config": {"@type": mesh.T + "extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}
ENVOY_LOG = {
    "id": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "flags": "%RESPONSE_FLAGS%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "endpoint": "%UPSTREAM_HOST%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
}
NGINX_LOG = (
    '{"id":"$remote_addr:$remote_port","flags":"$amesh_response_flags","cluster":"$amesh_cluster","endpoint":"$amesh_endpoint",'
    '"received":"$bytes_received","sent":"$bytes_sent"}'
)


def proxied(**config):
    return {"name": "p", "typed_config": {"@type": PROXY, "config": config, "transport_socket": RAW}}


def labelled(name):
    return {"endpoint": name, "metadata": {"filter_metadata": {"envoy.lb": {"version": name}}}}


def wants(version):
    return {"filter_metadata": {"envoy.lb": {"version": version}}}


HASHED = {"hash_policy": [{"source_ip": {}}]}
SUBSETS = {"fallback_policy": "NO_FALLBACK", "subset_selectors": [{"keys": ["version"]}]}
# {cluster: endpoints or a Cluster}; the endpoints are those of `Endpoints`.
CLUSTERS = {
    "talks": ["a"],
    "other": ["b"],
    "half": ["c"],
    "resets": ["d"],
    "nobody": ["down"],
    "nobody twice": ["down", "down 2"],
    "one is there": {"endpoints": [{"priority": 0, "lb_endpoints": ["down"]}, {"priority": 1, "lb_endpoints": ["a"]}]},
    "none": [],
    "ring": {"lb_policy": "RING_HASH", "endpoints": ["a", "b", "c", "d"]},
    "maglev": {"lb_policy": "MAGLEV", "endpoints": ["a", "b", "c", "d"]},
    "subsets": {"lb_subset_config": SUBSETS, "endpoints": [labelled("a"), labelled("b")]},
    "no connections": {"endpoints": ["a"], "circuit_breakers": {"thresholds": [{"max_connections": 0}]}},
    "nothing pending": {"endpoints": ["a"], "circuit_breakers": {"thresholds": [{"max_pending_requests": 0}]}},
    "v1": {"endpoints": ["proxied"], "transport_socket": proxied(version="V1")},
    "v2": {"endpoints": ["proxied"], "transport_socket": proxied(version="V2", added_tlvs=[{"type": 234, "value": "aGk="}])},
    "alive": {
        "endpoints": ["e"],
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 41, "keepalive_interval": 7, "keepalive_probes": 3}},
    },
    "alive by default": {"endpoints": ["e"], "upstream_connection_options": {"tcp_keepalive": {}}},
    "not alive": ["e"],
}
# {case: fields of the TCP proxy}.
PROXIES = {
    "talks": {"cluster": "talks"},
    "half": {"cluster": "half"},
    "resets": {"cluster": "resets"},
    "idle": {"cluster": "talks", "idle_timeout": "0.5s"},
    "never idle": {"cluster": "talks", "idle_timeout": "0s"},
    "life": {"cluster": "talks", "max_downstream_connection_duration": "0.5s"},
    "weights": {"weighted_clusters": {"clusters": [{"name": "talks", "weight": 1}, {"name": "other", "weight": 3}]}},
    "nobody": {"cluster": "nobody"},
    "nobody, three times": {"cluster": "nobody", "max_connect_attempts": 3},
    "one is there, once": {"cluster": "one is there"},
    "one is there, twice": {"cluster": "one is there", "max_connect_attempts": 2},
    "none": {"cluster": "none"},
    "no such cluster": {"cluster": "no such cluster"},
    "ring": {"cluster": "ring", **HASHED},
    "maglev": {"cluster": "maglev", **HASHED},
    "subset a": {"cluster": "subsets", "metadata_match": wants("a")},
    "subset b": {"cluster": "subsets", "metadata_match": wants("b")},
    "no such subset": {"cluster": "subsets", "metadata_match": wants("c")},
    "weighted subsets": {
        "metadata_match": wants("c"),
        "weighted_clusters": {
            "clusters": [
                {"name": "subsets", "weight": 1, "metadata_match": wants("a")},
                {"name": "subsets", "weight": 1, "metadata_match": wants("b")},
            ]
        },
    },
    "no connections": {"cluster": "no connections"},
    "nothing pending": {"cluster": "nothing pending"},
    "v1": {"cluster": "v1"},
    "v2": {"cluster": "v2"},
    "alive": {"cluster": "alive"},
    "alive by default": {"cluster": "alive by default"},
    "not alive": {"cluster": "not alive"},
}


class Nginx(subjects.Nginx):
    """nginx whose front door takes all listeners."""

    listen = ""

    def start(self, listeners, clusters):
        self.put("listeners", listeners)
        self.put("clusters", clusters)
        ports = [listener["address"]["socket_address"]["port_value"] for listener in listeners]
        listens = "\n".join(f"listen {self.address}:{port} {self.listen};" for port in ports)
        self.nginx.stream = f"""
log_format judge escape=json '{NGINX_LOG}';
access_log {self.log.path} judge;
server {{
    {listens}
    amesh outbound;
}}
"""
        self.nginx.__enter__()


def listener(name, subject, port):
    log = {
        "@type": mesh.T + "extensions.access_loggers.file.v3.FileAccessLog",
        "path": str(subject.log.path),
        "log_format": {"json_format": ENVOY_LOG},
    }
    fields = {"@type": TCP, "stat_prefix": "tcp", "access_log": [{"name": "file", "typed_config": log}], **PROXIES[name]}
    return {
        "@type": mesh.LISTENER,
        "name": name,
        "address": mesh.address(subject.address, port),
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": fields}]}],
    }


@pytest.fixture(scope="module")
def both():
    addresses = mesh.Addresses()
    addresses.endpoints["down 2"] = (addresses.endpoints["down"][0], 8081)
    pair = []
    try:
        pair += [subjects.Envoy(addresses.envoy), Nginx(addresses.nginx)]
        ports = {name: next(addresses.ports) for name in PROXIES}
        for subject in pair:
            listeners = [listener(name, subject, port) for name, port in ports.items()]
            clusters = [{**mesh.cluster(addresses, name, spec), "typed_extension_protocol_options": {}} for name, spec in CLUSTERS.items()]
            subject.start(listeners, clusters)
        yield Both(pair, addresses, ports)
    except BaseException:
        for subject in pair:
            print(f"{subject.name}: {subject.rejected()}")
        raise
    finally:
        for subject in pair:
            subject.stop()
        addresses.lock.close()


@dataclasses.dataclass
class Both:
    """Envoy and nginx, and where they listen."""

    subjects: list
    addresses: mesh.Addresses
    ports: dict

    def play(self, name, script, **more):
        """What came of a script's connection to each subject, with the entry of the access log and what the endpoint saw."""
        return asyncio.run(self.all(name, script, **more))

    async def all(self, name, script, **more):
        async with Endpoints(self.addresses.endpoints) as endpoints:
            return [await self.one(subject, endpoints, name, script, **more) for subject in self.subjects]

    async def one(self, subject, endpoints, name, script, source="127.0.0.1", log=True):
        endpoints.seen.clear()
        reader, writer = await asyncio.open_connection(subject.address, self.ports[name], local_addr=(source, 0))
        result = {"client": await script(Client(reader, writer))}
        result["id"] = "{}:{}".format(*writer.get_extra_info("sockname"))
        writer.transport.abort()
        result["subject"] = subject.name
        await asyncio.sleep(0.05)
        result["endpoints"] = [tuple(seen) for seen in endpoints.seen]
        if log:
            await asyncio.to_thread(subjects.add_logs, [subject], [result])
            assert "log" in result, f"{subject.name} logs nothing"
        del result["id"], result["subject"]
        return eval(repr(result).replace(subject.address, "(listener)"))

    def same(self, name, script, **more):
        envoy, nginx = self.play(name, script, **more)
        assert nginx == envoy
        return envoy


class Client:
    """The client's side of a connection. What it sees is told in a list."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.seen = reader, writer, []

    def say(self, text):
        self.writer.write(text.encode())

    async def hear(self, text):
        self.seen.append((await self.reader.readexactly(len(text))).decode())

    def finish(self):
        self.writer.write_eof()

    async def rest(self):
        """All until the other side has finished, and how it did."""
        try:
            self.seen += [(await asyncio.wait_for(self.reader.read(), 10)).decode(), "end"]
        except ConnectionResetError:
            self.seen.append("reset")


class Endpoints:
    """`a`, `b`, `e` greet by their name, echo, and say goodbye to who has finished; `c` greets, finishes, and goes on listening; `d`
    resets who says something. `seen` is what each connection of them was told, and how it ended."""

    def __init__(self, addresses):
        self.addresses, self.seen = addresses, []

    async def __aenter__(self):
        self.servers = []
        for name in ("a", "b", "c", "d", "e", "proxied"):
            serve = lambda reader, writer, name=name: self.connection(name, reader, writer)
            self.servers.append(await asyncio.start_server(serve, *self.addresses[name]))
        return self

    async def __aexit__(self, *_):
        for server in self.servers:
            server.close()

    async def connection(self, name, reader, writer):
        seen = [name]
        self.seen.append(seen)
        try:
            await getattr(self, f"serve_{name}" if name in "cd" else "talk")(name, seen, reader, writer)
        except ConnectionResetError:
            seen.append("reset")
        except asyncio.IncompleteReadError:
            seen.append("end")
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def talk(self, name, seen, reader, writer):
        said = f" {await upstream.proxy(reader)}" if name == "proxied" else ""
        writer.write(f"{name}{said}\n".encode())
        while data := await reader.read(1000):
            seen.append(data.decode())
            writer.write(b"echo " + data)
        seen.append("end")
        writer.write(b"bye\n")
        await writer.drain()

    async def serve_c(self, name, seen, reader, writer):
        writer.write(b"c\n")
        writer.write_eof()
        seen += [(await reader.read()).decode(), "end"]

    async def serve_d(self, name, seen, reader, writer):
        seen.append((await reader.read(1000)).decode())
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def talk(client):
    await client.hear("a\n")
    client.say("hello")
    await client.hear("echo hello")
    client.finish()
    await client.rest()
    return client.seen


async def greeting(client):
    client.seen.append((await client.reader.read(200)).decode())
    return client.seen


async def until_the_end(client):
    start = asyncio.get_running_loop().time()
    await client.rest()
    return [*client.seen, round(asyncio.get_running_loop().time() - start, 1)]


def test_the_client_may_finish_first(both):
    seen = both.same("talks", talk)
    assert seen["client"][-2:] == ["bye\n", "end"] and seen["endpoints"] == [("a", "hello", "end")]
    assert seen["log"]["received"] == "5" and seen["log"]["sent"] == "16"


def test_the_endpoint_may_finish_first(both):
    async def script(client):
        await client.rest()
        await asyncio.sleep(0.1)
        client.say("there is more")
        client.finish()
        await asyncio.sleep(0.1)
        return client.seen

    seen = both.same("half", script)
    assert seen["endpoints"] == [("c", "there is more", "end")]


def test_an_end_without_a_goodbye(both):
    async def reset(client):
        client.say("hello")
        await client.rest()
        return client.seen

    both.same("resets", reset)

    async def abort(client):
        await client.hear("a\n")
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        return client.seen

    both.same("talks", abort)


def test_time_outs(both):
    assert both.same("idle", until_the_end)["client"][-1] >= 0.4
    assert both.same("life", until_the_end)["client"][-1] >= 0.4

    async def busy(client):
        start = asyncio.get_running_loop().time()
        await client.hear("a\n")
        for _ in range(4):
            await asyncio.sleep(0.25)
            client.say("x")
            await client.hear("echo x")
        await client.rest()
        return [*client.seen, round(asyncio.get_running_loop().time() - start, 1)]

    assert both.same("idle", busy)["client"][-1] >= 1.4

    async def patient(client):
        await client.hear("a\n")
        await asyncio.sleep(1)
        client.say("x")
        await client.hear("echo x")
        return client.seen

    both.same("never idle", patient)


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "nobody, three times",
        "one is there, once",
        "one is there, twice",
        "none",
        "no such cluster",
        "no connections",
        "nothing pending",
        "subset a",
        "subset b",
        "no such subset",
        "v1",
        "v2",
    ],
)
def test_where_a_connection_goes(both, name):
    async def script(client):
        with contextlib.suppress(ConnectionResetError):
            client.seen.append((await asyncio.wait_for(client.reader.read(200), 5)).decode())
        return client.seen

    both.same(name, script)


@pytest.mark.parametrize("name", ["ring", "maglev"])
def test_the_same_client_goes_to_the_same_endpoint(both, name):
    async def script(client):
        client.say("x")
        await asyncio.sleep(0.02)
        return []

    used = set()
    for n in range(2, 14):
        seen = both.same(name, script, source=f"127.0.0.{n}", log=False)
        used.update(one for one, *_ in seen["endpoints"])
    assert len(used) > 1


@pytest.mark.parametrize("name", ["weights", "weighted subsets"])
def test_weights(both, name):
    async def some():
        async with Endpoints(both.addresses.endpoints) as endpoints:
            counts = []
            for subject in both.subjects:
                endpoints.seen.clear()
                for _ in range(200):
                    _, writer = await asyncio.open_connection(subject.address, both.ports[name])
                    await _.read(10)
                    writer.close()
                counts.append({"shares": collections.Counter(one for one, *_ in endpoints.seen)})
            return counts

    envoy, nginx = asyncio.run(some())
    assert len(envoy["shares"]) == 2 and judge.share_differences(envoy["shares"], nginx["shares"]) == []


def timer(addresses):
    """(kind, seconds) of the timer of a connection to `e`, as the kernel has it; kind 2 is keepalive."""
    to = "{:08X}:{:04X}".format(struct.unpack("=I", socket.inet_aton(addresses.endpoints["e"][0]))[0], addresses.endpoints["e"][1])
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] == to and fields[3] == "01":
            kind, left = fields[5].split(":")
            return int(kind, 16), int(left, 16) // 100
    return None


@pytest.mark.parametrize("name, kind, seconds", [("alive", 2, 41), ("alive by default", 2, 7200), ("not alive", 0, 0)])
def test_keepalive(both, name, kind, seconds):
    async def script(client):
        await client.hear("e\n")
        # Until what was sent is acknowledged the timer is another one.
        for _ in range(50):
            await asyncio.sleep(0.02)
            if timer(both.addresses)[0] != 1:
                break
        found = timer(both.addresses)
        return (found[0], abs(found[1] - seconds) <= 2)

    seen = both.same(name, script)
    assert seen["client"] == (kind, True)
