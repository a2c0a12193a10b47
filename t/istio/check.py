#!/usr/bin/env python3
"""Drive a captured pod: check.py in|out RUNDIR -o FILE. Records what each case gives; report.py compares.

"in" runs beside the sidecar (outbound traffic), "out" outside (inbound traffic). Only what a data plane decides is recorded.
"""

import argparse
import collections
import json
import re
import socket
import ssl
import time
import uuid

import pki

KEEP = {
    "location",
    "server",
    "x-arm",
    "x-who",
    "x-resp",
    "x-internal",
    "x-ecds",
    "content-type",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-max-age",
    "access-control-expose-headers",
    "www-authenticate",
}
REQ = {
    "x-added",
    "x-set",
    "x-gone",
    "x-jwt-sub",
    "x-forwarded-client-cert",
    "x-forwarded-proto",
    "x-envoy-attempt-count",
    "x-envoy-original-path",
    "authorization",
}
WEB = "198.18.96.10"


def http(ip, port, host, path="/", method="GET", headers=None, tls=None, sni=None, timeout=8):
    t = time.monotonic()
    try:
        s = socket.create_connection((ip, port), timeout)
        if tls:
            s = tls.wrap_socket(s, server_hostname=sni or host)
        c = http_conn(s)
        c.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        c.putheader("host", host)
        for k, v in (headers or {}).items():
            c.putheader(k, v)
        c.endheaders()
        r = c.getresponse()
        body = r.read().decode()
    except Exception as e:
        return {"error": type(e).__name__}
    out = {"code": r.status, "headers": {k.lower(): v for k, v in r.getheaders() if k.lower() in KEEP}}
    try:
        b = json.loads(body)
        out.update({k: b[k] for k in ("who", "path", "host", "tries", "count", "peer") if k in b})
        out["request"] = {k: v for k, v in b["headers"].items() if k in REQ}
    except (ValueError, KeyError, TypeError):
        out["body"] = body[:120]
    if ck := r.getheader("set-cookie"):
        out["cookie"] = re.sub("=[^;]*", "=VALUE", ck, count=1)
    d = time.monotonic() - t
    if d > 0.25:
        out["seconds"] = round(d * 2) / 2
    return out


def http_conn(sock):
    import http.client as h

    c = h.HTTPConnection("x")
    c.sock = sock
    return c


def tcp(ip, port, data=b"hello", timeout=4):
    try:
        with socket.create_connection((ip, port), timeout) as s:
            s.sendall(data)
            return s.recv(200).decode(errors="replace") or "closed"
    except OSError as e:
        return type(e).__name__


def tls(root, cert=None, alpn=None):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.load_verify_locations(root)
    c.check_hostname = False
    c.verify_mode = ssl.CERT_REQUIRED
    c.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if cert:
        c.load_cert_chain(cert + "/cert-chain.pem", cert + "/key.pem")
    if alpn:
        c.set_alpn_protocols(alpn)
    return c


def calls(n, f):
    """f() n times, or until three of them took so long that the proxy hangs: that ends the case, not the run."""
    slow = 0
    while n and slow < 3:
        t = time.monotonic()
        yield f()
        n, slow = n - 1, slow + (time.monotonic() - t > 1.5)


def share(n, f):
    """Which backends n calls reach: only who, and the share to the nearest tenth, so that it can be compared."""
    c = collections.Counter(calls(n, f))
    return {k: round(v / n, 1) for k, v in sorted(c.items(), key=str)}


def reached(n, f):
    return sorted({str(r) for r in calls(n, f)})


def grpc_say(ip, port, authority, md=()):
    import grpc

    try:
        with grpc.insecure_channel(f"{ip}:{port}", [("grpc.default_authority", authority)]) as ch:
            r, call = ch.unary_unary("/test.Echo/Say", bytes, bytes).with_call(b"hi", timeout=5, metadata=md)
            return r.decode(), call.code().name
    except grpc.RpcError as e:
        return e.code().name, e.details()[:80]


def outbound(run):
    u = uuid.uuid4().hex[:8]
    host = "web.default.svc.cluster.local"
    w = lambda path, m="GET", h=None, host=host: http(WEB, 80, host, path, m, h)
    root = tls(run + "/cacerts/root-cert.pem")
    yield "key", u
    yield "host short name", w("/exact", host="web")
    yield "host with port", w("/exact", host="web.default:80")
    yield "host in capitals", w("/exact", host="WEB.default.svc.cluster.local")
    yield "host is the VIP", w("/exact", host=WEB)
    yield "host unknown: passthrough to the original address", w("/x", host="nobody.example.com")
    yield "header exact", w("/", h={"end-user": "jason"})
    yield "header regex", w("/", h={"cookie": "a=b; canary=1"})
    yield "path exact", w("/exact")
    yield "path exact, query kept", w("/exact?a=1")
    yield "path exact, other method", w("/exact", "POST", {"end-user": "jason"})
    yield "prefix rewrite and authority", w("/api/x?y=1")
    yield "prefix ignore case", w("/API/x")
    yield "regex rewrite", w("/item/42/foo/bar")
    yield "regex rewrite with query", w("/item/42/foo?z=1")
    yield "query match", w("/q?id=5&debug=true")
    yield "query no match", reached(60, lambda: w("/q?id=x&debug=true").get("who"))
    yield "without header", w("/w")
    yield "without header: present", reached(60, lambda: w("/w", h={"x-skip": ""}).get("who"))
    yield "redirect", w("/old?a=b")
    yield "redirect scheme and port", w("/secure/x")
    yield "direct response", w("/teapot")
    yield "fault delay", w("/slow/x")
    yield "fault abort", w("/broken")
    yield "route timeout", w("/slow/sleep-4")
    yield "retries", w(f"/retry/fail-2-{u}a")
    yield "retries used up", w(f"/retry/fail-9-{u}b")
    yield "per try timeout", w("/retry/sleep-1.2")
    yield "retries off", w(f"/once/fail-1-{u}c")
    yield "default retries do not cover 503", w(f"/headers/fail-1-{u}d")
    yield "mirror", w(f"/mirror/{u}m")
    time.sleep(0.3)
    yield "mirror arrived", http("127.0.0.13", 18080, "x", f"/count-{u}m").get("count")
    yield "cors simple", w("/cors", h={"origin": "https://a.example.com"})
    yield "cors other origin", w("/cors", h={"origin": "https://b.example.com"})
    yield (
        "cors preflight",
        w("/cors", "OPTIONS", {"origin": "https://q.example.org", "access-control-request-method": "POST"}),
    )
    yield "header operations", w("/headers", h={"x-gone": "1", "x-set": "old"})
    yield "match on port", http(WEB, 8000, host, "/any")
    yield "match on source labels", w("/mine")
    yield "weights", share(1000, lambda: w("/").get("who"))
    yield (
        "weights: header and host of the arm",
        sorted({json.dumps([r.get("headers", {}).get("x-arm"), r.get("host")]) for r in calls(60, lambda: w("/"))}),
    )
    yield "path normalised", w("/a/../exact")
    yield "escaped slash kept", w("/api/a%2fb")
    yield "no VIP, shared port", http("198.18.96.77", 81, "novip", "/")
    yield "no VIP, TCP port", tcp("198.18.96.77", 7300)
    yield "tcp weights", share(1000, lambda: tcp("198.18.96.12", 5432).split(":")[0])
    yield "undeclared protocol, http", http("198.18.96.13", 7100, "auto", "/")
    yield "undeclared protocol, binary", tcp("198.18.96.13", 7101, b"\0\1hello")
    yield "undeclared protocol, a word that could begin a request: waits", tcp("198.18.96.13", 7101, b"hello", 2)
    yield "undeclared protocol, a line that is no request", tcp("198.18.96.13", 7101, b"hello\r\n")
    yield "undeclared protocol, server speaks first: waits", tcp("198.18.96.13", 7101, b"", 2)
    yield "grpc", grpc_say("198.18.96.11", 9000, "echo.default.svc.cluster.local")
    yield (
        "grpc matched by header",
        grpc_say("198.18.96.11", 9000, "echo.default.svc.cluster.local", [("x-tenant", "a")]),
    )
    yield "locality", reached(20, lambda: http("198.18.96.20", 80, "pay.shop", "/").get("who"))
    yield "consistent hash by cookie: cookie made", http("198.18.96.20", 80, "pay.shop", "/").get("cookie")
    yield "sni passthrough", http("198.18.96.30", 443, "legacy.example.com", "/", tls=root)
    yield "sni second name", http("198.18.96.30", 443, "legacy2.example.com", "/", tls=root)
    yield "sni unknown on that address", http("198.18.96.30", 443, "zzz.example.com", "/", tls=root)
    yield "https by name, any address", http("198.18.96.99", 443, "api.example.com", "/", tls=root)
    yield "http to tls", http("198.18.96.99", 80, "api.example.com", "/")
    yield "wildcard host, original address", http("198.18.96.98", 80, "a.wild.example.com", "/")
    yield "mutual tls to an endpoint", http("198.18.96.21", 80, "vault.shop", "/")
    yield "unknown tcp port: passthrough", tcp("198.18.96.97", 9999)


def inbound(run):
    pod, host = "198.18.0.6", "app.default.svc.cluster.local"
    w = lambda path="/", m="GET", h=None, port=8080, **k: http(pod, port, host, path, m, h, **k)
    good = dict(iss="https://issuer.example.com", aud="app")
    jwt = lambda **k: {"authorization": "Bearer " + pki.token(run, "default", "u", **{**good, **k})}
    pay = tls(run + "/cacerts/root-cert.pem", run + "/pay", ["istio-http/1.1", "istio", "http/1.1"])
    plain = tls(run + "/cacerts/root-cert.pem", run + "/pay")
    hide = lambda r: r.get("request", {}).pop("authorization", None) and r or r
    yield "plaintext to a permissive port", w()
    yield "denied path", w("/admin/x")
    yield "denied path, other method allowed by no rule", w("/admin", "OPTIONS")
    yield "allowed by no rule", w("/", "POST")
    yield "denied path after normalising", w("/x/../admin/")
    yield "x-forwarded-client-cert from outside", w("/", h={"x-forwarded-client-cert": "By=spoofed"})
    yield "jwt good", hide(w(h=jwt()))
    yield "jwt wrong issuer", hide(w(h=jwt(iss="https://x.example.com")))
    yield "jwt wrong audience", hide(w(h=jwt(aud="other")))
    yield "jwt expired", hide(w(h=jwt(exp=int(time.time()) - 3600)))
    yield "jwt principal with claim", hide(w("/", "PUT", jwt(groups=["writers"])))
    yield "jwt principal without claim", hide(w("/", "PUT", jwt(groups=["readers"])))
    yield (
        "jwt second issuer in its header",
        w(h={"x-token": "Tok " + jwt(iss="https://second.example.com")["authorization"][7:]}),
    )
    yield "mutual tls", w(tls=pay)
    yield "mutual tls principal", w("/pay/1/items/2/3", "POST", tls=pay)
    yield "mutual tls principal, other path", w("/pay/1", "POST", tls=pay)
    yield "tls without istio alpn on a permissive http port", w(tls=plain)
    yield "plaintext to a strict port", w(port=8081)
    yield "mutual tls to a strict port", w(port=8081, tls=pay)
    yield "tcp port", tcp(pod, 17000)
    yield "undeclared protocol, http", w(port=17100)
    yield "undeclared protocol, binary: denied", tcp(pod, 17100, b"\0\1hello")
    yield "port of no service, nobody listens", tcp(pod, 17999, b"\0\1hello")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("side", choices=["in", "out"])
    a.add_argument("run")
    a.add_argument("-o", required=True)
    o = a.parse_args()
    got, key, end = {}, "\0", time.monotonic() + 300
    for name, r in (outbound if o.side == "in" else inbound)(o.run):
        if name == "key":
            key = r
            continue
        r = got[name] = json.loads(re.sub("Hash=[0-9a-f]+", "Hash=HASH", json.dumps(r)).replace(key, "KEY"))
        print(f"{name}: {json.dumps(r)}", flush=True)
        if time.monotonic() > end:
            print("out of time", flush=True)
            break
    with open(o.o, "w") as f:
        f.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in got.items()) + "\n}\n")


main()
