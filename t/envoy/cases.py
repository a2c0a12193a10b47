"""Reads case files: what a case's listener is made of, and the requests that both subjects get.

    - case: the first match wins
      routes: [...]                        of one virtual host for every domain; or virtual_hosts: [...]
      vhost, table, hcm, router: {...}     more fields of these messages; with `scoped_routes` in `hcm` there are no other routes
      filters: [...]                       HTTP filters before the router
      clusters: {name: [endpoints]}        or {name: {a Cluster, endpoints: [...]}}; names are the suite's, not the case's
      requests:
      - GET /path
      - {path: /path, method: GET, host: mesh.test, headers: {name: value}, body: text, ...}

More of a request: `name`; `headers` as a list of pairs; `long: 90000`, a body of so many bytes; `chunked: true`; `raw: "GET / HTTP/1.1\\r\\n..."`, the whole request, where
{id} stands for the test's id; `upstream: [...]`, the script of the endpoints (see upstream.py); `at_least: 0.3`, seconds that each
subject takes; `gone: 0.2`, seconds after which the client goes away; `wait: 0.3`, seconds until all is thought to have reached the
endpoints; `from: 127.0.0.9`, the client's address; `repeat: 20`, so many requests, in which {n} is a number; `shares: 2000`, so
many of which only the shares of what came back are compared; `keep: true`, on the connection of the request before.
"""

import dataclasses
import pathlib
import re

import yaml

HERE = pathlib.Path(__file__).resolve().parent
HOST = "mesh.test"


class Loader(yaml.SafeLoader):
    """YAML in which `off` is a word."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in found if tag != "tag:yaml.org,2002:bool"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), "tf")


@dataclasses.dataclass
class Request:
    """One request, as both subjects get it."""

    name: str
    method: str = "GET"
    path: str = "/"
    host: str | None = HOST
    headers: list = dataclasses.field(default_factory=list)
    body: str = ""
    chunked: bool = False
    raw: str | None = None
    upstream: list | None = None
    at_least: float = 0
    gone: float = 20
    wait: float = 0
    source: str = "127.0.0.1"
    shares: int = 0
    keep: bool = False

    def bytes(self, test_id):
        if self.raw is not None:
            return self.raw.replace("{id}", test_id).encode("latin-1")
        headers = [] if self.host is None else [("host", self.host)]
        headers += [("x-test-id", test_id), *self.headers]
        body = self.body.encode("latin-1")
        if self.chunked:
            headers.append(("transfer-encoding", "chunked"))
            body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        elif body or self.method in ("POST", "PUT", "PATCH"):
            headers.append(("content-length", str(len(body))))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


def pairs(headers):
    headers = headers.items() if isinstance(headers, dict) else headers
    return [(str(name), str(value)) for name, value in headers]


def requests(one):
    """The requests that an entry of a case stands for."""
    if isinstance(one, str):
        method, path = one.split(" ", 1)
        one = {"method": method, "path": path}
    one = dict(one)
    repeat = one.pop("repeat", None)
    one["source"] = one.pop("from", "127.0.0.1")
    if "long" in one:
        one["body"] = "x" * one.pop("long")
    one["headers"] = pairs(one.get("headers", {}))
    if "name" not in one:
        said = [f"{name}: {value}" for name, value in one["headers"]]
        host = [f"at {one['host']}"] if "host" in one else []
        one["name"] = ", ".join([f"{one.get('method', 'GET')} {one.get('path', '/')}", *host, *said])
    if repeat is None:
        return [Request(**one)]
    number = lambda text, n: text.replace("{n}", str(n))
    return [
        Request(
            **{
                **one,
                "name": f"{number(one['name'], n)} ({n})",
                "path": number(one.get("path", "/"), n),
                "headers": [(name, number(value, n)) for name, value in one["headers"]],
            }
        )
        for n in range(1, repeat + 1)
    ]


def of_file(path):
    """The cases of a file; `id` is file/case."""
    feature = "found" if path.parent.name == "found" else path.stem
    found = []
    for case in yaml.load(path.read_text(), Loader) or []:
        case = dict(case)
        case["id"] = f"{feature}/{case['case']}"
        case["requests"] = [request for one in case["requests"] for request in requests(one)]
        names = [request.name for request in case["requests"]]
        twice = {name for name in names if names.count(name) > 1}
        assert not twice, f"{path}: {case['case']}: give these requests a name of their own: {twice}"
        found.append(case)
    return found


def all_cases():
    files = sorted((HERE / "cases").rglob("*.yaml"))
    cases = [case for file in files for case in of_file(file)]
    ids = [case["id"] for case in cases]
    twice = {one for one in ids if ids.count(one) > 1}
    assert not twice, f"these cases are there twice: {twice}"
    return cases
