"""Starts both subjects with one configuration, runs cases on them, and takes all down again."""

import asyncio
import contextlib
import os
import pathlib

import judge
import mesh
import subjects
import upstream

# Cases that run at once: those that wait shall not add up, and two cores shall do.
AT_ONCE = 12
HERE = pathlib.Path(__file__).resolve().parent


@contextlib.contextmanager
def started(cases, managers=None):
    """Both subjects, up: (addresses, subjects, ports) with a listener for each case, and one for each of these connection managers,
    whose route tables are put there later."""
    managers = managers or {}
    addresses = mesh.Addresses()
    other = subjects.Twin if os.environ.get("AMESH_ENVOY_CONTROL") else subjects.Lua if os.environ.get("AMESH_ENVOY_LUA") else subjects.Nginx
    both = []
    try:
        both += [subjects.Envoy(addresses.envoy), other(addresses.nginx)]
        ports = {name: next(addresses.ports) for name in [*(case["id"] for case in cases), *managers]}
        clusters = dict(mesh.CLUSTERS)
        for case in cases:
            twice = clusters.keys() & case.get("clusters", {}).keys()
            assert not twice, f"{case['id']}: there is another cluster {twice}"
            clusters.update(case.get("clusters", {}))
        for subject in both:
            listeners = [
                mesh.listener(case["id"], subject.address, ports[case["id"]], subject.log.path, case, {"route_config": mesh.table(case, case["id"])})
                for case in cases
            ]
            for name, fields in managers.items():
                subject.put_table({"name": name, "virtual_hosts": []})
                listeners.append(mesh.listener(name, subject.address, ports[name], subject.log.path, fields, subject.rds(name)))
            subject.start(listeners, [mesh.cluster(addresses, name, spec) for name, spec in clusters.items()])
        yield addresses, both, ports
    except BaseException:
        for subject in both:
            print(f"{subject.name}: {subject.rejected()}")
        raise
    finally:
        for subject in both:
            subject.stop()
        addresses.lock.close()


def run(cases):
    """{case id: [(request, of Envoy, of nginx)]}, and the lines that the subjects said of what they did not take."""
    with started(cases) as (addresses, both, ports):
        results = asyncio.run(run_all(cases, addresses, both, ports))
        subjects.add_logs(both, [side for found in results.values() for _, *sides in found for side in sides])
        died = [line for line in both[1].rejected().splitlines() if "exited on signal" in line]
        assert not died, f"a worker of nginx died: {died}"
        return results, [line for subject in both for line in subject.rejected().splitlines()]


async def run_all(cases, addresses, both, ports):
    endpoints = upstream.Upstream()
    await endpoints.listen({name: addresses.endpoints[name] for name in mesh.ENDPOINTS})
    running = judge.Run(both, endpoints)
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(case):
        async with at_once:
            return case["id"], await running.case(case, ports[case["id"]])

    return dict(await asyncio.gather(*map(one, cases)))
