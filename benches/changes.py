"""What a mesh that changes under load costs: every endpoint each second, or the route table ten times a second."""

import threading
import time

import subjects
from measure import ControlPlane, quiet
from process import Failed, free_ports, get, until

STORM = "every endpoint of 1,000 clusters changed each second"
ROUTES = "10 route updates a second at 10,000 routes"
# Work: what the control plane has, what is asked for, the command of the n-th change, seconds between two.
WORKS = {
    STORM: ({"clusters": 1000, "endpoints": 1, "vhosts": 1000}, ["hosts", "1000"], lambda _: "rotate", 1.0),
    ROUTES: (
        {"clusters": 2, "endpoints": 1, "vhosts": 1, "routes": 10_000},
        ["last", "10000"],
        lambda n: f"weight v0 {1 + n % 2} {2 - n % 2}",
        0.1,
    ),
}


class Changes:
    """Has the control plane change something again and again, while this is open. `made` is how often."""

    def __init__(self, server, command, pause):
        self.server, self.command, self.pause, self.made, self.failed = server, command, pause, 0, None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        due = time.monotonic()
        while not self.over.is_set():
            try:
                self.server.do(self.command(self.made))
            except (Failed, OSError) as e:
                self.failed = e
                return
            self.made += 1
            due += self.pause
            self.over.wait(max(0, due - time.monotonic()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        if self.failed:
            raise Failed(f"the control plane: {self.failed}")


def row(work, subject, load, seconds):
    """One subject under one kind of change, beside itself at rest."""
    shape, asked, command, pause = WORKS[work]
    (port,) = free_ports(1)
    behind = load.upstream
    upstreams = f"127.0.0.1:{behind.port},127.0.0.1:{behind.other}"
    server = ControlPlane(shape["clusters"], port, {**shape, "upstreams": upstreams})
    process = subjects.dynamic(subject, port, server.port)
    try:
        until(lambda: server.applied(shape["clusters"]), f"{subject} taking the mesh ({process.log})")
        until(lambda: quiet(process), f"{subject} coming to rest")
        until(lambda: get(port)[0] == 200, f"an answer of {subject} ({get(port)}; {process.words()})", 10)
        load.wrk(process, asked, 1)
        idle = load.measured(process, asked, seconds)
        with Changes(server, command, pause) as changes:
            # The first changes take what later ones use again.
            load.measured(process, asked, 3 * pause)
            before, made, start = process.memory()["pss"], changes.made, time.monotonic()
            others = process.cpu() - process.worker_cpu()
            busy = load.measured(process, asked, seconds)
            took, made = time.monotonic() - start, changes.made - made
            others = process.cpu() - process.worker_cpu() - others
            after = process.memory()["pss"]
        return {
            "work": work,
            "subject": subject,
            "cpu_s_per_100k": None,
            "rss_mb": round(after, 1),
            "ratio_to_nginx": None,
            "changes_a_second": round(made / took, 1),
            "failed": busy["errors"],
            "worker_cpu_to_idle": round(busy["worker_cpu_s_per_100k"] / idle["worker_cpu_s_per_100k"], 2),
            "p99_ms": round(busy["p99_us"] / 1000, 2),
            "p99_ms_idle": round(idle["p99_us"] / 1000, 2),
            "cores_beside_the_worker": round(others / took, 2),
            "memory_grows_mb": round(after - before, 1),
        }
    finally:
        process.stop()
        server.stop()
