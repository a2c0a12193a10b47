"""libxds.so under what APISIX does with it (t/apisix): the calls, phases and processes of its `config_provider: xds`."""

import os
import signal
import subprocess
import time

import amesh
import pytest
from apisix import LIBXDS, Apisix, upstream
from test_control_plane import ControlPlane, program  # noqa: F401


def simple(apisix, to="a"):
    """One route to one upstream."""
    port = getattr(apisix, to)
    return apisix.say(routes=[{"id": "r", "uri": "/*", "upstream_id": "u"}], upstreams=[upstream("u", port)])


def served(apisix, port, path="/", host="mesh.example.com"):
    """By every worker: each of them looks for itself."""
    right = (200, str(port))
    amesh.until(lambda: all(apisix.get(path, host) == right for _ in range(12)), what=f"{port} for {host}{path}")


def test_it_exports_one_function_and_stays_loaded():
    symbols = subprocess.run(["nm", "-D", "--defined-only", LIBXDS], capture_output=True, text=True, check=True).stdout
    assert [line.split()[1:] for line in symbols.splitlines()] == [["T", "initial"]]
    dynamic = subprocess.run(["readelf", "-d", LIBXDS], capture_output=True, text=True, check=True).stdout
    assert "NODELETE" in dynamic
    undefined = subprocess.run(["nm", "-D", "--undefined-only", LIBXDS], capture_output=True, text=True, check=True).stdout
    assert "ngx_" not in undefined


def test_objects_are_served_and_changes_are_followed_and_the_thread_outlives_collections():
    with simple(Apisix()) as apisix:
        served(apisix, apisix.a)
        before = apisix.version()
        assert len(before) == 13 and before.isdigit()
        apisix.run("for _ = 1, 5 do collectgarbage() end")
        simple(apisix, "b")
        served(apisix, apisix.b)
        assert int(apisix.version()) > int(before)
        apisix.say(routes=[{"id": "r", "uri": "/only", "upstream_id": "u"}], upstreams=[upstream("u", apisix.a)])
        amesh.until(lambda: apisix.get()[0] == 404, what="the end of the route")
        served(apisix, apisix.a, "/only")
        assert len(apisix.agent()) == 1
        assert apisix.errors() == []


def test_without_anything_to_serve_apisix_starts_and_ends():
    with Apisix(env={}) as apisix:
        assert apisix.get()[0] == 404
        assert set(apisix.keys()) == {"/_amesh"}
        assert apisix.errors() == []


@pytest.mark.parametrize("env", [{"AMESH_MARK": "nonsense"}, {"AMESH_CONFIG": "/nonexistent/amesh.yaml"}])
def test_settings_that_make_no_sense_are_named_and_apisix_starts(env):
    with Apisix(env=env) as apisix:
        assert apisix.get()[0] == 404
        [error] = apisix.errors()
        assert next(iter(env)) in error


def test_a_reload_writes_nothing_and_loses_no_request_and_the_old_thread_ends():
    with simple(Apisix(workers=3)) as apisix:
        served(apisix, apisix.a)
        version = apisix.version()
        # It is held open over the reload, so that the old process lives on.
        old = apisix.agent()
        with amesh.Load(apisix.port) as load:
            for _ in range(3):
                apisix.signal(signal.SIGHUP)
                time.sleep(0.5)
        amesh.until(lambda: len(apisix.agent()) == 1 and apisix.agent() != old, what="the new process alone")
        # Two ticks: what a former process has left would be gone by now.
        time.sleep(2.2)
        assert apisix.version() == version
        assert load.failed == [] and load.count > 10, apisix.errors()
        simple(apisix, "b")
        served(apisix, apisix.b)
        assert apisix.errors() == []


def test_of_two_processes_the_younger_writes():
    with simple(Apisix()) as apisix:
        served(apisix, apisix.a)
        apisix.run("ngx.shared['xds-config-version']:set('owner', 'a younger process')")
        amesh.until(lambda: apisix.agent() == [], what="the end of the thread")
        before = apisix.version()
        simple(apisix, "b")
        time.sleep(1.5)
        assert apisix.version() == before and apisix.get() == (200, str(apisix.a))
        assert "a younger process writes" in apisix.log()


def test_a_killed_agent_comes_back_and_goes_on():
    with simple(Apisix()) as apisix:
        served(apisix, apisix.a)
        version = apisix.version()
        [agent] = apisix.agent()
        os.kill(agent, signal.SIGKILL)
        amesh.until(lambda: len(apisix.agent()) == 1 and apisix.agent() != [agent], what="a new process")
        served(apisix, apisix.a)
        assert apisix.version() == version
        simple(apisix, "b")
        served(apisix, apisix.b)


def test_what_is_gone_while_no_process_ran_is_deleted():
    with Apisix() as apisix:
        apisix.say(
            routes=[{"id": "r", "uri": "/*", "upstream_id": "u"}, {"id": "old", "uri": "/old", "upstream_id": "u"}],
            upstreams=[upstream("u", apisix.a)],
        )
        served(apisix, apisix.a, "/old")
        os.kill(apisix.agent()[0], signal.SIGSTOP)
        simple(apisix, "b")
        os.kill(apisix.agent()[0], signal.SIGKILL)
        amesh.until(lambda: "/routes/old" not in apisix.keys(), what="the end of the old route")
        served(apisix, apisix.b, "/old")


def test_a_full_dictionary_keeps_what_it_has_and_says_so_once():
    with simple(Apisix(config="128k")) as apisix:
        served(apisix, apisix.a)
        before, version = apisix.written(), apisix.version()
        many = [upstream(f"u{i}", apisix.b, desc="x" * 200) for i in range(1000)]
        apisix.say(routes=[{"id": "r", "uri": "/*", "upstream_id": "u"}], upstreams=[upstream("u", apisix.b), *many])
        amesh.until(lambda: "is full" in apisix.log(), what="the message")
        time.sleep(2.5)
        assert apisix.log().count("is full") == 1
        assert 'shared dictionary "xds-config" is full: make it larger' in apisix.log()
        assert (apisix.written(), apisix.version()) == (before, version)
        assert apisix.get() == (200, str(apisix.a))
        simple(apisix, "b")
        served(apisix, apisix.b)


def test_a_changed_object_is_one_write_and_one_version():
    with Apisix() as apisix:
        many = [upstream(f"u{i}", apisix.a) for i in range(300)]
        route = {"id": "r", "uri": "/*", "upstream_id": "u7"}
        apisix.say(routes=[route], upstreams=many)
        served(apisix, apisix.a)
        # Every key is marked; what is written loses its mark.
        apisix.run("""
            local dict = ngx.shared["xds-config"]
            for _, key in ipairs(dict:get_keys(0)) do dict:set(key, dict:get(key), 0, 7) end
        """)
        version = apisix.version()
        many[7] = upstream("u7", apisix.b)
        apisix.say(routes=[route], upstreams=many)
        served(apisix, apisix.b)
        unmarked = apisix.run("""
            local dict, all = ngx.shared["xds-config"], {}
            for _, key in ipairs(dict:get_keys(0)) do
                local _, flags = dict:get(key)
                if flags ~= 7 then all[#all + 1] = key end
            end
            return all
        """)
        assert unmarked == ["/upstreams/u7"]
        assert apisix.version() > version
        version = apisix.version()
        apisix.say(routes=[route], upstreams=many)
        time.sleep(1.5)
        assert apisix.version() == version, "nothing has changed"


def test_a_thousand_updates_leave_no_error():
    with Apisix() as apisix:
        versions = set()
        for n in range(1000):
            port = apisix.b if n % 2 else apisix.a
            apisix.say(routes=[{"id": "r", "uri": "/*", "upstream_id": "u", "desc": str(n)}], upstreams=[upstream("u", port)])
            if n % 50 == 0:
                versions.add(apisix.version())
            time.sleep(0.002)
        served(apisix, apisix.b)
        amesh.until(lambda: apisix.written()["/routes/r"]["desc"] == "999", what="the last update")
        assert apisix.errors() == []


@pytest.fixture(params=["alone", "with the module"])
def meshed(request):
    """APISIX with the mesh of files, from the library's own engine or from the module's zone."""
    module = request.param != "alone"
    apisix = Apisix(env={"AMESH_DESTINATION": "server"}, module=module)
    if module:
        apisix.main = f"amesh {{ zone mesh 4m; server file:{apisix.xds}; }}"
    else:
        apisix.env["AMESH_XDS_ADDRESS"] = f"file:{apisix.xds}"
    return apisix


def test_objects_of_ones_own_stand_beside_those_of_the_mesh(meshed):
    meshed.env["AMESH_OBJECTS"] = str(meshed.objects)
    with meshed.mesh() as apisix:

        def cluster(name):
            found = [o["id"] for k, o in apisix.written().items() if k.startswith("/upstreams/") and o.get("name") == name]
            return found and found[0]

        id = amesh.until(lambda: cluster("a"), what="the cluster's upstream")
        apisix.say(routes=[{"id": "own", "uri": "/own", "upstream_id": id}])
        amesh.until(lambda: "/routes/own" in apisix.written(), what="the route")
        served(apisix, apisix.a, "/own")
        apisix.put("clusters.yaml", amesh.cluster("a", apisix.b))
        served(apisix, apisix.b, "/own")
        amesh.until(lambda: not cluster("b"), what="the end of a cluster")
        # The young process is told of the mesh, and of the objects.
        version = apisix.version()
        apisix.reload()
        time.sleep(1.5)
        assert apisix.version() == version
        served(apisix, apisix.b, "/own")
        assert len(apisix.agent()) == 1
        assert apisix.errors() == []


def test_the_mesh_of_files_is_served(meshed):
    with meshed.mesh() as apisix:
        assert apisix.get() == (200, str(apisix.a)), "by the first request"
        for n in range(3):
            before = apisix.version()
            apisix.mesh("b" if n % 2 == 0 else "a")
            served(apisix, apisix.b if n % 2 == 0 else apisix.a)
            assert apisix.version() > before
        apisix.put("clusters.yaml", amesh.cluster("a", apisix.a), amesh.cluster("b", apisix.a))
        served(apisix, apisix.a)
        assert apisix.errors() == []


def test_a_reload_and_a_killed_agent_change_nothing_of_the_mesh(meshed):
    with meshed.mesh() as apisix:
        served(apisix, apisix.a)
        written = apisix.written()
        version = apisix.version()
        apisix.reload()
        served(apisix, apisix.a)
        [agent] = amesh.until(lambda: len(apisix.agent()) == 1 and apisix.agent(), what="one thread")
        os.kill(agent, signal.SIGKILL)
        amesh.until(lambda: len(apisix.agent()) == 1 and apisix.agent() != [agent], what="a new process")
        time.sleep(1.5)
        assert (apisix.written(), apisix.version()) == (written, version)
        apisix.mesh("b")
        served(apisix, apisix.b)


PLUGIN = """
apiVersion: apisix.apache.org/v1alpha1
kind: AmeshPluginConfig
metadata: {name: closed}
spec:
  selector: {matchLabels: {app: web}}
  plugins: [{name: fault-injection, config: '{"abort": {"http_status": 429}}'}]
"""


def test_plugins_from_the_mesh_come_and_go(meshed):
    plugins = meshed.dir / "plugins"
    plugins.mkdir()
    meshed.env.update(AMESH_PLUGINS=str(plugins), AMESH_NODE_METADATA='{"LABELS": {"app": "web"}}')
    with meshed.mesh() as apisix:
        served(apisix, apisix.a)
        (plugins / "closed.yaml").write_text(PLUGIN.replace("app: web", "app: other"))
        time.sleep(1.5)
        assert apisix.get() == (200, str(apisix.a))
        (plugins / "closed.yaml").write_text(PLUGIN)
        amesh.until(lambda: apisix.get()[0] == 429, what="the plugin")
        (plugins / "closed.yaml").unlink()
        served(apisix, apisix.a)


def test_a_real_control_plane_that_goes_away_and_comes_back(program):  # noqa: F811
    listen = f"127.0.0.1:{amesh.free_port()}"
    apisix = Apisix(env={"AMESH_XDS_ADDRESS": listen, "AMESH_NODE": "test", "AMESH_DESTINATION": "server"})

    def plane():
        options = {"clusters": 2, "endpoints": 1, "vhosts": 2, "routes": 2}
        places = (f"-upstreams=127.0.0.1:{apisix.a}", f"-listener=127.0.0.1:{apisix.port}")
        return ControlPlane(program, *places, listen=listen, **options)

    with plane() as first, apisix:
        served(apisix, apisix.a, host="v0.mesh.test")
        assert apisix.get(host="new.mesh.test")[0] == 404
        for n in range(200):
            first.say(f"assign c0 127.0.0.1:{apisix.a if n % 2 else apisix.b}")
        served(apisix, apisix.a, host="v0.mesh.test")
        before, written = apisix.version(), apisix.written()
        first.say(f"assign c0 127.0.0.1:{apisix.b}")
        served(apisix, apisix.b, host="v0.mesh.test")
        now = apisix.written()
        changed = [key for key in now if written.get(key) != now[key]]
        assert now.keys() == written.keys() and len(changed) == 1 and changed[0].startswith("/upstreams/")
        assert apisix.version() > before
        first.say("add new")
        amesh.until(lambda: apisix.get(host="new.mesh.test")[0] == 200, what="the new virtual host")
        first.say("remove new")
        amesh.until(lambda: apisix.get(host="new.mesh.test")[0] == 404, what="its end")
        first.say(f"assign c0 127.0.0.1:{apisix.a}")
        served(apisix, apisix.a, host="v0.mesh.test")
        first.process.terminate()
        first.process.wait(10)
        amesh.until(lambda: "last good serves" in apisix.log(), what="the message")
        served(apisix, apisix.a, host="v0.mesh.test")
        # A new process does not know the mesh, and serves what stands in the dictionary.
        version = apisix.version()
        apisix.reload()
        served(apisix, apisix.a, host="v0.mesh.test")
        assert apisix.version() == version
        with plane() as second:
            second.say(f"assign c0 127.0.0.1:{apisix.b}")
            amesh.until(lambda: apisix.get(host="v0.mesh.test") == (200, str(apisix.b)), seconds=40, what="the way back")


def test_without_its_control_plane_apisix_starts_at_once():
    with Apisix(env={"AMESH_XDS_ADDRESS": f"127.0.0.1:{amesh.free_port()}", "AMESH_NODE": "test"}) as apisix:
        assert apisix.get()[0] == 404
        assert int(apisix.version()) > 0
