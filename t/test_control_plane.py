"""A live control plane on the real go-control-plane: delta and state of the world, NACK, reconnect, snapshot."""

import json
import pathlib
import subprocess
import time
import urllib.request

import amesh
import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def program():
    built = subprocess.run([HERE / "control-plane/build.sh"], capture_output=True, text=True)
    if built.returncode == 77:
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stderr
    return built.stdout.strip()


class ControlPlane:
    def __init__(self, program, *options, listen=None, **more):
        self.control = amesh.free_port()
        self.listen = listen or f"127.0.0.1:{amesh.free_port()}"
        words = [f"-{k}={v}" for k, v in more.items()]
        self.command = [program, "-listen", self.listen, "-control", f"127.0.0.1:{self.control}", *options, *words]
        self.process = None

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        amesh.until(lambda: self.up(), what="the start of the control plane")
        return self

    def up(self):
        try:
            return bool(self.say("count"))
        except OSError:
            return False

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)

    def say(self, command):
        request = urllib.request.Request(f"http://127.0.0.1:{self.control}", data=command.encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


def status(nginx):
    """The status, once the thread has told its part (once a second)."""
    return amesh.until(lambda: (s := json.loads(amesh.get(nginx.status)[1]))["xds"] and s, what="the thread's status")


def get(nginx, host="v0.mesh.test", path="/"):
    return amesh.get(nginx.port, path, host)




@pytest.fixture(params=["delta", "sotw"])
def protocol(request):
    return request.param


def serve(program, nginx, protocol="delta", **more):
    more = {"clusters": 2, "endpoints": 1, "vhosts": 2, "routes": 2, **more}
    return ControlPlane(program, f"-upstreams=127.0.0.1:{nginx.a}", f"-listener=127.0.0.1:{nginx.port}", **more)


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_what_it_says_is_served_and_changes_are_followed(program, protocol, where):
    nginx = amesh.Nginx()
    listen = f"127.0.0.1:{amesh.free_port()}" if where == "tcp" else f"unix:{nginx.dir}/xds.sock"
    nginx.amesh = f"server {listen}; node test; protocol {protocol};"
    with serve(program, nginx, listen=listen) as plane, nginx:
        amesh.until(lambda: get(nginx) == (200, str(nginx.a)), what="the first configuration")
        plane.say(f"assign c0 127.0.0.1:{nginx.b}")
        amesh.until(lambda: get(nginx) == (200, str(nginx.b)), what="the new endpoint")
        assert get(nginx, "v1.mesh.test") == (200, str(nginx.a))
        assert get(nginx, "new.mesh.test")[0] == 404
        plane.say("add new")
        amesh.until(lambda: get(nginx, "new.mesh.test")[0] == 200, what="the new virtual host")
        plane.say("remove new")
        amesh.until(lambda: get(nginx, "new.mesh.test")[0] == 404, what="its end")
        amesh.until(lambda: "new" not in status(nginx)["clusters"], what="the end of its cluster")
        assert status(nginx)["xds"]["sources"][0]["protocol"] == protocol


def test_nonsense_is_refused_by_name_and_last_good_serves(program, protocol):
    nginx = amesh.Nginx()
    listen = f"127.0.0.1:{amesh.free_port()}"
    nginx.amesh = f"server {listen}; node test; protocol {protocol};"
    with serve(program, nginx, listen=listen) as plane, nginx:
        amesh.until(lambda: get(nginx) == (200, str(nginx.a)), what="the first configuration")
        plane.say("bad cluster c0")
        amesh.until(lambda: status(nginx)["xds"]["rejected"], what="the rejection in the status")
        rejected = status(nginx)["xds"]["rejected"][0]
        assert rejected["name"] == "c0" and rejected["reason"], rejected
        amesh.until(lambda: "c0" in json.dumps(plane.say("count")), what="the NACK with the name")
        plane.say(f"assign c1 127.0.0.1:{nginx.b}")
        amesh.until(lambda: get(nginx, "v1.mesh.test") == (200, str(nginx.b)), what="a good change beside it")
        assert get(nginx) == (200, str(nginx.a))
        plane.say("good cluster c0")
        amesh.until(lambda: not status(nginx)["xds"]["rejected"], what="the end of the rejection")


def test_a_dropped_stream_comes_back_and_nothing_is_lost(program, protocol):
    nginx = amesh.Nginx()
    listen = f"127.0.0.1:{amesh.free_port()}"
    nginx.amesh = f"server {listen}; node test; protocol {protocol};"
    with serve(program, nginx, listen=listen) as plane, nginx:
        amesh.until(lambda: get(nginx) == (200, str(nginx.a)), what="the first configuration")
        with amesh.Load(nginx.status) as load:
            for n in range(3):
                plane.say("drop")
                port = nginx.b if n % 2 == 0 else nginx.a
                plane.say(f"assign c0 127.0.0.1:{port}")
                amesh.until(lambda: get(nginx) == (200, str(port)), seconds=20, what="the change after the stream was dropped")
        assert load.failed == []
        broken = [line for line in nginx.log().splitlines() if "broke off" in line]
        assert 1 <= len(broken) <= 3, broken


def test_a_goaway_is_followed_at_once_and_nothing_is_lost(program, protocol):
    nginx = amesh.Nginx()
    listen = f"127.0.0.1:{amesh.free_port()}"
    nginx.amesh = f"server {listen}; node test; protocol {protocol};"
    # The stream would go on for a second after it, and then be cut.
    with serve(program, nginx, listen=listen, **{"max-age": "2s"}) as plane, nginx:
        amesh.until(lambda: get(nginx) == (200, str(nginx.a)), what="the first configuration")
        with amesh.Load(nginx.status) as load:
            for n in range(3):
                before = plane.say("count")["streams_opened"]
                amesh.until(lambda: plane.say("count")["streams_opened"] > before, what="a new stream")
                port = nginx.b if n % 2 == 0 else nginx.a
                plane.say(f"assign c0 127.0.0.1:{port}")
                amesh.until(lambda: get(nginx) == (200, str(port)), what="the change")
        assert load.failed == []
        assert "GOAWAY" in nginx.log() and "broke off" not in nginx.log()


def test_without_its_control_plane_a_new_nginx_serves_the_snapshot(program):
    nginx = amesh.Nginx()
    listen = f"127.0.0.1:{amesh.free_port()}"
    snapshot = nginx.dir / "last-good"
    nginx.amesh = f"server {listen}; node test; snapshot {snapshot};"
    with serve(program, nginx, listen=listen) as plane:
        nginx.write_conf()
        with_plane = subprocess.Popen(nginx.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            amesh.until(lambda: nginx.answers(nginx.status) and get(nginx) == (200, str(nginx.a)), what="the first configuration")
            plane.say(f"assign c0 127.0.0.1:{nginx.b}")
            amesh.until(lambda: get(nginx) == (200, str(nginx.b)), what="the change")
            amesh.until(snapshot.exists, what="the snapshot")
            written = snapshot.stat().st_mtime_ns
            plane.say("endpoint c1")
            amesh.until(lambda: snapshot.stat().st_mtime_ns != written, seconds=20, what="the snapshot of the change")
        finally:
            with_plane.terminate()
            with_plane.wait(10)
    assert snapshot.stat().st_mode & 0o777 == 0o600
    with nginx:
        assert get(nginx) == (200, str(nginx.b)), "served at once"
        assert "resources from snapshot" in nginx.log()


def test_a_damaged_snapshot_is_named_and_not_used(program):
    nginx = amesh.Nginx()
    snapshot = nginx.dir / "last-good"
    snapshot.write_bytes(b"amesh" * 100)
    nginx.amesh = f"server 127.0.0.1:1; node test; snapshot {snapshot};"
    with nginx:
        assert str(snapshot) in nginx.log()
        assert amesh.get(nginx.status, "/ready")[0] == 503


def test_one_connection_however_often_nginx_is_reloaded(program):
    nginx = amesh.Nginx(workers=2)
    listen = f"127.0.0.1:{amesh.free_port()}"
    nginx.amesh = f"server {listen}; node test;"
    with serve(program, nginx, listen=listen) as plane, nginx:
        amesh.until(lambda: get(nginx) == (200, str(nginx.a)), what="the first configuration")
        before = plane.say("count")["streams"]
        with amesh.Load(nginx.status):
            for _ in range(10):
                nginx.reload()
        assert plane.say("count")["streams"] == before
        start = time.monotonic()
        plane.say(f"assign c0 127.0.0.1:{nginx.b}")
        amesh.until(lambda: get(nginx) == (200, str(nginx.b)), what="the change")
        assert time.monotonic() - start < 5
