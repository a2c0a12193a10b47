"""A small ADS client for istiod (SotW and delta) and a JSON writer that expands every Any. Needs grpcio, xds-protos."""

import base64
import importlib
import os
import queue
import threading
import time

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3 import discovery_pb2 as d
from google.protobuf import any_pb2, duration_pb2, json_format, struct_pb2, symbol_database, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor as FD
from google.rpc import status_pb2

P = "type.googleapis.com/"
URL = {
    "cds": P + "envoy.config.cluster.v3.Cluster",
    "eds": P + "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "lds": P + "envoy.config.listener.v3.Listener",
    "rds": P + "envoy.config.route.v3.RouteConfiguration",
    "sds": P + "envoy.extensions.transport_sockets.tls.v3.Secret",
    "ecds": P + "envoy.config.core.v3.TypedExtensionConfig",
    "nds": P + "istio.networking.nds.v1.NameTable",
    "pcds": P + "istio.mesh.v1alpha1.ProxyConfig",
}
SHORT = {v: k for k, v in URL.items()}

COMMON = {
    "ISTIO_VERSION": "1.31.0",
    "CLUSTER_ID": "Kubernetes",
    "MESH_ID": "cluster.local",
    "INTERCEPTION_MODE": "REDIRECT",
    "ENVOY_STATUS_PORT": 15021,
    "ENVOY_PROMETHEUS_PORT": 15090,
    "PILOT_SAN": ["istiod.istio-system.svc"],
    "PROXY_CONFIG": {"discoveryAddress": "127.0.0.1:15012", "concurrency": 1, "statusPort": 15020},
}


def app(name, ns, ip, labels, kind="sidecar"):
    sa = labels.get("app", name)
    m = dict(
        COMMON,
        NAME=name,
        NAMESPACE=ns,
        INSTANCE_IPS=ip,
        SERVICE_ACCOUNT=sa,
        WORKLOAD_NAME=sa,
        LABELS=labels,
        OWNER=f"kubernetes://apis/apps/v1/namespaces/{ns}/deployments/{sa}",
    )
    return {
        "id": f"{kind}~{ip}~{name}.{ns}~{ns}.svc.cluster.local",
        "cluster": f"{sa}.{ns}",
        "metadata": m,
        "locality": {"region": "r1", "zone": "z1", "sub_zone": "a"},
    }


NODES = {
    "app": app("app-v1", "default", "198.18.0.6", {"app": "app", "version": "v1"}),
    "locked": app("locked-1", "shop", "198.18.0.7", {"app": "locked"}),
    "router": app("ingress-1", "istio-system", "198.18.0.8", {"istio": "ingress", "app": "ingress"}, "router"),
}


def node(name, **meta):
    n = NODES[name]
    return json_format.ParseDict({**n, "metadata": {**n["metadata"], **meta}}, base_pb2.Node())


def import_protos():
    import envoy

    root = os.path.dirname(list(envoy.__path__)[0])
    for top in ("envoy", "udpa", "xds"):
        for p, _, files in os.walk(os.path.join(root, top)):
            for f in files:
                if f.endswith("_pb2.py"):
                    importlib.import_module(os.path.relpath(os.path.join(p, f[:-3]), root).replace(os.sep, "."))


WKT = {
    m.DESCRIPTOR.full_name
    for m in (duration_pb2.Duration, timestamp_pb2.Timestamp, struct_pb2.Struct, struct_pb2.Value, struct_pb2.ListValue)
}
WKT |= {
    f"google.protobuf.{w}Value"
    for w in ("UInt32", "UInt64", "Int32", "Int64", "Bool", "String", "Double", "Float", "Bytes")
}


def raw(b):
    """Fields of an unknown message: number -> value (bytes that read as text are text)."""
    out, i = [], 0

    def varint(i):
        v = s = 0
        while True:
            c = b[i]
            i, v, s = i + 1, v | (c & 127) << s, s + 7
            if c < 128:
                return v, i

    try:
        while i < len(b):
            k, i = varint(i)
            n, w = k >> 3, k & 7
            if w == 0:
                v, i = varint(i)
            elif w == 2:
                ln, i = varint(i)
                v, i = b[i : i + ln], i + ln
                t = v.decode("utf-8", "replace")
                v = t if t.isprintable() else raw(v)
            elif w in (1, 5):
                ln = 8 if w == 1 else 4
                v, i = b[i : i + ln].hex(), i + ln
            else:
                return base64.b64encode(b).decode()
            out.append({str(n): v})
        return out
    except IndexError:
        return base64.b64encode(b).decode()


def plain(m):
    """Protobuf JSON mapping with original field names; an Any of a type not in the pool becomes {"@type", "raw"}."""
    name = m.DESCRIPTOR.full_name
    if name in WKT:
        return json_format.MessageToDict(m)
    if name == "google.protobuf.Any":
        t = m.type_url.rsplit("/", 1)[-1]
        try:
            c = symbol_database.Default().GetSymbol(t)()
        except KeyError:
            return {"@type": m.type_url, "raw": raw(m.value)}
        c.ParseFromString(m.value)
        v = plain(c)
        return {"@type": m.type_url, **v} if isinstance(v, dict) and t not in WKT else {"@type": m.type_url, "value": v}
    out = {}
    for f, v in m.ListFields():

        def one(x):
            if f.type == FD.TYPE_MESSAGE:
                return plain(x)
            if f.type == FD.TYPE_ENUM:
                e = f.enum_type.values_by_number.get(x)
                return e.name if e else x
            if f.type == FD.TYPE_BYTES:
                return base64.b64encode(x).decode()
            return x

        if f.type == FD.TYPE_MESSAGE and f.message_type.GetOptions().map_entry:
            vf = f.message_type.fields_by_name["value"]
            out[f.name] = {str(k): plain(x) if vf.type == FD.TYPE_MESSAGE else x for k, x in sorted(v.items())}
        elif f.is_repeated:
            out[f.name] = [one(x) for x in v]
        else:
            out[f.name] = one(v)
    return out


def channel(addr, root=None, key=None, cert=None, name="istiod.istio-system.svc"):
    opts = [("grpc.max_receive_message_length", -1)]
    if not root:
        return grpc.insecure_channel(addr, opts)
    creds = grpc.ssl_channel_credentials(
        open(root, "rb").read(), key and open(key, "rb").read(), cert and open(cert, "rb").read()
    )
    return grpc.secure_channel(addr, creds, opts + [("grpc.ssl_target_name_override", name)])


class Stream:
    """One ADS stream. log: list of (seconds, "send" | "recv" | "end", message)."""

    def __init__(self, chan, delta, node, token=None):
        self.delta, self.node, self.first = delta, node, True
        self.out, self.inq, self.log, self.t0 = queue.Queue(), queue.Queue(), [], time.monotonic()
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(chan)
        md = [("authorization", "Bearer " + token), ("clusterid", "Kubernetes")] if token else None
        self.call = (stub.DeltaAggregatedResources if delta else stub.StreamAggregatedResources)(
            iter(self.out.get, None), metadata=md
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for m in self.call:
                self._log("recv", m)
                self.inq.put(m)
            self.inq.put(None)
        except grpc.RpcError as e:
            self._log("end", f"{e.code().name}: {e.details()}")
            self.inq.put(e)

    def _log(self, what, m):
        self.log.append((round(time.monotonic() - self.t0, 3), what, m))

    def send(self, type_, sub=(), unsub=(), nonce="", version="", error=None, initial=None):
        url = URL.get(type_, type_)
        if self.delta:
            m = d.DeltaDiscoveryRequest(
                type_url=url,
                resource_names_subscribe=sub,
                resource_names_unsubscribe=unsub,
                response_nonce=nonce,
                initial_resource_versions=initial or {},
            )
        else:
            m = d.DiscoveryRequest(type_url=url, resource_names=sub, response_nonce=nonce, version_info=version)
        if self.first:
            m.node.CopyFrom(self.node)
            self.first = False
        if error:
            m.error_detail.CopyFrom(status_pb2.Status(code=13, message=error))
        self._log("send", m)
        self.out.put(m)

    def recv(self, timeout=2):
        try:
            m = self.inq.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(m, Exception):
            raise m
        return m

    def close(self):
        self.out.put(None)
        self.call.cancel()


def summary(m):
    if isinstance(m, str):
        return m
    t = SHORT.get(m.type_url, m.type_url)
    if isinstance(m, d.DeltaDiscoveryResponse):
        return f"{t} {len(m.resources)} resources, removed {list(m.removed_resources)}, names {[r.name for r in m.resources][:4]}"
    if isinstance(m, d.DiscoveryResponse):
        return f"{t} {len(m.resources)} resources, version {m.version_info[:25]}"
    if isinstance(m, d.DeltaDiscoveryRequest):
        s = f"{t} sub {list(m.resource_names_subscribe)[:4]} unsub {list(m.resource_names_unsubscribe)[:4]}"
    else:
        s = f"{t} names {list(m.resource_names)[:4]}"
    return s + (" nonce" if m.response_nonce else "") + (" NACK" if m.HasField("error_detail") else "")


def walk(m, fn):
    """Call fn(message) for m and every message below it; every known Any is opened."""
    fn(m)
    if isinstance(m, any_pb2.Any):
        try:
            c = symbol_database.Default().GetSymbol(m.type_url.rsplit("/", 1)[-1])()
        except KeyError:
            return
        c.ParseFromString(m.value)
        return walk(c, fn)
    for f, v in m.ListFields():
        if f.type != FD.TYPE_MESSAGE:
            continue
        if f.message_type.GetOptions().map_entry:
            if f.message_type.fields_by_name["value"].type == FD.TYPE_MESSAGE:
                for x in v.values():
                    walk(x, fn)
        elif f.is_repeated:
            for x in v:
                walk(x, fn)
        else:
            walk(v, fn)


def refs(msg):
    """(EDS names, RDS names, ECDS names, SDS (name, source)) that a resource asks for."""
    eds, rds, ecds, sds = [], [], [], []

    def fn(m):
        n = m.DESCRIPTOR.full_name
        if n == "envoy.config.cluster.v3.Cluster" and m.type == 3:
            eds.append(m.eds_cluster_config.service_name or m.name)
        elif n.endswith("http_connection_manager.v3.Rds"):
            rds.append(m.route_config_name)
        elif n.endswith("http_connection_manager.v3.HttpFilter") and m.HasField("config_discovery"):
            ecds.append(m.name)
        elif n.endswith("tls.v3.SdsSecretConfig"):
            src = m.sds_config
            grpc_ = [s.envoy_grpc.cluster_name for s in src.api_config_source.grpc_services]
            sds.append((m.name, "ads" if src.HasField("ads") else ",".join(grpc_) or str(src)[:60]))

    walk(msg, fn)
    return eds, rds, ecds, sds
