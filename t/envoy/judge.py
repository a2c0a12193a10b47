"""Sends the same requests to both subjects, and says what differs in what came of them."""

import asyncio
import collections
import itertools
import math
import re

import client

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
# A session cookie made for a client.
HASH = re.compile(r"[0-9a-f]{16}")
# Of one hop, not of the message.
HOP = {"connection", "keep-alive", "transfer-encoding"}
# Compared by whether they are there.
VOLATILE = {"date", "x-envoy-upstream-service-time"}
# Timers may be early by so many seconds.
TICK = 0.02
IDS = itertools.count(1)


class Run:
    """Both subjects, the endpoints behind them, and what came of each request."""

    def __init__(self, subjects, upstream):
        self.subjects, self.upstream = subjects, upstream

    async def case(self, case, port):
        """[(request, what came of it from the first subject, from the second)], the log left out."""
        results, connections = [], {}
        for request in case["requests"]:
            seen = []
            for subject in self.subjects:
                connection = connections.get(subject) if request.keep else None
                if not connection:
                    if subject in connections:
                        connections[subject].close()
                    connection = connections[subject] = client.Connection(subject.address, port, request.source)
                seen.append(await (self.shares if request.shares else self.one)(subject, connection, request))
            results.append((request, *seen))
        for connection in connections.values():
            connection.close()
        return results

    async def one(self, subject, connection, request):
        test_id = f"{next(IDS)}-{subject.name}"
        if request.upstream:
            self.upstream.scripts[test_id] = [str(words) for words in request.upstream]
        response = await connection.send(request.bytes(test_id), request.method, request.gone)
        await asyncio.sleep(request.wait)
        scripted = " ".join(map(str, request.upstream or []))
        plain = lambda headers: normal(headers, subject.address, request.headers, scripted)
        tries = [{**one, "headers": plain(one["headers"])} for one in self.upstream.tries.pop(test_id, [])]
        # A mirrored request comes when it comes.
        tries.sort(key=lambda one: one["endpoint"] == "mirror")
        return {
            "id": test_id,
            "subject": subject.name,
            "status": response.status,
            "complete": response.complete,
            "headers": plain(response.headers),
            "body": response.body.replace(subject.address, "(listener)"),
            "in time": response.seconds >= request.at_least - TICK,
            "tries": tries,
        }

    async def shares(self, subject, connection, request):
        """How often which status came from which endpoint."""
        seen = collections.Counter()
        for _ in range(request.shares):
            response = await connection.send(request.bytes("shares"), request.method)
            seen[f"{response.status} {dict(response.headers).get('x-endpoint', '-')}"] += 1
        self.upstream.tries.pop("shares", None)
        return {"shares": seen}


def normal(headers, listener, sent, scripted):
    """Headers as a dictionary of lists; what the subjects make, and is never the same twice, is masked."""
    found = collections.defaultdict(list)
    for name, value in headers:
        if name in HOP or name == "x-test-id":
            continue
        if name in VOLATILE and f"{name}:" not in scripted:
            value = "(volatile)"
        elif UUID.match(value) and (name, value) not in sent:
            value = "(uuid)"
        elif name == "set-cookie":
            value = HASH.sub("(hash)", value)
        found[name].append(value.replace(listener, "(listener)"))
    return dict(found)


def differences(one, other):
    """[(field, of the first, of the second)] of two things that came of one request."""
    if "shares" in one:
        return share_differences(one["shares"], other["shares"])
    found = [(key, one[key], other[key]) for key in ("status", "complete", "body", "in time") if one[key] != other[key]]
    found += dictionary("headers.", one["headers"], other["headers"])
    found += dictionary("log.", one.get("log", {}), other.get("log", {}))
    where = [[t["endpoint"] for t in side["tries"]] for side in (one, other)]
    if where[0] != where[1]:
        return [*found, ("tries", *where)]
    for a, b in zip(one["tries"], other["tries"]):
        found += [(f"try.{key}", a[key], b[key]) for key in ("method", "path", "body") if a[key] != b[key]]
        found += dictionary("try.headers.", a["headers"], b["headers"])
    return found


def dictionary(prefix, one, other):
    return [(prefix + key, one.get(key), other.get(key)) for key in sorted({*one, *other}) if one.get(key) != other.get(key)]


def share_differences(one, other):
    """Shares that chance does not explain: more than six standard deviations apart."""
    n, m = one.total(), other.total()
    found = []
    for key in sorted({*one, *other}):
        p = (one[key] + other[key]) / (n + m)
        if abs(one[key] / n - other[key] / m) > 6 * math.sqrt(p * (1 - p) * (1 / n + 1 / m)) + 1e-9:
            found.append((f"shares.{key}", one[key] / n, other[key] / m))
    return found
