"""What is measured: load by wrk, and a mesh from go-control-plane."""

import http.client
import json
import pathlib
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request

import subjects
from process import Directory, Failed, Process, free_ports, get, until

HERE = pathlib.Path(__file__).resolve().parent
CONNECTIONS = 32


class Load:
    """The upstream, and wrk before the subjects."""

    def __enter__(self):
        self.upstream = subjects.upstream()
        return self

    def __exit__(self, *_):
        self.upstream.stop()

    def wrk(self, subject, load, seconds):
        """Processor seconds of a subject per 100,000 requests, over some seconds of load."""
        found = self.measured(subject, load, seconds)
        if found["errors"]:
            errors, requests = found["errors"], found["requests"]
            raise Failed(f"{subject.name}: {errors} errors in {requests} requests of {load}: {subject.words()}")
        return found["cpu_s_per_100k"]

    def measured(self, subject, load, seconds):
        """What some seconds of load cost, and what came of it."""
        url = f"http://127.0.0.1:{subject.port}"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s"]
        command += ["-s", HERE / "load.lua", url, "--", *load]
        before, worker = subject.cpu(), subject.worker_cpu()
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        spent, worker = subject.cpu() - before, subject.worker_cpu() - worker
        words = done.stdout.split()
        if done.returncode or "errors" not in words:
            raise Failed(f"wrk: {done.stderr or done.stdout}")
        count = int(words[-3])
        if not count:
            raise Failed(f"{subject.name}: no answer to {load}: {subject.words()}")
        per = 100_000 / count
        return {
            "requests": count,
            "errors": int(words[-1]),
            "p99_us": float(words[-5]),
            "cpu_s_per_100k": spent * per,
            "worker_cpu_s_per_100k": worker * per,
        }


class ControlPlane:
    """t/control-plane with one virtual host and so many clusters of ten endpoints, or of another shape."""

    @staticmethod
    def missing():
        """Why there is none here; None if there is."""
        return subjects.build("control-plane/build.sh")[1]

    def __init__(self, clusters, listener, shape=None):
        program, _ = subjects.build("control-plane/build.sh")
        self.port, self.control = free_ports(2)
        shape = {"clusters": clusters, "endpoints": 10, "vhosts": 1, **(shape or {})}
        command = [program, "-listener", f"127.0.0.1:{listener}"]
        command += [word for flag, value in shape.items() for word in (f"-{flag}", value)]
        command += ["-listen", f"127.0.0.1:{self.port}", "-control", f"127.0.0.1:{self.control}"]
        self.process = Process("control-plane", list(map(str, command)), Directory(), self.control)
        until(lambda: get(self.control)[0] == 400, "the start of the control plane")

    def do(self, command):
        request = urllib.request.Request(f"http://127.0.0.1:{self.control}", command.encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as e:
            raise Failed(f"control-plane: {command}: {e.read().decode()}") from None

    def applied(self, clusters):
        """Whether everything was sent and acknowledged."""
        types = self.do("count")["types"]
        for kind, tally in types.items():
            if tally["nacks"]:
                raise Failed(f"{kind} was rejected: {tally['errors'][0]}")
        sent = types.get("ClusterLoadAssignment", {"resources": 0})["resources"] >= clusters
        return sent and all(tally["acks"] == tally["responses"] for tally in types.values())

    def stop(self):
        self.process.stop()


def quiet(process):
    """Whether a subject has come to rest."""
    before = process.cpu()
    time.sleep(0.5)
    return process.cpu() - before < 0.01


def figures(subject, behind, clusters, changes):
    """What a subject spends on a mesh of so many clusters: from its start until it rests, then for changes of an endpoint."""
    (port,) = free_ports(1)
    server = ControlPlane(clusters, port)
    process = subjects.dynamic(subject, port, server.port)
    try:
        until(lambda: server.applied(clusters), f"{subject} taking {clusters} clusters ({process.log})")
        until(lambda: quiet(process), f"{subject} coming to rest")
        found = {"cpu_s": process.cpu(), **process.memory(), "zone": None}
        ports = (behind.upstream.port, behind.upstream.other)
        server.do(f"assign c0 127.0.0.1:{ports[0]}")
        until(lambda: get(port) == (200, str(ports[0])), f"an answer of {subject} ({get(port)}; {process.words()})", 10)
        found["seen_ms"] = [one_change(server, port, ports[(i + 1) % 2]) for i in range(changes)]
        found["change_cpu_ms"] = cpu_of_changes(server, process, ports, changes)
        if process.status:
            status = json.loads(get(process.status)[1])
            held = sum(len(cluster["endpoints"]) for cluster in status["clusters"].values())
            if held != clusters * 10 - 9:  # cluster c0 was given one
                raise Failed(f"{subject} holds {held} endpoints of {clusters} clusters")
            found["zone"] = round(process.shared(), 1)
        return found
    finally:
        process.stop()
        server.stop()


def one_change(server, port, upstream):
    """Milliseconds from the moment go-control-plane sent a changed endpoint to the first request that meets it."""
    command = threading.Thread(target=server.do, args=(f"endpoint c0 127.0.0.1:{upstream}",))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    end = time.monotonic() + 10
    command.start()
    try:
        while True:
            asked = time.time_ns()
            connection.request("GET", "/", headers={"host": "v0.mesh.test"})
            if connection.getresponse().read().decode().strip() == str(upstream):
                break
            if time.monotonic() > end:
                raise Failed(f"a changed endpoint was not seen within 10 s on port {port}")
    finally:
        command.join()
        connection.close()
    sent = server.do("count")["types"]["ClusterLoadAssignment"]["last_response"]
    return max(0, asked - sent) / 1e6


def cpu_of_changes(server, process, ports, changes):
    """Processor milliseconds of a subject for one change, without requests; what it spends at rest is taken off.

    The median of as many pairs: what a subject does every few seconds is in few of them.
    """
    pause = 0.05
    costs = []
    for i in range(changes):
        before = process.cpu()
        server.do(f"endpoint c0 127.0.0.1:{ports[i % 2]}")
        time.sleep(pause)
        changed = process.cpu()
        server.do("count")
        time.sleep(pause)
        costs.append((changed - before) - (process.cpu() - changed))
    return statistics.median(costs) * 1000
