"""The thread, the zone and the workers over starts, reloads, upgrades and kills."""

import json
import os
import signal
import socket
import subprocess
import threading
import time

import amesh
import pytest

THREAD = "amesh-xds"


def thread_of(nginx):
    return nginx.threads().count(THREAD)


def status(nginx):
    return json.loads(amesh.get(nginx.status)[1])


@pytest.mark.parametrize("daemon", [False, True])
def test_one_thread_in_the_master_and_none_in_workers(daemon):
    with amesh.Nginx(daemon=daemon, workers=3).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1, what="the start of the thread")
        # It starts with the first of them.
        amesh.until(lambda: len(nginx.children()) == 3, what="the start of the workers")
        for worker in nginx.children():
            assert THREAD not in nginx.threads(worker)
        assert nginx.get() == (200, str(nginx.a))


def test_without_master_process_the_one_process_runs_the_thread():
    with amesh.Nginx(master=False).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1, what="the start of the thread")
        nginx.mesh("b")
        amesh.until(lambda: nginx.get() == (200, str(nginx.b)), what="the change")


def test_configuration_test_starts_nothing_and_names_a_bad_file():
    nginx = amesh.Nginx().mesh()
    nginx.put("bad.yaml", "name: [")
    done = nginx.test()
    assert done.returncode == 0 and "test is successful" in done.stderr
    assert "bad.yaml" in done.stderr + nginx.log()


def test_a_changed_file_is_served_without_a_reload():
    with amesh.Nginx(workers=2).mesh() as nginx:
        workers = amesh.until(lambda: len(nginx.children()) == 2 and nginx.children(), what="the start of the workers")
        assert nginx.get() == (200, str(nginx.a))
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: all(nginx.get() == (200, str(nginx.b)) for _ in range(8)), what="the change")
        nginx.put("clusters.yaml", amesh.cluster("a", nginx.a), amesh.cluster("b", nginx.a))
        amesh.until(lambda: nginx.get() == (200, str(nginx.a)), what="the change of an endpoint")
        assert nginx.children() == workers


def test_a_bad_file_keeps_last_good_and_is_told_once():
    with amesh.Nginx().mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        nginx.put("route.yaml", amesh.route("b") + "\n  oops: [")
        amesh.until(lambda: "route.yaml" in nginx.log(), what="the message")
        for _ in range(50):
            assert nginx.get() == (200, str(nginx.a))
        lines = [line for line in nginx.log().splitlines() if "route.yaml" in line]
        assert len(lines) == 1, lines
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: nginx.get() == (200, str(nginx.b)), what="the change after it was mended")


def test_reloads_under_load_keep_thread_and_descriptors():
    with amesh.Nginx(workers=2).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        nginx.reload()
        descriptors = len(os.listdir(f"/proc/{nginx.pid()}/fd"))
        with amesh.Load(nginx.port) as load:
            for n in range(20):
                nginx.put("route.yaml", amesh.route("ab"[n % 2]))
                nginx.reload()
        assert load.failed == [] and load.count > 20
        assert thread_of(nginx) == 1
        assert len(os.listdir(f"/proc/{nginx.pid()}/fd")) == descriptors
        nginx.mesh("a")
        amesh.until(lambda: nginx.get() == (200, str(nginx.a)), what="a change after the reloads")


def test_a_reload_ends_no_more_idle_connections_than_stock_nginx():
    """Connections kept alive to a plain server of nginx and to the mesh, side by side, at one reload."""
    port = amesh.free_port()
    stream = f"server {{ listen 127.0.0.1:{port}; amesh outbound; }}"
    with amesh.Nginx(stream=stream).mesh() as nginx:
        nginx.put("door.yaml", amesh.listener(port))
        amesh.until(lambda: nginx.answers(port), what="the listener behind the door")
        idle = {}
        for name, to in (("stock", nginx.a), ("listener", nginx.port), ("door", port)):
            idle[name] = [socket.create_connection(("127.0.0.1", to), 20) for _ in range(30)]
            for c in idle[name]:
                c.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b" 200 " in c.recv(65536)
        nginx.reload()
        time.sleep(0.5)
        ended = {}
        for name, connections in idle.items():
            ended[name] = 0
            for c in connections:
                c.setblocking(False)
                try:
                    ended[name] += c.recv(1) == b""
                except BlockingIOError:
                    pass
                c.close()
        print(ended)
        assert ended["listener"] <= ended["stock"] and ended["door"] <= ended["stock"], ended


def test_a_failed_reload_changes_nothing():
    with amesh.Nginx().mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        workers = nginx.children()
        conf = nginx.dir / "nginx.conf"
        good = conf.read_text()
        # The zone of the new configuration is another, and the configuration fails after it was made.
        conf.write_text(good.replace("zone mesh 4m", "zone mesh 5m").replace("http {", "http { server { listen 192.0.2.1:1; }"))
        nginx.signal(signal.SIGHUP)
        amesh.until(lambda: "bind() to 192.0.2.1:1 failed" in nginx.log(), what="the failure")
        time.sleep(0.5)
        assert nginx.children() == workers and thread_of(nginx) == 1
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: nginx.get() == (200, str(nginx.b)), what="a change after the failed reload")
        conf.write_text(good)
        nginx.reload()
        assert nginx.get() == (200, str(nginx.b))


def test_a_resized_zone_is_full_before_workers_see_it():
    with amesh.Nginx(workers=2).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        conf = nginx.dir / "nginx.conf"
        with amesh.Load(nginx.port) as load:
            for size in ("8m", "3m", "16m"):
                conf.write_text(conf.read_text().replace(f"zone mesh {nginx.zone};", f"zone mesh {size};"))
                nginx.zone = size
                nginx.reload()
        assert load.failed == [] and load.count > 0
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: nginx.get() == (200, str(nginx.b)), what="a change in the new zone")
        assert status(nginx)["zone"]["size_bytes"] > 12 << 20


def test_the_thread_ends_with_its_directive_and_comes_back():
    with amesh.Nginx().mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        nginx.write_conf(amesh=False)
        nginx.reload()
        amesh.until(lambda: thread_of(nginx) == 0, what="the end of the thread")
        nginx.write_conf()
        nginx.reload()
        amesh.until(lambda: thread_of(nginx) == 1, what="the new thread")
        assert nginx.get() == (200, str(nginx.a))


def test_a_binary_upgrade_has_one_thread_a_master():
    with amesh.Nginx(daemon=True).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        old = nginx.pid()
        nginx.signal(signal.SIGUSR2)
        amesh.until(lambda: nginx.pid() not in (0, old), what="the new master")
        amesh.until(lambda: thread_of(nginx) == 1, what="the thread of the new master")
        assert nginx.threads(old).count(THREAD) == 1
        os.kill(old, signal.SIGQUIT)
        amesh.until(lambda: not os.path.exists(f"/proc/{old}"), what="the end of the old master")
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: nginx.get() == (200, str(nginx.b)), what="a change after the upgrade")


def test_killed_workers_come_back_and_give_back_what_they_held():
    with amesh.Nginx(workers=2).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        with amesh.Load(nginx.port), amesh.Load(nginx.port):
            for n in range(30):
                workers = nginx.children()
                os.kill(workers[n % len(workers)], signal.SIGKILL)
                amesh.until(lambda: len(nginx.children()) == 2 and nginx.children() != workers, what="the new worker")

        def settled():
            s = status(nginx)
            gauges = [e["rq_active"] for c in s["clusters"].values() for e in c["endpoints"]]
            return s["zone"]["workers"] == 2 and gauges == [0, 0]

        amesh.until(settled, what="the return of what was held")
        assert nginx.get() == (200, str(nginx.a))


def test_workers_are_born_while_the_thread_works():
    """A worker that is forked while the thread holds a lock would hang."""
    with amesh.Nginx(workers=8).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        for n in range(12):
            many = [amesh.cluster(f"c{i}", nginx.a, nginx.b + n) for i in range(100)]
            nginx.put("many.yaml", *many)
            nginx.reload()
        amesh.until(lambda: len(nginx.children()) == 8, what="the end of the old workers")
        for _ in range(40):
            assert nginx.get() == (200, str(nginx.a))


def test_a_full_zone_keeps_last_good_and_says_the_way_out():
    with amesh.Nginx(zone="1m").mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)
        nginx.put("many.yaml", *[amesh.cluster(f"cluster-{i}" + "x" * 200, nginx.a) for i in range(4000)])
        amesh.until(lambda: "zone is full" in nginx.log(), seconds=30, what="the message")
        assert nginx.get() == (200, str(nginx.a))
        (nginx.xds / "many.yaml").unlink()
        nginx.put("route.yaml", amesh.route("b"))
        amesh.until(lambda: nginx.get() == (200, str(nginx.b)), seconds=30, what="a change after there was room again")


def test_memory_and_descriptors_are_flat_over_updates():
    with amesh.Nginx(workers=1).mesh() as nginx:
        amesh.until(lambda: thread_of(nginx) == 1)

        def change(n):
            nginx.put("clusters.yaml", amesh.cluster("a", nginx.a if n % 2 else nginx.b), amesh.cluster("b", nginx.b))
            amesh.until(lambda: nginx.get() == (200, str(nginx.a if n % 2 else nginx.b)), what="the change")

        change(0), change(1)
        # The thread's own words are in the zone, too, and change once when it begins.
        amesh.until(lambda: status(nginx)["xds"]["sources"][0]["state"] == "watching", what="the thread's first status")
        first = status(nginx)["zone"]
        for n in range(100):
            change(n)
        last = status(nginx)["zone"]
        assert (last["slots"], last["cells"]) == (first["slots"], first["cells"])
        # The thread's own status is a slot, too, and its numbers have more digits by now.
        assert last["used_bytes"] - first["used_bytes"] < 100
        assert last["version"] >= first["version"] + 100


def test_without_any_resource_it_is_not_ready_and_requests_wait():
    port = amesh.free_port()
    stream = f"server {{ listen 127.0.0.1:{port}; amesh outbound; }}"
    with amesh.Nginx(stream=stream) as nginx:
        assert amesh.get(nginx.status, "/ready")[0] == 503
        assert amesh.get(nginx.status, "/live") == (200, "live")
        answers = []
        waiting = [threading.Thread(target=lambda p=p: answers.append(amesh.get(p))) for p in (nginx.port, port)]
        for t in waiting:
            t.start()
        time.sleep(0.3)
        assert answers == []
        nginx.put("all.yaml", amesh.route("a"), amesh.cluster("a", nginx.a), amesh.listener(nginx.port), amesh.listener(port))
        for t in waiting:
            t.join()
        assert answers == [(200, str(nginx.a))] * 2
        assert amesh.get(nginx.status, "/ready")[0] == 200


def test_the_wait_for_the_first_resource_is_bounded():
    with amesh.Nginx(amesh="server 127.0.0.1:1;") as nginx:
        assert nginx.get()[0] == 503


def test_nobody_but_the_door_gets_into_the_internal_listener():
    with amesh.Nginx().mesh() as nginx:
        port = int((nginx.dir / "amesh/http.conf").read_text().split("listen 127.0.0.1:")[1].split(";")[0])
        with pytest.raises(OSError):
            amesh.get(port)


def test_loads_without_stream():
    nginx = amesh.Nginx().mesh()
    nginx.write_conf()
    conf = nginx.dir / "nginx.conf"
    conf.write_text("\n".join(line for line in conf.read_text().splitlines() if str(amesh.STREAM) not in line))
    done = subprocess.run(nginx.command("-t"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
