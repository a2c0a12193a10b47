"""Random route tables, and 40 random requests to each: no difference between Envoy and nginx.

AMESH_ENVOY_TABLES: so many tables. They are the same in every run; AMESH_ENVOY_SEED=N gives others. What fails is shrunk, and
kept as a case in cases/found, where it stays once it is mended.
"""

import asyncio
import hashlib
import itertools
import os

import cases
import client
import expected
import judge
import mesh
import pytest
import session
import subjects
import tables
import upstream
import yaml
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import engine

# Shrinking may go on for so many seconds; hypothesis itself allows five minutes.
engine.MAX_SHRINKING_SECONDS = 45

TABLES = int(os.environ.get("AMESH_ENVOY_TABLES", 60))
SEED = os.environ.get("AMESH_ENVOY_SEED")
REQUESTS = 40
# The connection managers that tables are tried under.
MANAGERS = {
    "plain": {},
    "normal": {"hcm": {"normalize_path": True, "merge_slashes": True}},
    "stripped": {"hcm": {"strip_any_host_port": True, "strip_trailing_host_dot": True}},
    "edge": {"hcm": {"use_remote_address": True}, "router": {"suppress_envoy_headers": True}},
}
VERSIONS = itertools.count(1)


class Judge:
    """Both subjects, and the loop that asks them."""

    def __init__(self, started):
        self.addresses, self.both, self.ports = started
        self.loop = asyncio.Runner()
        self.known = expected.Expected()
        self.failed = None
        endpoints = upstream.Upstream()
        self.loop.run(endpoints.listen({name: self.addresses.endpoints[name] for name in mesh.ENDPOINTS}))
        self.run = judge.Run(self.both, endpoints)

    def difference(self, manager, table, requests):
        """What differs in the first request that differs in something that is not listed; None: nothing."""
        self.put(manager, table)
        found = self.loop.run(self.ask(manager, requests))
        subjects.add_logs(self.both, [side for _, *sides in found for side in sides])
        for request, *sides in found:
            left = [d for d in judge.differences(*sides) if not self.known.explained(f"generated/{manager}/{request.name}", d[0])]
            if left:
                self.failed = manager, table, request
                return "\n".join([request.name, *(f"{field}: Envoy {a!r}, nginx {b!r}" for field, a, b in left)])
        return None

    def put(self, manager, table):
        """Gives both the table, and waits until both have it."""
        version = str(next(VERSIONS))
        told = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": version}}}
        host = {"name": "version", "domains": ["version.judge"], "routes": [told]}
        table = {"name": manager, **table, "virtual_hosts": [*table["virtual_hosts"], host]}
        for subject in self.both:
            subject.put_table(table)
        for subject in self.both:
            if not self.loop.run(self.has(subject, manager, version)):
                raise AssertionError(f"{subject.name} did not take the table: {subject.rejected()[-1000:]}")

    async def has(self, subject, manager, version):
        """Whether a subject has come to a version of a table; it has five seconds."""
        asked = cases.Request("version", host="version.judge").bytes("version")
        async with client.Connection(subject.address, self.ports[manager]) as connection:
            for _ in range(500):
                if (await connection.send(asked)).body == version:
                    return True
                await asyncio.sleep(0.01)
        return False

    async def ask(self, manager, requests):
        case = {"requests": [tables.kept(request) for request in requests]}
        return await self.run.case(case, self.ports[manager])

    def keep(self):
        """The last thing that failed, which is the smallest, as a case file."""
        manager, table, request = self.failed
        text = {key: getattr(request, key) for key in ("name", "method", "path", "host", "body", "upstream")}
        text["headers"] = [list(pair) for pair in request.headers]
        hosts = {"virtual_hosts": table["virtual_hosts"]}
        rest = {key: value for key, value in table.items() if key != "virtual_hosts"}
        case = {**MANAGERS[manager], "table": rest, **hosts, "requests": [text]}
        digest = hashlib.sha256(yaml.safe_dump(case).encode()).hexdigest()[:8]
        path = session.HERE / "cases/found" / f"{digest}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump([{"case": digest, **case}], sort_keys=False, width=120))


@pytest.fixture(scope="module")
def both():
    with session.started([], MANAGERS) as started:
        one = Judge(started)
        yield one
        one.loop.close()
        if one.failed:
            one.keep()


@st.composite
def examples(draw):
    table = draw(tables.tables())
    return draw(st.sampled_from(sorted(MANAGERS))), table, draw(st.lists(tables.requests(table), min_size=REQUESTS, max_size=REQUESTS))


@(seed(int(SEED)) if SEED else lambda test: test)
@settings(max_examples=TABLES, derandomize=not SEED, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)
@given(example=examples())
def test_generated(both, example):
    difference = both.difference(*example)
    if difference:
        note(f"under {example[0]}:\n{yaml.safe_dump(example[1], sort_keys=False)}")
    assert not difference, difference
