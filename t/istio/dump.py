#!/usr/bin/env python3
"""Record what istiod says to a node: dump.py [-a ADDR] [-n app|locked|router] [--delta] [-o PREFIX] [--meta K=V]...

PREFIX.pb    the responses in order, each with a varint length before it (DiscoveryResponse or DeltaDiscoveryResponse)
PREFIX.req.pb the requests, likewise
PREFIX.json  {"node", "transcript": [...], "lds": {name: resource}, "cds": ..., ...}; every Any expanded
"""

import argparse
import json

from google.protobuf.internal.encoder import _VarintBytes

import mesh_ads as xds


def run(s, delta, types):
    """Subscribe as Envoy does (CDS, then its EDS; LDS, then its RDS and ECDS) until istiod is quiet; {type: {name: message}}."""
    got, subs, versions = {t: {} for t in xds.URL}, {}, {}

    def subscribe(t, names, nonce="", version=""):
        have = subs.setdefault(t, [])
        new = [n for n in names if n not in have]
        have += new
        if delta:
            if new:
                s.send(t, new)
        elif new or nonce:
            s.send(t, have, nonce=nonce, version=version)

    s.send("cds")
    s.send("lds")
    for t in types:
        s.send(t, ["*"] if delta else [])
    while True:
        m = s.recv(1.5)
        if m is None:
            return got
        t = xds.SHORT[m.type_url]
        versions[t] = (m.nonce, "" if delta else m.version_info)
        if not delta and t in ("cds", "lds"):
            got[t] = {}
        want = {"eds": [], "rds": [], "ecds": []}
        for r in m.resources:
            a = r.resource if delta else r
            try:
                c = xds.symbol_database.Default().GetSymbol(a.type_url.rsplit("/", 1)[-1])()
                c.ParseFromString(a.value)
            except KeyError:
                c = a
            name = r.name if delta else getattr(c, "name", "") or getattr(c, "cluster_name", "")
            got[t][name] = c
            if t in ("cds", "lds"):
                for k, v in zip(("eds", "rds", "ecds"), xds.refs(c)):
                    want[k] += v
        if delta:
            for n in m.removed_resources:
                got[t].pop(n, None)
            s.send(t, nonce=m.nonce)
        else:
            s.send(t, subs.get(t, []), nonce=m.nonce, version=m.version_info)
        for k, v in want.items():
            subscribe(k, sorted(set(v)), *([] if delta else versions.get(k, ("", ""))))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("-a", default="127.0.0.1:15010")
    a.add_argument("-n", default="app", choices=xds.NODES)
    a.add_argument("--delta", action="store_true")
    a.add_argument("-o")
    a.add_argument("-t", action="append", default=[], help="also subscribe to this type: nds, pcds, ...")
    a.add_argument("--meta", action="append", default=[])
    o = a.parse_args()
    xds.import_protos()
    s = xds.Stream(xds.channel(o.a), o.delta, xds.node(o.n, **dict(x.split("=", 1) for x in o.meta)))
    got = run(s, o.delta, o.t)
    s.close()
    for at, what, m in s.log:
        if what != "send" or not m.response_nonce or m.HasField("error_detail"):
            print(f"{at:7.3f} {what} {xds.summary(m)}")
    if o.o:
        for suffix, what in ((".pb", "recv"), (".req.pb", "send")):
            with open(o.o + suffix, "wb") as f:
                for _, w, m in s.log:
                    if w == what:
                        f.write(_VarintBytes(m.ByteSize()) + m.SerializeToString())
        doc = {"node": xds.plain(s.node), "transcript": [f"{at} {w} {xds.summary(m)}" for at, w, m in s.log]}
        doc.update({k: {n: xds.plain(m) for n, m in v.items()} for k, v in got.items() if v})
        with open(o.o + ".json", "w") as f:  # one resource a line
            f.write(
                "{\n"
                + ",\n".join(
                    f"{json.dumps(k)}: "
                    + (
                        json.dumps(v)
                        if k == "node"
                        else "[\n" + ",\n".join(map(json.dumps, v)) + "\n]"
                        if k == "transcript"
                        else "{\n"
                        + ",\n".join(
                            f"{json.dumps(n)}: {json.dumps(m, separators=(',', ':'))}" for n, m in sorted(v.items())
                        )
                        + "\n}"
                    )
                    for k, v in doc.items()
                )
                + "\n}\n"
            )
    print({k: len(v) for k, v in got.items() if v})


if __name__ == "__main__":
    main()
