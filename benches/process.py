"""Programs under measurement: start, processor time, memory, end."""

import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
MB = 1 << 20


class Failed(Exception):
    """A run that gives no figures, and why."""


def free_ports(n):
    """n TCP ports of 127.0.0.1 that nobody listens on."""
    held = [socket.socket() for _ in range(n)]
    try:
        for s in held:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in held]
    finally:
        for s in held:
            s.close()


def get(port, path="/", host="v0.mesh.test"):
    """(status, body) of one request; (0, reason) if there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"host": host})
        response = connection.getresponse()
        return response.status, response.read().decode().strip()
    except (OSError, http.client.HTTPException) as e:
        return 0, repr(e)
    finally:
        connection.close()


def until(check, what, seconds=60):
    """The first true value of check(); Failed after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        if value := check():
            return value
        if time.monotonic() > end:
            raise Failed(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


class Directory:
    """A directory that configurations and logs of a program are in, until it stops."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="amesh-bench-"))
        self.path.chmod(0o755)

    def write(self, name, text):
        (self.path / name).write_text(text)
        return self.path / name

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)


class Process:
    """A program with its children. `port` is where it takes requests, `status` where it tells of itself (or None)."""

    def __init__(self, name, command, directory, port, status=None):
        self.name, self.directory, self.port, self.status = name, directory, port, status
        self.log = directory.path / "output"
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out)

    def pids(self):
        """The program's first process, then its children."""
        first = self.popen.pid
        children = []
        for task in os.listdir(f"/proc/{first}/task"):
            children += pathlib.Path(f"/proc/{first}/task/{task}/children").read_text().split()
        return [first, *map(int, children)]

    def cpu(self):
        """Seconds of processor time of all threads of all its processes, so far."""
        total = 0.0
        for pid in self.pids():
            try:
                # Nanoseconds; utime and stime of stat are the same sum in hundredths.
                for task in os.listdir(f"/proc/{pid}/task"):
                    total += int(pathlib.Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) / 1e9
            except FileNotFoundError:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / TICKS
        return total

    def worker_cpu(self):
        """The same of the one worker alone: of nginx the last process, of Envoy a thread."""
        last = self.pids()[-1]
        tasks = [pathlib.Path(f"/proc/{last}/task/{task}") for task in os.listdir(f"/proc/{last}/task")]
        workers = [task for task in tasks if (task / "comm").read_text().startswith("wrk:")] or tasks
        return sum(int((task / "schedstat").read_text().split()[0]) for task in workers) / 1e9

    def memory(self):
        """MB: `pss` of all its processes (a page that several share counts once), `private` of the worker."""
        sizes = [self._rollup(pid) for pid in self.pids()]
        return {"pss": sum(s["Pss"] for s in sizes), "private": sizes[-1]["Private_Clean"] + sizes[-1]["Private_Dirty"]}

    def shared(self):
        """MB that are resident of the largest memory that its processes share: nginx's zone, all that was written of it."""
        largest, current = 0, False
        for line in pathlib.Path(f"/proc/{self.popen.pid}/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                current = words[1] == "rw-s"
            elif current and words[0] == "Rss:":
                largest = max(largest, int(words[1]) * 1024 / MB)
        return largest

    @staticmethod
    def _rollup(pid):
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        return {name: int(value.split()[0]) * 1024 / MB for name, value in (line.split(":") for line in lines)}

    def words(self):
        """The last of what it wrote, for an error message."""
        text = ""
        for file in (self.log, *self.directory.path.glob("*.log")):
            text += file.read_text(errors="replace")[-2000:]
        return text.strip()

    def wait(self, path="/", status=200, seconds=60):
        """Until it answers a request with this status."""

        def answers():
            if self.popen.poll() is not None:
                raise Failed(f"{self.name} ended at start: {self.words()}")
            return get(self.port, path)[0] == status

        try:
            until(answers, f"an answer {status} of {self.name}", seconds)
        except Failed as e:
            raise Failed(f"{e}: {self.words()}") from None
        return self

    def stop(self):
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.popen.stdin.close()
        self.directory.remove()
