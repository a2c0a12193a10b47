"""The etcd face of a real nginx: what APISIX asked when it was recorded, `etcdctl`, and a real etcd beside it."""

import base64
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile

import amesh
import pytest

RECORDING = amesh.TOP / "t/recordings/apisix-3.18-etcd.jsonl"


def b64(text):
    return base64.b64encode(text.encode()).decode()


def text(encoded):
    return base64.b64decode(encoded).decode()


class Client:
    """One HTTP/1.1 connection, as APISIX's library has it."""

    def __init__(self, address):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(15)
        self.socket.connect(address if isinstance(address, str) else ("127.0.0.1", address))
        self.file = self.socket.makefile("rb")

    def send(self, line, body=None, headers=()):
        data = b"" if body is None else json.dumps(body).encode()
        head = [f"{line} HTTP/1.1", "Host: etcd", "User-Agent: lua-resty-http/0.16.1 (Lua) ngx_lua/10030", *headers]
        if body is not None:
            head.append(f"Content-Length: {len(data)}")
        self.socket.sendall("\r\n".join([*head, "", ""]).encode() + data)

    def head(self):
        status = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers

    def answer(self):
        status, headers = self.head()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while chunk := self.chunk():
                body += chunk
            # Trailers, of the real one.
            while self.file.readline().strip():
                pass
        else:
            body = self.file.read(int(headers["content-length"]))
        return status, json.loads(body)

    def chunk(self):
        size = int(self.file.readline(), 16)
        if size == 0:
            return b""
        chunk = self.file.read(size + 2)[:-2]
        assert len(chunk) == size
        return chunk

    def message(self):
        """One message of a watch: one line."""
        chunk = self.chunk()
        assert chunk.endswith(b"\n") and chunk.count(b"\n") == 1, chunk
        return json.loads(chunk)["result"]

    def ask(self, path, body):
        self.send(f"POST {path}", body)
        return self.answer()

    def range(self, key, end=None):
        body = {"key": b64(key)} | ({"range_end": b64(end)} if end else {})
        status, answer = self.ask("/v3/kv/range", body)
        assert status == 200, answer
        return int(answer["header"]["revision"]), {text(kv["key"]): text(kv["value"]) for kv in answer.get("kvs", [])}

    def watch(self, start=0):
        self.send("POST /v3/watch", {"create_request": {"key": b64("/apisix/"), "range_end": b64("/apisix0"), "start_revision": start}})
        status, headers = self.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        created = self.message()
        assert created["created"] is True
        return int(created["header"]["revision"])


@contextlib.contextmanager
def served(parameters="", address=None, **more):
    """nginx with a mesh and the face."""
    port = amesh.free_port()
    nginx = amesh.Nginx(**more)
    nginx.amesh = f"server file:{nginx.xds}; etcd {address(nginx) if address else f'127.0.0.1:{port}'} {parameters};"
    with nginx.mesh():
        amesh.until(lambda: not address and listening(port) or address, what="the face")
        nginx.etcd = port
        yield nginx


def listening(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def objects(port, directory="upstreams"):
    return Client(port).range(f"/apisix/{directory}/", f"/apisix/{directory}0")[1]


def shape(value):
    """What there is, and of which kind."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def encoded(body):
    """The recordings have keys and values as text."""
    if isinstance(body, dict):
        return {k: b64(v) if k in ("key", "range_end", "value") else encoded(v) for k, v in body.items()}
    return body


def test_the_recorded_conversation_of_apisix():
    lines = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    with served() as nginx:
        begun = Client(nginx.etcd).range("/apisix/")[0]
        clients, waiting, answered = {}, {}, 0
        for line in lines:
            conn = line["conn"]
            if line.get("ev") == "close":
                if client := clients.pop(conn, None):
                    client.socket.close()
                waiting.pop(conn, None)
            elif line.get("from") == "apisix":
                client = clients.setdefault(conn, Client(nginx.etcd))
                body = encoded(line["body"][0]) if "body" in line else None
                if body and "create_request" in body:
                    # It says the revision that it was told, and the next one.
                    body["create_request"]["start_revision"] = begun + 1
                client.send(line["line"].removesuffix(" HTTP/1.1"), body)
                waiting[conn] = line["line"]
            elif conn in waiting and "line" in line:
                client, asked, wanted = clients[conn], waiting.pop(conn), line["body"][0]
                if "/v3/watch" in asked:
                    status, headers = client.head()
                    assert headers["transfer-encoding"] == "chunked"
                    got = {"result": client.message()}
                else:
                    status, got = client.answer()
                assert status == 200
                if "kvs" in wanted:
                    assert shape(got) == shape(wanted), asked
                else:
                    # Where it had nothing there are markers here.
                    assert shape({k: v for k, v in got.items() if k in wanted}) == shape(wanted), asked
                answered += 1
        assert answered == sum(line.get("from") == "apisix" for line in lines) > 20


def test_a_change_of_the_mesh_is_one_message():
    with served() as nginx:
        client = Client(nginx.etcd)
        revision, everything = client.range("/apisix", "/apisiy")
        assert sum(value == "init_dir" for value in everything.values()) == 13
        before = objects(nginx.etcd)
        assert client.watch(revision + 1) == revision
        nginx.put("clusters.yaml", amesh.cluster("a", nginx.b), amesh.cluster("b", nginx.a))
        message = client.message()
        assert int(message["header"]["revision"]) > revision
        after = objects(nginx.etcd)
        assert set(after) == set(before) and after != before
        told = {text(e["kv"]["key"]): text(e["kv"]["value"]) for e in message["events"]}
        assert told == {k: v for k, v in after.items() if before[k] != v}
        # It was touched, and is as it was.
        (nginx.xds / "clusters.yaml").touch()
        client.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            client.message()


def test_plugins_of_the_workload_are_put_on_its_routes_and_taken_off(tmp_path):
    document = """apiVersion: apisix.apache.org/v1alpha1
kind: AmeshPluginConfig
metadata: {name: limit}
spec:
  selector: {matchLabels: {app: APP}}
  plugins:
  - {name: limit-count, config: '{"count": 2, "time_window": 60}'}
"""

    def limited():
        names = {json.loads(route).get("plugin_config_id") for route in objects(nginx.etcd, "routes").values() if route != "init_dir"}
        configs = objects(nginx.etcd, "plugin_configs")
        return [json.loads(configs[f"/apisix/plugin_configs/{name}"])["plugins"] for name in names if name]

    with served(f"plugins={tmp_path}; node_metadata LABELS '{{\"app\":\"reviews\"}}'") as nginx:
        assert limited() == []
        (tmp_path / "limit.yaml").write_text(document.replace("APP", "reviews"))
        amesh.until(lambda: limited() == [{"limit-count": {"count": 2, "time_window": 60}}], what="the plugin")
        (tmp_path / "limit.yaml").write_text("kind: [")
        amesh.until(lambda: "limit.yaml" in nginx.log(), what="a word on the file that makes no sense")
        assert len(limited()) == 1, "what it said before stays"
        # Known from the beginning where it is there before.
        (tmp_path / "limit.yaml").write_text(document.replace("APP", "reviews"))
        nginx.amesh = nginx.amesh.replace("plugins=", "inbound=on plugins=")
        nginx.write_conf()
        nginx.reload()
        amesh.until(lambda: len(limited()) == 1, what="the plugin after a reload")
        (tmp_path / "limit.yaml").write_text(document.replace("APP", "ratings"))
        amesh.until(lambda: limited() == [], what="the end of the plugin")


def test_a_reload_keeps_watches_and_what_is_removed_is_closed():
    with served(workers=2) as nginx:
        client = Client(nginx.etcd)
        revision = client.watch()
        nginx.reload()
        other = amesh.free_port()
        line = nginx.amesh
        nginx.amesh = f"{line} etcd unix:{nginx.dir}/etcd.sock; etcd [::1]:{other};"
        nginx.write_conf()
        nginx.reload()
        amesh.until(lambda: (nginx.dir / "etcd.sock").exists(), what="the socket")
        assert Client(str(nginx.dir / "etcd.sock")).range("/apisix/")[0] == revision
        nginx.put("clusters.yaml", amesh.cluster("a", nginx.b), amesh.cluster("b", nginx.b))
        assert client.message()["events"]
        # A worker holds nothing of it.
        for worker in nginx.children():
            inodes = {os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")}
            assert not inodes & {f"socket:[{inode}]" for inode in listeners(nginx.pid(), nginx.etcd)}
        nginx.amesh = line.partition("etcd")[0]
        nginx.write_conf()
        nginx.reload()
        amesh.until(lambda: not listening(nginx.etcd), what="the end of the listener")
        assert client.file.read(1) == b""
        assert not (nginx.dir / "etcd.sock").exists()
        nginx.amesh = line
        nginx.write_conf()
        nginx.reload()
        amesh.until(lambda: listening(nginx.etcd), what="the return of the listener")
        assert objects(nginx.etcd)


def listeners(pid, port):
    """Inodes of sockets that listen on a port."""
    rows = [line.split() for line in open(f"/proc/{pid}/net/tcp").readlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


def test_revisions_grow_over_a_killed_master():
    port = amesh.free_port()
    seen = []
    for life in range(2):
        nginx = amesh.Nginx()
        nginx.amesh = f"server file:{nginx.xds}; etcd 127.0.0.1:{port}; etcd unix:{nginx.dir.parent}/amesh-etcd-{port}.sock;"
        with nginx.mesh():
            amesh.until(lambda: listening(port), what="the face")
            client = Client(port)
            revision = client.range("/apisix/")[0]
            assert f"{revision:.14g}" == str(revision), "so does Lua's JSON library write it"
            if seen:
                assert revision > seen[0]
                # Who comes from the life before reads anew.
                client.watch(seen[0] + 1)
                message = client.message()
                assert message["canceled"] is True and int(message["compact_revision"]) == revision
                assert client.chunk() == b""
            seen.append(revision)
            sock = pathlib.Path(f"{nginx.dir.parent}/amesh-etcd-{port}.sock")
            amesh.until(sock.exists, what="the socket")
            if life == 0:
                master, workers = nginx.pid(), nginx.children()
                os.kill(master, signal.SIGKILL)
                for worker in workers:
                    os.kill(worker, signal.SIGTERM)
                nginx.process.wait(10)
                (nginx.dir / "nginx.pid").unlink()
                amesh.until(lambda: not listening(port), what="its end")
                assert sock.exists()
            else:
                assert Client(str(sock)).range("/apisix/")[0] == revision
    assert not sock.exists()


def test_a_configuration_test_binds_nothing_and_a_taken_port_is_waited_for():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = amesh.free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        nginx = amesh.Nginx()
        nginx.amesh = f"server file:{nginx.xds}; etcd 127.0.0.1:{port};"
        nginx.mesh()
        done = nginx.test()
        assert done.returncode == 0, done.stderr
        assert "etcd" not in nginx.log()
        with nginx:
            amesh.until(lambda: "cannot listen" in nginx.log(), what="the complaint")
            line = next(line for line in nginx.log().splitlines() if "cannot listen" in line)
            assert f"[error]" in line and f"127.0.0.1:{port}" in line and "give \"etcd\" another address" in line
            assert nginx.get() == (200, str(nginx.a))
            other.close()
            amesh.until(lambda: f"etcd: listening on 127.0.0.1:{port} now" in nginx.log(), what="the second try")
            assert objects(port)
            assert nginx.log().count("cannot listen") == 1


def test_an_address_that_all_can_reach_is_warned_of():
    nginx = amesh.Nginx()
    nginx.amesh = f"server file:{nginx.xds}; etcd *:{amesh.free_port()}; etcd 127.0.0.1:{amesh.free_port()};"
    done = nginx.mesh().test()
    assert done.returncode == 0 and done.stderr.count("tells everybody who connects the mesh, with its keys") == 1
    assert "[warn]" in done.stderr and "0.0.0.0" in done.stderr


def etcdctl(port, *words, **more):
    command = ["etcdctl", *words] if "--endpoints" in words[0] else ["etcdctl", f"--endpoints=http://127.0.0.1:{port}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, env={**os.environ, "ETCDCTL_API": "3"}, **more)


def test_etcdctl_reads_watches_and_may_not_write():
    with served() as nginx:
        got = etcdctl(nginx.etcd, "get", "--prefix", "/apisix/", "-w", "json")
        answer = json.loads(got.stdout)
        keys = [text(kv["key"]) for kv in answer["kvs"]]
        assert keys == sorted(keys) and answer["count"] == len(keys) > 13
        assert "/apisix/routes/" in etcdctl(nginx.etcd, "get", "--prefix", "--keys-only", "/apisix/routes").stdout
        revision = answer["header"]["revision"]
        # Of 3.4 this command makes an authority of the whole endpoint, which the server takes for no name if there is a scheme.
        status = json.loads(etcdctl(nginx.etcd, f"--endpoints=127.0.0.1:{nginx.etcd}", "endpoint", "status", "-w", "json").stdout)[0]["Status"]
        assert (status["version"], status["header"]["revision"]) == ("3.4.0", revision)
        assert "is healthy" in etcdctl(nginx.etcd, "endpoint", "health").stderr
        for words in (["put", "/apisix/routes/x", "{}"], ["del", "/apisix/routes/"], ["lease", "grant", "10"], ["compact", "5"]):
            refused = etcdctl(nginx.etcd, *words)
            assert refused.returncode != 0 and "etcdserver: permission denied" in refused.stderr, words
        past = etcdctl(nginx.etcd, "get", "/x", "--rev", "5")
        assert "etcdserver: mvcc: required revision has been compacted" in past.stderr
        # Too old a watch says from where on there is something.
        old = etcdctl(nginx.etcd, "watch", "--rev", "5", "/apisix/")
        assert "required revision has been compacted" in old.stderr
        command = ["etcdctl", f"--endpoints=http://127.0.0.1:{nginx.etcd}", "watch", "--prefix", "--rev", str(revision + 1), "-w", "json", "/apisix/"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "ETCDCTL_API": "3"}) as watch:
            try:
                nginx.put("clusters.yaml", amesh.cluster("a", nginx.b), amesh.cluster("b", nginx.b))
                event = json.loads(watch.stdout.readline())["Events"][0]
                assert text(event["kv"]["key"]).startswith("/apisix/upstreams/")
                assert event["kv"]["mod_revision"] > revision
            finally:
                watch.kill()


def test_a_user_is_asked_for(tmp_path):
    (tmp_path / "password").write_text("secret\n")
    with served(f"user=apisix password_file={tmp_path}/password") as nginx:
        assert "etcdserver: user name is empty" in etcdctl(nginx.etcd, "get", "/x").stderr
        assert "invalid user ID or password" in etcdctl(nginx.etcd, "--user", "apisix:wrong", "get", "/x").stderr
        assert "init_dir" in etcdctl(nginx.etcd, "--user", "apisix:secret", "get", "--prefix", "/apisix").stdout
        # A new password counts from the next reload on.
        (tmp_path / "password").write_text("other\n")
        nginx.reload()
        amesh.until(lambda: "init_dir" in etcdctl(nginx.etcd, "--user", "apisix:other", "get", "--prefix", "/apisix").stdout, what="the new password")
        assert "invalid user ID or password" in etcdctl(nginx.etcd, "--user", "apisix:secret", "get", "/x").stderr


@contextlib.contextmanager
def real_etcd():
    with tempfile.TemporaryDirectory() as directory:
        client, peer = amesh.free_port(), amesh.free_port()
        command = ["etcd", "--data-dir", directory, "--log-level", "error"]
        for kind, port in (("client", client), ("peer", peer)):
            command += [f"--listen-{kind}-urls", f"http://127.0.0.1:{port}"]
        command += ["--advertise-client-urls", f"http://127.0.0.1:{client}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
        command += ["--initial-cluster", f"default=http://127.0.0.1:{peer}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                amesh.until(lambda: listening(client) and etcdctl(client, "put", "x", "y").returncode == 0, what="etcd")
                yield client
            finally:
                process.terminate()


def test_the_shapes_are_those_of_a_real_etcd():
    with served() as nginx, real_etcd() as real:
        for key, value in Client(nginx.etcd).range("/apisix", "/apisiy")[1].items():
            assert etcdctl(real, "put", "--", key, value).returncode == 0
        # A user who may only read, as everybody here.
        for words in ("user add root:pw", "user grant-role root root", "role add r", "role grant-permission r --prefix=true read /", "user add reader:pw", "user grant-role reader r", "auth enable"):
            etcdctl(real, *words.split())
        token = Client(real).ask("/v3/auth/authenticate", {"name": "reader", "password": "pw"})[1]["token"]
        key, everything = b64("/apisix/upstreams/"), {"key": b64("/apisix"), "range_end": b64("/apisiy")}
        asked = 0
        for path, body in [
            ("/v3/kv/range", everything),
            ("/v3/kv/range", everything | {"limit": "1", "sort_order": "DESCEND"}),
            ("/v3/kv/range", everything | {"count_only": True}),
            ("/v3/kv/range", everything | {"keys_only": True, "sort_target": "MOD"}),
            ("/v3/kv/range", {"key": b64("/apisix/phantomkey")}),
            ("/v3/kv/range", {"key": key, "revision": 10**15}),
            ("/v3/kv/put", {"key": key, "value": key}),
            ("/v3/kv/deleterange", {"key": key}),
            ("/v3/kv/txn", {"success": [{"request_put": {"key": key, "value": key}}]}),
            ("/v3/auth/authenticate", {"name": "reader", "password": "wrong"}),
            ("/v3/maintenance/status", {}),
        ]:
            client = Client(real)
            client.send(f"POST {path}", body, [f"Authorization: {token}"])
            status, wanted = client.answer()
            ours, got = Client(nginx.etcd).ask(path, body)
            if path == "/v3/auth/authenticate":
                assert (ours, got["error"]) == (412, "etcdserver: authentication is not enabled")
            else:
                assert (ours, shape(got)) == (status, shape(wanted)), (path, body)
                assert got.get("error") == wanted.get("error")
            asked += 1
        assert asked == 11
        for path in ("/version", "/v3/nothing", "/v3/kv/range"):
            statuses = []
            for port in (real, nginx.etcd):
                client = Client(port)
                client.send(f"GET {path}")
                statuses.append(client.head()[0])
            assert statuses[0] == statuses[1] or path == "/v3/nothing", (path, statuses)
