"""UDP on Envoy and on nginx: who answers a client, and for how long."""

import asyncio
import contextlib
import socket

import mesh
import pytest
import subjects
from test_tcp import Nginx

UDP = mesh.T + "extensions.filters.udp.udp_proxy.v3."
CLUSTERS = {
    "one": ["a"],
    "all": ["a", "b", "c", "d"],
    "ring": {"lb_policy": "RING_HASH", "endpoints": ["a", "b", "c", "d"]},
    "nobody": ["down"],
    "none": [],
}


def matched(cluster):
    action = {"name": "route", "typed_config": {"@type": UDP + "Route", "cluster": cluster}}
    return {"matcher": {"on_no_match": {"action": action}}}


# {case: fields of the UDP proxy}.
PROXIES = {
    "one": matched("one"),
    "older form": {"cluster": "one"},
    "all": {**matched("all"), "idle_timeout": "0.5s"},
    "by client": {**matched("ring"), "idle_timeout": "0.2s", "hash_policies": [{"source_ip": True}]},
    "by key": {**matched("ring"), "idle_timeout": "0.2s", "hash_policies": [{"key": "a key"}]},
    "nobody": matched("nobody"),
    "none": matched("none"),
    "no such cluster": matched("no such cluster"),
}


class UdpNginx(Nginx):
    listen = "udp"


def listener(name, subject, port):
    fields = {"@type": UDP + "UdpProxyConfig", "stat_prefix": "udp", **PROXIES[name]}
    where = mesh.address(subject.address, port)
    where["socket_address"]["protocol"] = "UDP"
    return {
        "@type": mesh.LISTENER,
        "name": name,
        "address": where,
        "traffic_direction": "OUTBOUND",
        "listener_filters": [{"name": "envoy.filters.udp_listener.udp_proxy", "typed_config": fields}],
    }


@pytest.fixture(scope="module")
def both():
    addresses = mesh.Addresses()
    pair = []
    try:
        pair += [subjects.Envoy(addresses.envoy), UdpNginx(addresses.nginx)]
        ports = {name: next(addresses.ports) for name in PROXIES}
        for subject in pair:
            clusters = [{**mesh.cluster(addresses, name, spec), "typed_extension_protocol_options": {}} for name, spec in CLUSTERS.items()]
            subject.start([listener(name, subject, port) for name, port in ports.items()], clusters)
        yield pair, addresses, ports
    except BaseException:
        for subject in pair:
            print(f"{subject.name}: {subject.rejected()}")
        raise
    finally:
        for subject in pair:
            subject.stop()
        addresses.lock.close()


class Endpoint(asyncio.DatagramProtocol):
    """Answers with its name, the client's place among those that it knows, and what it was told; `twice` is answered twice."""

    def __init__(self, name):
        self.name, self.clients = name, []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, client):
        if client not in self.clients:
            self.clients.append(client)
        for _ in range(2 if data == b"twice" else 1):
            self.transport.sendto(f"{self.name} {self.clients.index(client)} ".encode() + data, client)


def play(both, name, script, **more):
    """What came of a script at Envoy, and at nginx."""

    async def all():
        subjects, addresses, ports = both
        found = []
        for subject in subjects:
            loop = asyncio.get_running_loop()
            async with contextlib.AsyncExitStack() as stack:
                for endpoint in "abcd":
                    transport, _ = await loop.create_datagram_endpoint(lambda: Endpoint(endpoint), addresses.endpoints[endpoint])
                    stack.callback(transport.close)
                found.append(await script(lambda source="127.0.0.1": Client((subject.address, ports[name]), source), **more))
            # A socket is closed in the next turn of the loop.
            await asyncio.sleep(0.02)
        return found

    return asyncio.run(all())


def same(both, name, script):
    envoy, nginx = play(both, name, script)
    assert nginx == envoy
    return envoy


class Client:
    def __init__(self, to, source):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((source, 0))
        self.socket.connect(to)

    async def ask(self, *said, seconds=2):
        """All that is answered to these datagrams, one answer each."""
        for data in said:
            self.socket.send(data)
        return [await self.answer(seconds) for _ in said]

    async def answer(self, seconds=0.5):
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 65536), seconds)
        except TimeoutError:
            return None
        except ConnectionRefusedError:
            return "refused"


@pytest.mark.parametrize("name", ["one", "older form"])
def test_datagrams_stay_datagrams(both, name):
    async def script(client):
        first, second = client(), client()
        seen = [await first.ask(b"hello"), await first.ask(b"a", b"b" * 1400, b"c"), await second.ask(b"hello"), await first.ask(b"again")]
        first.socket.send(b"twice")
        seen += [await first.answer(), await first.answer(), await first.answer(0.2)]
        return seen

    seen = same(both, name, script)
    assert seen[:1] == [[b"a 0 hello"]] and seen[2] == [b"a 1 hello"], "each client has a socket of its own"


def test_a_session_keeps_its_endpoint_until_it_is_idle(both):
    async def script(client):
        one = client()
        busy = [await one.ask(b"x") for _ in range(6) if await asyncio.sleep(0.2) is None]
        await asyncio.sleep(1)
        return len({tuple(answer) for answer in busy}), len(busy), [len(a) for a in await one.ask(b"x")]

    assert same(both, "all", script)[0] == 1

    async def idle(client):
        """A session that was idle begins anew: the endpoint sees another client, or it is another endpoint."""
        one = client()
        before = await one.ask(b"x")
        await asyncio.sleep(1)
        return before == await one.ask(b"x") and before

    async def more(client):
        return [bool(await idle(client)) for _ in range(3)]

    assert same(both, "all", more) == [False] * 3


def test_hashes(both):
    async def script(client):
        return [(await client(f"127.0.0.{n}").ask(b"x"))[0][:1] for n in range(2, 14)]

    assert len(set(same(both, "by client", script))) > 1
    assert len(set(same(both, "by key", script))) == 1


@pytest.mark.parametrize("name", ["nobody", "none", "no such cluster"])
def test_nobody_answers(both, name):
    async def script(client):
        one = client()
        return [await one.ask(b"x", seconds=0.3), await one.ask(b"y", seconds=0.3)]

    assert same(both, name, script) == [[None], [None]]
